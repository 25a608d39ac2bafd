"""The driver of `memory://`: sending, with a bound, to the groups of one process."""

# ruff: noqa: ARG002  (the signatures are the contract's)

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial

from switchgear.clock import Clock
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

from . import admin
from .broker import BROKERS, Broker, Topic
from .group import Stored
from .source import BODY, CAPABILITIES, MemorySource

STORED = (None,)


class MemoryTransport:
    """A connection to the broker of one name. Also Registry, Scheduling, Seekable, Lagged, Browsable, Provisioner,
    Transactional."""

    capabilities = CAPABILITIES

    def __init__(self, name: str = "", capacity: int = 10_000) -> None:
        self._name, self._capacity = name, capacity
        self._clock: Clock | None = None
        self._broker: Broker | None = None
        self._sources: set[MemorySource] = set()
        self._waits: set[asyncio.Future[None]] = set()

    def set_clock(self, clock: Clock) -> None:
        """Take all time from `clock`; whoever connects first to a name decides for it."""
        self._clock = clock

    async def connect(self, deadline: float) -> None:
        """Join the broker of this name, or make it. Raises ConfigurationError if another event loop has it."""
        if self._broker is None:
            self._broker = BROKERS.acquire(self._name, self._clock)

    async def send(self, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        """Give each message to every group of its topic; wait for room until `deadline`, then NotSent."""
        broker = self._broker or self._open()
        if len(batch) == 1:  # the core sends one by one where nothing has to be waited for: the quickest path there is
            m = batch[0]
            topic = broker.topics.get(m.topic)
            if topic is not None and m.due is None and m.body is not None and len(m.body) <= BODY:
                readers = topic.readers
                if len(readers) == 1 and not topic.senders:
                    group = readers[0]
                    if len(group.ready) + group.parked < self._capacity:
                        group.ready.append(Stored(broker.position(), m, broker.now()))
                        if group.idle:
                            group.arrived(m.key)
                        return STORED
                for group in readers:
                    if len(group.ready) + group.parked >= self._capacity:
                        break
                else:
                    if not topic.senders:
                        stored = Stored(broker.position(), m, broker.now())
                        for group in readers:
                            group.ready.append(stored)
                            if group.idle:
                                group.arrived(m.key)
                        return STORED
        failed: set[tuple[str, bytes]] = set()
        return [await self._send(broker, m, deadline, failed) for m in batch]

    async def _send(
        self, broker: Broker, m: Outgoing, deadline: float, failed: set[tuple[str, bytes]]
    ) -> TransportError | None:
        """Store one message; what fails holds back the later ones of its key, in `failed`."""
        error: TransportError | None = _refused(m)
        if error is not None:
            pass
        elif m.key is not None and (m.topic, m.key) in failed:
            error = NotSent(f"topic {m.topic!r}: not stored, since an earlier message of its key in this batch was not")
        elif m.due is not None and m.due > broker.now():
            broker.delay(m, m.due)
        else:
            if not m.private and m.topic in broker.topics:
                error = await self._room(broker, broker.topics[m.topic], deadline)
            if error is None:
                broker.store(m)
        if error is not None and m.key is not None:
            failed.add((m.topic, m.key))
        return error

    async def _room(self, broker: Broker, topic: Topic, deadline: float) -> NotSent | None:
        """Wait in line until every group of the topic has room."""
        ticket = object()
        try:
            while (topic.senders and ticket not in topic.senders) or topic.full(self._capacity):
                broker.trim()
                full = topic.full(self._capacity)
                if full is None and not topic.senders:
                    break
                if full is not None and broker.clock.monotonic() >= deadline:
                    return NotSent(
                        f"topic {topic.name!r}: group {full.name!r} has {self._capacity} messages waiting and made no "
                        "room in time; is it running? (option `capacity`, messages)"
                    )
                turn: asyncio.Future[None] = broker.loop.create_future()
                topic.senders[ticket] = turn  # who is woken and finds no room keeps its place
                self._waits.add(turn)
                timer = broker.clock.call_at(deadline, partial(_wake, turn))
                try:
                    await turn
                finally:
                    timer.cancel()
                    self._waits.discard(turn)
                if self._broker is None:
                    return NotSent(f"topic {topic.name!r}: memory://{self._name} was closed while this waited for room")
        finally:
            if topic.senders.pop(ticket, None) is not None:
                broker.loop.call_soon(topic.advance)  # after this one has stored
        return None

    async def commit(
        self, source: Source, settled: Sequence[Settlement], produced: Sequence[Outgoing], deadline: float
    ) -> None:
        """Transactional: wait for room in all topics at once, then do everything without waiting."""
        broker = self._open()
        assert isinstance(source, MemorySource)
        for m in produced:
            if (refused := _refused(m)) is not None:
                raise refused
        names = dict.fromkeys(m.topic for m in produced if not m.private and (m.due is None or m.due <= broker.now()))
        topics = [broker.topics[name] for name in names if name in broker.topics]
        while any(topic.full(self._capacity) for topic in topics):
            for topic in topics:
                if (error := await self._room(broker, topic, deadline)) is not None:
                    raise error
        for one in settled:
            if one.delivery.token not in source.leased:
                raise Lost(f"topic {one.delivery.topic!r}: delivery {one.delivery.token} is no longer leased to us")
        for m in produced:
            if m.due is not None and m.due > broker.now():
                broker.delay(m, m.due)
            else:
                broker.store(m)
        await source.settle(settled)  # waits for nothing

    async def subscribe(self, subscription: Subscription, revoked: Revoked) -> MemorySource:
        """Join; a new group begins with what is kept from its start on. Nothing is ever revoked."""
        broker = self._open()
        source = MemorySource(broker, subscription, self._sources)
        await source.assign(subscription.topics)
        self._sources.add(source)
        return source

    async def close(self) -> None:
        """Close what is open; the last transport of the name takes the messages along."""
        broker, self._broker = self._broker, None
        if broker is None:
            return
        for source in list(self._sources):
            await source.close()
        for turn in self._waits:
            _wake(turn)
        BROKERS.release(broker)

    def _open(self) -> Broker:
        if self._broker is None:
            raise Unavailable(f"memory://{self._name} is not connected")
        return self._broker

    async def read(self, prefix: str) -> Mapping[str, Row]:
        """Registry: live rows by prefix."""
        return admin.read(self._open(), prefix)

    async def write(self, name: str, value: bytes | None, *, expect: int | None, ttl: float | None) -> int | None:
        """Registry: compare and set."""
        return admin.write(self._open(), name, value, expect, ttl)

    async def promote(self, limit: int) -> float | None:
        """Scheduling: move what is due; a timer does so too."""
        return self._open().delayed.run(limit)

    async def cancel(self, topic: str, dedup: str) -> bool:
        """Scheduling: take back what is not due yet."""
        return self._open().cancel(topic, dedup)

    async def seek(self, topic: str, group: str, to: Start | str) -> None:
        """Seekable: among what is kept."""
        admin.seek(self._open(), topic, group, to)

    async def lag(self, topics: Sequence[str], group: str) -> Mapping[str, int]:
        """Lagged: by topic; a topic that the group does not read is left out."""
        return admin.lag(self._open(), topics, group)

    def browse(self, topic: str, start: Start, end: float | None) -> AsyncIterator[tuple[Delivery, Headers]]:
        """Browsable: what some group has not settled."""
        return admin.browse(self._open(), topic, start, end)

    async def provision(self, wanted: Sequence[Resource], apply: bool) -> Sequence[Drift]:
        """Provisioner: topics with their retention, groups with their start."""
        return admin.provision(self._open(), wanted, apply)

    async def topics(self, prefix: str) -> Sequence[TopicInfo]:
        """Provisioner: what is there."""
        return admin.topics(self._open(), prefix)


def _refused(m: Outgoing) -> Refused | None:
    """Why a message can't be stored whatever happens."""
    if m.body is None:
        return Refused(f"topic {m.topic!r}: memory:// has no tombstones; send a body")
    if len(m.body) > BODY:
        return Refused(f"topic {m.topic!r}: a body of {len(m.body)} bytes; memory:// takes up to {BODY}")
    return None


def _wake(turn: asyncio.Future[None]) -> None:
    if not turn.done():
        turn.set_result(None)
