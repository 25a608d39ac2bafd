"""What went in, what came out, and what that proves."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

from . import history
from .history import Event, Lines
from .verdict import Verdict


class Oracle:
    """Reads the history in a folder; `look` takes in what is new."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[Path, Lines] = {}
        self.attempted: set[str] = set()
        self.stored: set[str] = set()
        self.unsure: set[str] = set()
        self.failed: set[str] = set()
        self.handled: Counter[str] = Counter()
        """How often each message was handled to the end."""
        self.faults: Counter[str] = Counter()
        self.pids: Counter[int] = Counter()
        """Which processes handled how many."""
        self.corrupt: list[str] = []
        """Handled with another checksum than before."""
        self._sums: dict[str, int] = {}
        self._first: dict[str, float] = {}
        """When each message was first handled to the end; a paused process writes late what another has done before."""
        self._begins: list[tuple[float, str, int]] = []

    def look(self) -> Oracle:
        """Take in what was written since."""
        for path in sorted(self.folder.glob("*.jsonl")):
            for event in self._files.setdefault(path, Lines(path)):
                self._take(event)
        return self

    def _take(self, event: Event) -> None:
        match event.e:
            case history.ATTEMPT:
                self.attempted.add(event.id)
            case history.STORED:
                self.stored.add(event.id)
            case history.UNSURE:
                self.unsure.add(event.id)
            case history.FAILED:
                self.failed.add(event.id)
            case history.BEGIN:
                if event.f:
                    self._begins.append((event.t, event.key, event.f))
            case history.END:
                self._handled(event)
            case history.FAULT:
                self.faults[event.what] += 1
            case _:
                pass

    def _handled(self, event: Event) -> None:
        if event.t < self._first.get(event.id, math.inf):
            self._first[event.id] = event.t
        self.handled[event.id] += 1
        self.pids[event.p] += 1
        if self._sums.setdefault(event.id, event.c) != event.c:
            self.corrupt.append(event.id)

    @property
    def lost(self) -> set[str]:
        """Acknowledged to the publisher, and never handled."""
        return self.stored - self.handled.keys()

    @property
    def unexpected(self) -> set[str]:
        """Handled, though nobody published it."""
        return self.handled.keys() - self.attempted

    @property
    def disorder(self) -> list[tuple[str, str]]:
        """Pairs of a key that were first handled in the wrong order. What `publish` did not confirm may come late."""
        last: dict[str, str] = {}
        wrong: list[tuple[str, str]] = []
        for id in sorted(self._first, key=self._first.__getitem__):
            if id not in self.stored:
                continue
            key, _, number = id.rpartition("/")
            before = last.get(key)
            if before is not None and int(before.rpartition("/")[2]) > int(number):
                wrong.append((before, id))
            else:
                last[key] = id
        return wrong

    @property
    def overlapping(self) -> int:
        """Handlers that began under an older fence of their key after a newer one had begun: a running handler may
        overlap with its successor's, and a process that is stopped between its check and its first line looks so."""
        newest: dict[str, int] = {}
        count = 0
        for _, key, fence in sorted(self._begins):
            count += fence < newest.get(key, 0)
            newest[key] = max(fence, newest.get(key, 0))
        return count

    def verdict(self, *, ordered: bool) -> Verdict:
        """What the history proves."""
        return Verdict(
            attempted=len(self.attempted), stored=len(self.stored), failed=len(self.failed),
            unsure=len(self.attempted - self.stored - self.failed),
            handled=len(self.handled), duplicates=sum(n - 1 for n in self.handled.values()),
            consumers=len(self.pids), faults=dict(self.faults), overlaps=self.overlapping,
            lost=sorted(self.lost), unexpected=sorted(self.unexpected), corrupt=sorted(set(self.corrupt)),
            disorder=self.disorder if ordered else [], ordered=ordered,
        )  # fmt: skip

    def __str__(self) -> str:
        return (
            f"{len(self.attempted)} attempted, {len(self.stored)} stored, {len(self.unsure)} unsure, "
            f"{len(self.failed)} failed; {len(self.handled)} handled by {len(self.pids)} consumers, {len(self.lost)} "
            f"outstanding; faults: {', '.join(f'{n} {what}' for what, n in self.faults.items()) or 'none'}"
        )
