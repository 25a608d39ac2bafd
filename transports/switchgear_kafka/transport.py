"""The driver of `kafka://`: connecting, sending, subscribing."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence

from switchgear.driver import (
    Capabilities,
    Delivery,
    Drift,
    Headers,
    NameRules,
    Order,
    Outgoing,
    Resource,
    Revoked,
    Row,
    Settlement,
    Settling,
    Source,
    Start,
    Subscription,
    TopicInfo,
)
from switchgear.emulate.partitions import murmur2
from switchgear.errors import NotFound, NotSent, Refused, TransportError, Unsupported

from . import admin, provisioning
from .cluster import Engine, Queues, Reader, Record, TopicPartition, Transacting
from .headers import written
from .probing import probe
from .registry import LogRegistry
from .topics import KEPT, REPLIES, create

CAPABILITIES = Capabilities(
    settling=Settling.CUMULATIVE,
    order=Order.TOTAL,
    send_order=True,
    batch=500,
    batch_bytes=8 << 20,
    names=NameRules(length=249),
    binding="ce_",
    tombstones=True,
    groups=True,
    broadcast=True,
    persistent=True,
    ack_durable=True,
    starts=frozenset({"new", "earliest", "time"}),
    fencing=True,
    note=4096,
    revoke_within=30.0,
)
HASHES = 100_000  # keys whose hash is remembered


class KafkaTransport:
    """A Kafka cluster. Also Registry, Seekable, Lagged, Browsable, Provisioner, Transactional, Advising."""

    def __init__(self, engine: Engine) -> None:
        self.capabilities = engine.adapted(CAPABILITIES)
        self.cluster = engine.cluster
        self._engine = engine
        self._registry = LogRegistry(engine.cluster, engine.producer)
        self._sources: set[Reader] = set()
        self._hashes: dict[bytes, int] = {}
        self._turn = 0

    async def connect(self, deadline: float) -> None:
        """Reach a broker, learn about the others, ask for their limits.

        Raises Unavailable, Refused (password, rights) or ConfigurationError (TLS, mechanism, a broker that is too old).
        """
        await self.cluster.connect(deadline)
        self.capabilities = await probe(self.cluster, self._engine.adapted(CAPABILITIES))

    # ---- sending --------------------------------------------------------------------------------------------------

    async def send(self, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        """Store the batch: a key's messages in the partition that every client of Kafka finds by it."""
        outcomes: list[TransportError | None] = [None] * len(batch)
        queues = await self.split(batch, outcomes)
        if queues:
            if linger := self.cluster.settings.tuning.linger:
                await asyncio.sleep(linger)
            for n, outcome in (await self._engine.producer.send(queues, deadline)).items():
                if isinstance(outcome, TransportError):
                    outcomes[n] = outcome
        return outcomes

    async def split(self, batch: Sequence[Outgoing], outcomes: list[TransportError | None]) -> Queues:
        """Each message to its partition; those that can't be stored get their outcome."""
        counts: dict[str, int | TransportError] = {}
        for m in batch:
            if m.topic not in counts:
                counts[m.topic] = await self._partitions(m)
        queues: Queues = {}
        places: dict[tuple[str, int], deque[Record]] = {}  # the same, by what is cheaper to make
        failed: set[tuple[str, bytes]] = set()
        limit, hashes = self.capabilities.body, self._hashes
        self._turn += 1
        for n, m in enumerate(batch):
            topic, key, body = m.topic, m.key, m.body
            count = counts[topic]
            if not isinstance(count, int):
                outcomes[n] = count
                continue
            if failed and key is not None and (topic, key) in failed:
                outcomes[n] = NotSent(f"{self._where(m)}: not stored, since an earlier message of its key was not")
                continue
            if (body is None or len(body) > limit or m.due is not None) and (
                unfit := self._unfit(m, limit)
            ) is not None:
                outcomes[n] = unfit
                if key is not None:
                    failed.add((topic, key))
                continue
            if key is None:
                hashed = self._turn
            elif (hashed := hashes.get(key, -1)) < 0:
                hashed = self._hash(key)
            place = (topic, hashed % count)
            queue = places.get(place)
            if queue is None:
                queue = places[place] = queues[TopicPartition(*place)] = deque()
            queue.append(Record(n, key, body, written(m)))
        return queues

    async def _partitions(self, m: Outgoing) -> int | TransportError:
        """How many partitions the message's topic has; a private topic is made at its first message."""
        if known := self.cluster.known(m.topic):
            return known
        try:
            tps = await self.cluster.partitions(m.topic)
            if not tps and m.private:
                await create(self.cluster, m.topic, config=KEPT)
                tps = await self.cluster.partitions(m.topic)
        except Refused as error:
            return error
        if not tps:
            return NotFound(f"{self._where(m)}: no such topic: run `switchgear provision`, or create it")
        return len(tps)

    def _unfit(self, m: Outgoing, limit: int) -> TransportError | None:
        if m.due is not None:
            return Refused(f"{self._where(m)}: Kafka keeps nothing until it is due")
        if m.body is None:
            return None if m.key is not None else Refused(f"{self._where(m)}: a tombstone takes a key")
        size = len(m.body)
        if size > limit:
            return Refused(f"{self._where(m)}: {size} bytes; the broker's message.max.bytes leaves room for {limit}")
        return None

    def _hash(self, key: bytes) -> int:
        if len(self._hashes) >= HASHES:
            self._hashes.clear()
        found = self._hashes[key] = murmur2(key)
        return found

    def _where(self, m: Outgoing) -> str:
        return f"{self.cluster.at}: {m.topic!r}"

    # ---- subscribing ----------------------------------------------------------------------------------------------

    async def subscribe(self, subscription: Subscription, revoked: Revoked) -> Reader:
        """Join, giving a new group its positions. Raises Unavailable, Refused, NotFound for a topic that is missing."""
        for topic in subscription.topics:
            tps = await self.cluster.partitions(topic)
            if not tps and subscription.private:
                await create(self.cluster, topic, config=REPLIES if subscription.group is None else KEPT)
            elif subscription.order is Order.TOTAL and len(tps) > 1:
                raise Refused(
                    f"{self.cluster.at}: total order takes a topic of one partition, and {topic!r} has {len(tps)}"
                )
        source = self._engine.reader(self.capabilities, subscription, revoked)
        self._sources = {one for one in self._sources if not one.closed}
        self._sources.add(source)
        try:
            await source.join()
        except BaseException:
            await source.close()
            raise
        return source

    async def close(self) -> None:
        """Leave every group and close every connection."""
        await asyncio.gather(*(source.close() for source in list(self._sources)))
        await self._engine.close()

    # ---- exactly once ---------------------------------------------------------------------------------------------

    async def commit(
        self, source: Source, settled: Sequence[Settlement], produced: Sequence[Outgoing], deadline: float
    ) -> None:
        """Transactional, where `capabilities.transactions`; else raises Unsupported, naming the client that can."""
        if not isinstance(source, Transacting):
            raise Unsupported(f"{self.cluster.at}: no transactions here; {self.advice('exactly_once')}")
        outcomes: list[TransportError | None] = [None] * len(produced)
        queues = await self.split(produced, outcomes)
        for outcome in outcomes:
            if outcome is not None:
                raise outcome
        await source.commit(settled, queues, deadline)

    def advice(self, need: str) -> str:
        """Advising: which client does more."""
        if need != "exactly_once" or self.capabilities.transactions:
            return ""
        return "add ?client=confluent to the URL (pip install 'switchgear[kafka-confluent]')"

    # ---- optional protocols: see `registry`, `admin`, `provisioning` ----------------------------------------------

    async def read(self, prefix: str) -> Mapping[str, Row]:
        """Registry: live rows by prefix."""
        return await self._registry.read(prefix)

    async def write(self, name: str, value: bytes | None, *, expect: int | None, ttl: float | None) -> int | None:
        """Registry: compare and set; no `ttl`."""
        return await self._registry.write(name, value, expect=expect, ttl=ttl)

    async def seek(self, topic: str, group: str, to: Start | str) -> None:
        """Seekable: a position is a partition and an offset in it, and moves that partition alone."""
        await admin.seek(self.cluster, topic, group, to)

    async def lag(self, topics: Sequence[str], group: str) -> Mapping[str, int]:
        """Lagged: by partition; a topic that the group does not read is left out."""
        return await admin.lag(self.cluster, topics, group)

    def browse(self, topic: str, start: Start, end: float | None) -> AsyncIterator[tuple[Delivery, Headers]]:
        """Browsable: what the topic holds, by time."""
        return admin.browse(self.cluster, topic, start, end)

    async def provision(self, wanted: Sequence[Resource], apply: bool) -> Sequence[Drift]:
        """Provisioner: topics with partitions, replication and retention, groups with their start."""
        return await provisioning.provision(self.cluster, wanted, apply)

    async def topics(self, prefix: str) -> Sequence[TopicInfo]:
        """Provisioner: the topics that are there."""
        return await provisioning.topics(self.cluster, prefix)
