"""The driver of `sqlite://`: connecting, sending, subscribing."""

# ruff: noqa: ARG002  (the signatures are the contract's)

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from switchgear.driver import (
    Delivery,
    Drift,
    Headers,
    Outgoing,
    Resource,
    Revoked,
    Row,
    Settlement,
    Source,
    Start,
    Subscription,
    TopicInfo,
)
from switchgear.errors import Lost, NotSent, Refused, TransportError, Unavailable

from . import SqliteTuning, admin, registry, store
from .broadcast import BroadcastSource
from .capabilities import BODY, CAPABILITIES
from .files import Files, open_files
from .schema import create_topic
from .source import SqliteSource


class SqliteTransport:
    """A file that is open. Also Registry, Scheduling, Seekable, Lagged, Browsable, Provisioner, Transactional."""

    capabilities = CAPABILITIES

    def __init__(self, path: str, tuning: SqliteTuning) -> None:
        self._path, self._tuning = path, tuning
        self._files: Files | None = None
        self._sources: set[SqliteSource | BroadcastSource] = set()
        self._numbers: dict[str, int] = {}

    async def connect(self, deadline: float) -> None:
        """Open the file, or see that it can still be written."""
        if self._files is None:
            self._files = await open_files(self._path, self._tuning)
        else:
            await self._files.writer.run(lambda _: None)

    async def send(self, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        """Store the batch in one transaction: all of it, except what is refused, or nothing."""
        outcomes, rows, later = _sort(batch, time.time())
        if rows or later:
            await self._write(self._storing(rows, later), deadline)
        return outcomes

    async def commit(
        self, source: Source, settled: Sequence[Settlement], produced: Sequence[Outgoing], deadline: float
    ) -> None:
        """Transactional: all in one transaction of the file."""
        outcomes, rows, later = _sort(produced, time.time())
        for error in outcomes:
            if error is not None:
                raise error
        if not isinstance(source, SqliteSource):
            raise Refused("a broadcast subscriber keeps nothing on the file that could be settled; give it a group")
        carry_out, store_all = source.settling(settled), self._storing(rows, later)

        def write(db: sqlite3.Connection) -> dict[str, int]:
            lost, _ = carry_out(db)
            if lost:  # which undoes the rest
                topic, position = min(lost)
                raise Lost(
                    f"topic {topic!r}: position {position} is no longer leased to this member, nor are {len(lost) - 1} "
                    "others; nothing was stored"
                )
            return store_all(db)

        await self._write(write, deadline)

    async def _write(self, write: Callable[[sqlite3.Connection], dict[str, int]], deadline: float) -> None:
        """Run what stores messages and tells the numbers of the topics that it made."""
        files = self._open()
        within = deadline - asyncio.get_running_loop().time()
        made = await files.writer.run(write, sending=True, within=max(0.0, within))
        if made:
            self._numbers = self._numbers | made
        files.watch.wake_all()

    def _storing(self, rows: Rows, later: Later) -> Callable[[sqlite3.Connection], dict[str, int]]:
        """To be called in a transaction: stores messages; returns the numbers of topics that it made."""
        numbers, trim, most = self._numbers, self._open().trim, self._tuning.max_messages

        def write(db: sqlite3.Connection) -> dict[str, int]:
            made = {name: create_topic(db, name) for name in (*rows, *later) if name not in numbers}
            known = numbers | made if made else numbers
            for name, values in rows.items():
                store.insert(db, known[name], values)
                if most is not None:
                    trim(db, known[name])
            for name, delayed in later.items():
                store.delay(db, known[name], delayed)
            return made

        return write

    async def subscribe(self, subscription: Subscription, revoked: Revoked) -> Source:
        """Join; topics and groups that are not there are made. Nothing is ever revoked."""
        files = self._open()
        source: SqliteSource | BroadcastSource
        if subscription.group is None:
            source = BroadcastSource(files, subscription, self._sources.discard)
        else:
            source = SqliteSource(files, subscription, self._sources.discard)
        await source.assign(subscription.topics)
        self._sources.add(source)
        return source

    async def close(self) -> None:
        """Close what is open and end both threads."""
        files, self._files = self._files, None
        if files is None:
            return
        try:
            for source in list(self._sources):
                await source.close()
        except TransportError:  # what is not given back returns at the end of its lease
            self._sources.clear()
        finally:
            await files.close()

    def _open(self) -> Files:
        if self._files is None:
            raise Unavailable(f"sqlite:///{self._path} is not connected")
        return self._files

    async def read(self, prefix: str) -> Mapping[str, Row]:
        """Registry: live rows by prefix."""
        return await self._open().reader.run(lambda db: registry.read(db, prefix))

    async def write(self, name: str, value: bytes | None, *, expect: int | None, ttl: float | None) -> int | None:
        """Registry: compare and set."""
        return await self._open().writer.run(lambda db: registry.write(db, name, value, expect, ttl))

    async def promote(self, limit: int) -> float | None:
        """Scheduling: move what is due; the readers of a topic do so too."""
        files = self._open()
        wait = await files.reader.run(admin.next_due)
        if wait is not None and wait <= 0:
            wait = await files.writer.run(lambda db: admin.promote(db, limit))
            files.watch.wake_all()
        return wait

    async def cancel(self, topic: str, dedup: str) -> bool:
        """Scheduling: take back what is not due yet."""
        return await self._open().writer.run(lambda db: admin.cancel(db, topic, dedup))

    async def seek(self, topic: str, group: str, to: Start | str) -> None:
        """Seekable: among what is kept."""
        await self._open().writer.run(lambda db: admin.seek(db, topic, group, to))

    async def lag(self, topics: Sequence[str], group: str) -> Mapping[str, int]:
        """Lagged: by topic; a topic that the group does not read is left out."""
        return await self._open().reader.run(lambda db: admin.lag(db, topics, group))

    def browse(self, topic: str, start: Start, end: float | None) -> AsyncIterator[tuple[Delivery, Headers]]:
        """Browsable: what is kept, settled or not."""
        return admin.browse(self._open(), topic, start, end)

    async def provision(self, wanted: Sequence[Resource], apply: bool) -> Sequence[Drift]:
        """Provisioner: topics with their retention, groups with their start."""
        return await self._open().writer.run(lambda db: admin.provision(db, wanted, apply))

    async def topics(self, prefix: str) -> Sequence[TopicInfo]:
        """Provisioner: what is there."""
        return await self._open().reader.run(lambda db: admin.topics(db, prefix))


Rows = dict[str, list[store.Row]]
Later = dict[str, list[tuple[float, store.Row]]]


def _sort(batch: Sequence[Outgoing], now: float) -> tuple[list[TransportError | None], Rows, Later]:
    """Outcomes, item by item, and by topic what is to be stored now and later. After a refused item none of its key."""
    outcomes: list[TransportError | None] = []
    rows: Rows = {}
    later: Later = {}
    failed: set[tuple[str, bytes]] = set()
    for m in batch:
        error: TransportError | None = None
        if m.body is None:
            error = Refused(f"topic {m.topic!r}: sqlite:// has no tombstones; send a body")
        elif len(m.body) > BODY:
            error = Refused(f"topic {m.topic!r}: a body of {len(m.body)} bytes; sqlite:// takes up to {BODY}")
        elif failed and m.key is not None and (m.topic, m.key) in failed:
            error = NotSent(f"topic {m.topic!r}: not stored, since an earlier message of its key in this batch was not")
        else:
            try:
                row = store.row(m, now)
            except UnicodeEncodeError:
                error = Refused(f"topic {m.topic!r}: a header's name is no text")
            else:
                if m.due is not None and m.due > now:
                    later.setdefault(m.topic, []).append((m.due, row))
                else:
                    rows.setdefault(m.topic, []).append(row)
        if error is not None and m.key is not None:
            failed.add((m.topic, m.key))
        outcomes.append(error)
    return outcomes, rows, later
