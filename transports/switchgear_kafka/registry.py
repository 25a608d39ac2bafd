"""Small shared rows in a compacted topic of one partition: who appends the first fitting write to it wins.

A record's key is the row's name; its value says what the writer expected and what it writes. All who read the log in
order come to the same rows: a write counts when what it expected is what is there. The revision of a row is the offset
of its record, plus one so that none is 0.

Compaction keeps of each name the last record alone, which may be a write that came too late. Whoever sees that the
last record of a name is not its row tells the row again, with the revision that it has and how far he had read; so
compaction, which leaves the last day alone, finds the truth. The first record of a name that is left is believed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import Final

import msgspec

from switchgear.driver import Delivery, Row
from switchgear.errors import TransportError, Unsupported

from .cluster import EARLIEST, Cluster, OutOfRange, Producer, Record, TopicPartition
from .lanes import offset_of
from .topics import create

REPAIRS = 3  # rounds of telling rows again, each of which others may disturb
PAUSE = 0.01  # seconds before what was just stored is asked for again
CONFIG: Final = {"cleanup.policy": "compact", "min.compaction.lag.ms": "86400000"}


class Entry(msgspec.Struct, omit_defaults=True):
    """The value of a record."""

    value: bytes | None
    """None: there is no such row."""
    expect: int | None = None
    """The revision over which it was written, 0 for no row; None: over whatever was there."""
    revision: int | None = None
    """Of a row that is told again: the one that it has. It counts unless something after `seen` did."""
    seen: int = -1
    """Of a row that is told again: the offset up to which its writer had read."""


class Rows:
    """The rows as of an offset of the log."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[int, bytes | None]] = {}
        """Revision and value by name; no value for a row that was deleted."""
        self._decided: dict[str, int] = {}
        """The offset of the record that made each row what it is."""
        self.stale: set[str] = set()
        """Names whose last record is not their row."""

    def live(self, name: str) -> int:
        """The row's revision, 0 where there is no row."""
        revision, value = self.found.get(name, (0, None))
        return 0 if value is None else revision

    def apply(self, record: Delivery) -> None:
        """Go on by one record; what is none of ours is passed over."""
        if record.key is None or record.body is None:
            return
        try:
            name, entry = record.key.decode(), msgspec.json.decode(record.body, type=Entry)
        except (UnicodeDecodeError, msgspec.DecodeError):
            return
        before = self.found.get(name)
        if entry.revision is not None:
            counts = self._decided.get(name, -1) <= entry.seen
        else:
            counts = before is None or entry.expect is None or entry.expect == self.live(name)
        if counts:
            offset = offset_of(record)
            self.found[name] = (offset + 1 if entry.revision is None else entry.revision, entry.value)
            self._decided[name] = offset
            self.stale.discard(name)
        else:
            self.stale.add(name)


class LogRegistry:
    """The registry of one cluster."""

    def __init__(self, cluster: Cluster, producer: Producer) -> None:
        self._cluster, self._producer = cluster, producer
        self._tp = TopicPartition(cluster.settings.tuning.registry, 0)
        self._rows = Rows()
        self._next: int | None = None
        """The offset to read on from; None: from the beginning."""
        self._lock = asyncio.Lock()

    async def read(self, prefix: str) -> dict[str, Row]:
        """Live rows whose names begin so."""
        async with self._lock:
            await self._catch_up()
            return {
                name: Row(value, revision)
                for name, (revision, value) in self._rows.found.items()
                if value is not None and name.startswith(prefix)
            }

    async def write(self, name: str, value: bytes | None, *, expect: int | None, ttl: float | None) -> int | None:
        """Append a write and read what came before it. Raises Unsupported with a `ttl`: a log has no clock."""
        if ttl is not None:
            raise Unsupported(f"{self._cluster.at}: rows of a compacted topic do not expire")
        async with self._lock:
            await self._catch_up()
            live = self._rows.live(name)
            if expect is not None and expect != live:
                return None
            if value is None and not live:
                return 0
            if live and value == self._rows.found[name][1]:
                return live
            offset = await self._append(name, Entry(value, expect))
            await self._catch_up(offset + 1)
            if self._rows.found.get(name, (0, None))[0] == offset + 1:
                return live if value is None else offset + 1
            return None

    async def _catch_up(self, least: int = 0) -> None:
        """Read to the end of the log, which is at `least` there, and mend what compaction would get wrong."""
        if not await self._cluster.partitions(self._tp.topic):
            self._rows, self._next = Rows(), None
            return
        end = await self._read(least)
        for _ in range(REPAIRS):
            if not self._rows.stale:
                return
            with suppress(TransportError):  # whoever reads next tries again
                for name in self._rows.stale:
                    revision, value = self._rows.found[name]
                    await self._append(name, Entry(value, revision=revision, seen=end - 1))
            end = await self._read(end)

    async def _read(self, least: int) -> int:
        """Read to the end of the log, and return where that is."""
        while True:
            try:
                if self._next is None:
                    self._next = (await self._cluster.offsets({self._tp: EARLIEST}))[self._tp]
                records, self._next = await self._cluster.read(self._tp, self._next)
            except OutOfRange:
                self._rows, self._next = Rows(), None  # the topic was made anew
                continue
            for record in records:
                self._rows.apply(record)
            if not records:
                if self._next >= least:
                    return self._next
                await asyncio.sleep(PAUSE)

    async def _append(self, name: str, entry: Entry) -> int:
        """The offset of the new record. Raises the error of a publish."""
        if not await self._cluster.partitions(self._tp.topic):
            await create(self._cluster, self._tp.topic, partitions=1, config=CONFIG)
        record = Record(0, name.encode(), msgspec.json.encode(entry), [])
        outcome = (await self._producer.send({self._tp: deque([record])}, self._cluster.soon()))[0]
        if isinstance(outcome, TransportError):
            raise outcome
        return outcome
