"""The history of a workload: JSON Lines, one event a line, in one file a process.

An event is an object of `e` (what), `t` (seconds of the machine's monotonic clock, the same in all its processes), `p`
(process id) and, by kind:

- `attempt`, `stored`, `unsure`, `failed`: a publisher called `publish`, and how the call ended: it returned, it raised
  MaybeSent, it raised anything else. `id` is "KEY/NUMBER", and the numbers of a key rise in the order of the calls.
- `begin`, `end`: a handler began, and returned. `id`; `f` is the fence, `n` the attempt; `end` has `c`, the checksum
  (CRC 32) of the body.
- `fault`: something was done to the workload; `what` and `who` say what and to whom. `mark`: `what` says what began.

One write of one line is whole or absent, also when its process is killed; the order of a file's lines is the order in
which they happened.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

ATTEMPT, STORED, UNSURE, FAILED = "attempt", "stored", "unsure", "failed"
BEGIN, END, FAULT, MARK = "begin", "end", "fault", "mark"


class Event(msgspec.Struct, omit_defaults=True):
    """One line."""

    e: str
    t: float
    p: int
    id: str = ""
    f: int = 0
    n: int = 0
    c: int = 0
    what: str = ""
    who: str = ""

    @property
    def key(self) -> str:
        return self.id.rpartition("/")[0]

    @property
    def number(self) -> int:
        return int(self.id.rpartition("/")[2])


class Journal:
    """The writing end."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
        self._pid = os.getpid()
        self._encoder = msgspec.json.Encoder()

    def write(self, e: str, id: str = "", *, f: int = 0, n: int = 0, c: int = 0, what: str = "", who: str = "") -> None:
        event = Event(e, round(time.monotonic(), 6), self._pid, id, f, n, c, what, who)
        os.write(self._file, self._encoder.encode(event) + b"\n")

    def close(self) -> None:
        os.close(self._file)


class Lines:
    """The events of a file that may be growing, each handed out once."""

    def __init__(self, path: Path) -> None:
        self.path, self._offset = path, 0
        self._decoder = msgspec.json.Decoder(Event)

    def __iter__(self) -> Iterator[Event]:
        with self.path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # being written
                self._offset += len(line)
                yield self._decoder.decode(line)


def read(folder: Path) -> Iterator[Event]:
    """All events of a folder, file by file."""
    for path in sorted(folder.glob("*.jsonl")):
        yield from Lines(path)
