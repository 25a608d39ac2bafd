"""The driver of `memory://`: sending, with a bound, to the groups of one process."""

# ruff: noqa: ARG002  (the signatures are the contract's)

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence

from switchgear.clock import Clock
from switchgear.driver import (
    Delivery,
    Drift,
    Headers,
    Outgoing,
    Resource,
    Revoked,
    Row,
    Start,
    Subscription,
    TopicInfo,
)
from switchgear.errors import NotSent, Refused, TransportError, Unavailable

from . import admin
from .broker import BROKERS, Broker, Topic
from .group import Stored
from .source import BODY, CAPABILITIES, MemorySource


class MemoryTransport:
    """A connection to the broker of one name. Also Registry, Scheduling, Seekable, Lagged, Browsable, Provisioner."""

    capabilities = CAPABILITIES

    def __init__(self, name: str = "", capacity: int = 10_000) -> None:
        self._name, self._capacity = name, capacity
        self._clock: Clock | None = None
        self._broker: Broker | None = None
        self._sources: set[MemorySource] = set()

    def set_clock(self, clock: Clock) -> None:
        """Take all time from `clock`; whoever connects first to a name decides for it."""
        self._clock = clock

    async def connect(self, deadline: float) -> None:
        """Join the broker of this name, or make it. Raises ConfigurationError if another event loop has it."""
        if self._broker is None:
            self._broker = BROKERS.acquire(self._name, self._clock)

    async def send(self, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        """Give each message to every group of its topic; wait for room until `deadline`, then NotSent."""
        broker = self._open()
        topics, capacity, now = broker.topics, self._capacity, broker.clock.now()
        outcomes: list[TransportError | None] = []
        failed: set[tuple[str, bytes]] = set()
        for m in batch:
            topic = topics.get(m.topic)
            if m.body is None or len(m.body) > BODY or failed or (m.due is not None and m.due > now):
                error = self._unusual(broker, m, failed, now)
                if error is not None or (m.due is not None and m.due > now):
                    outcomes.append(error)
                    continue
            if topic is None:
                outcomes.append(None)
                continue
            readers = topic.readers
            if not m.private:
                for group in readers:
                    if topic.senders or len(group.ready) + group.parked >= capacity:
                        error = await self._room(topic, deadline)
                        if error is not None and m.key is not None:
                            failed.add((m.topic, m.key))
                        readers = topic.readers
                        break
                else:
                    error = None
                if error is not None:
                    outcomes.append(error)
                    continue
            if readers:
                stored = Stored(broker.position(), m, now)
                for group in readers:
                    group.ready.append(stored)
                    if group.idle:
                        group.wake()
            outcomes.append(None)
        return outcomes

    def _unusual(
        self, broker: Broker, m: Outgoing, failed: set[tuple[str, bytes]], now: float
    ) -> TransportError | None:
        error: TransportError | None = None
        if m.body is None:
            error = Refused(f"topic {m.topic!r}: memory:// has no tombstones; send a body")
        elif len(m.body) > BODY:
            error = Refused(f"topic {m.topic!r}: a body of {len(m.body)} bytes; memory:// takes up to {BODY}")
        elif m.key is not None and (m.topic, m.key) in failed:
            error = NotSent(f"topic {m.topic!r}: not stored, since an earlier message of its key in this batch was not")
        elif m.due is not None and m.due > now:
            broker.delay(m, m.due)
        if error is not None and m.key is not None:
            failed.add((m.topic, m.key))
        return error

    async def _room(self, topic: Topic, deadline: float) -> NotSent | None:
        """Wait in line until every group of the topic has room."""
        broker = self._open()
        broker.trim()
        first = True
        while (topic.senders and first) or any(group.full(self._capacity) for group in topic.readers):
            turn: asyncio.Future[None] = broker.loop.create_future()
            if first:
                topic.senders.append(turn)
            else:
                topic.senders.appendleft(turn)
            first = False
            timer = broker.clock.call_at(deadline, turn.cancel)
            try:
                await turn
            except asyncio.CancelledError:
                if broker.clock.monotonic() < deadline:
                    topic.senders.remove(turn)
                    raise
            finally:
                timer.cancel()
            topic.senders.remove(turn)
            if self._broker is None:
                return NotSent(f"topic {topic.name!r}: memory://{self._name} was closed while this waited for room")
            if turn.cancelled():
                full = next((g.name for g in topic.readers if g.full(self._capacity)), "")
                topic.let_in()
                return NotSent(
                    f"topic {topic.name!r}: group {full!r} has {self._capacity} messages waiting and made no room in "
                    "time; is it running? (option `capacity`, messages)"
                )
        broker.loop.call_soon(topic.let_in)  # the next in line looks for itself, after this one has stored
        return None

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
        for topic in broker.topics.values():
            for turn in topic.senders:
                if not turn.done():
                    turn.set_result(None)
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
        return self._open().agenda.run(limit)

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
