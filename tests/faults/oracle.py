"""What went in, what came out, and what that proves.

Publishers and consumers write a line for each step into files opened for appending. One write of one short line is
whole or absent, also when its process is killed, and the order of a file's lines is the order in which they happened.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

ATTEMPTED, STORED, UNSURE, FAILED = "?", "+", "~", "-"


class Journal:
    """The writing end, for worker programs."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)

    def write(self, *words: object) -> None:
        os.write(self._file, (" ".join(map(str, words)) + "\n").encode())


class Handled(NamedTuple):
    """A handler that returned."""

    pid: int
    id: str
    """`key/number`; the numbers of a key rise in the order of the calls of `publish`."""
    fence: int
    checksum: int
    """Of the stored bytes."""
    at: float
    """`time.monotonic()`, which all processes of a machine share."""

    @property
    def key(self) -> str:
        return self.id.partition("/")[0]

    @property
    def number(self) -> int:
        return int(self.id.partition("/")[2])


class Lines:
    """The lines of a file that is being written, each handed out once."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0

    def __iter__(self) -> Iterator[str]:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            said = file.read()
        whole = said[: said.rfind(b"\n") + 1]
        self._offset += len(whole)
        yield from whole.decode().splitlines()


@dataclass
class Oracle:
    """Reads `published` and `handled` in a folder; `look` takes in what is new."""

    folder: Path
    expected: set[str] = field(default_factory=set[str])
    """Acknowledged by other means than a journal, such as the summary of a command."""
    attempted: set[str] = field(default_factory=set[str])
    stored: set[str] = field(default_factory=set[str])
    unsure: set[str] = field(default_factory=set[str])
    failed: set[str] = field(default_factory=set[str])
    handled: list[Handled] = field(default_factory=list[Handled])
    seen: set[str] = field(default_factory=set[str])

    def __post_init__(self) -> None:
        self.published_path, self.handled_path = self.folder / "published", self.folder / "handled"
        self._published, self._handled = Lines(self.published_path), Lines(self.handled_path)

    def look(self) -> Oracle:
        """Take in what was written since."""
        kinds = {ATTEMPTED: self.attempted, STORED: self.stored, UNSURE: self.unsure, FAILED: self.failed}
        for line in self._published:
            kind, _, id = line.partition(" ")
            kinds[kind].add(id)
        for line in self._handled:
            pid, id, fence, checksum, at = line.split(" ")
            self.handled.append(Handled(int(pid), id, int(fence), int(checksum), float(at)))
            self.seen.add(id)
        return self

    @property
    def lost(self) -> set[str]:
        """Acknowledged to the publisher, and never handled."""
        return (self.stored | self.expected) - self.seen

    @property
    def unexpected(self) -> set[str]:
        """Handled, though nobody published it."""
        return self.seen - self.attempted - self.expected

    @property
    def duplicates(self) -> dict[str, int]:
        """How often each message was handled that was handled more than once."""
        return {id: n for id, n in Counter(h.id for h in self.handled).items() if n > 1}

    @property
    def disorder(self) -> list[tuple[str, str]]:
        """Pairs of a key that were first handled in the wrong order. What `publish` did not confirm may come late."""
        sure = self.stored | self.expected
        last: dict[str, Handled] = {}
        wrong: list[tuple[str, str]] = []
        first: set[str] = set()
        for one in self.handled:
            if one.id in first or one.id not in sure:
                continue
            first.add(one.id)
            before = last.get(one.key)
            if before is not None and before.number > one.number:
                wrong.append((before.id, one.id))
            else:
                last[one.key] = one
        return wrong

    @property
    def pids(self) -> Counter[int]:
        """Which processes handled how many."""
        return Counter(h.pid for h in self.handled)

    def __str__(self) -> str:
        return (
            f"{len(self.attempted | self.expected)} attempted, {len(self.stored | self.expected)} stored, "
            f"{len(self.unsure)} unsure, {len(self.failed)} failed; {len(self.handled)} handled by "
            f"{len(self.pids)} processes, {len(self.duplicates)} more than once, {len(self.lost)} lost"
        )

    def judge(self, *, ordered: bool, exactly_once: bool = False) -> None:
        """Nothing lost, nothing invented, keys in order; AssertionError names what is wrong."""
        assert self.stored or self.expected, f"nothing was published: {self}"
        assert not self.lost, f"{self}: {sorted(self.lost)[:10]}"
        assert not self.unexpected, f"{self}; unexpected: {sorted(self.unexpected)[:10]}"
        if ordered:
            assert not self.disorder, f"{self}; out of order: {self.disorder[:10]}"
        if exactly_once:
            assert not self.duplicates, f"{self}; more than once: {list(self.duplicates.items())[:10]}"


def now() -> float:
    """The clock of the journals."""
    return time.monotonic()
