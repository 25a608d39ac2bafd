"""A subscription of a group: lanes are partitions as assigned, what is taken away is settled first."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping, Sequence
from functools import partial

from confluent_kafka import Consumer, KafkaError, KafkaException
from confluent_kafka import TopicPartition as Native
from msgspec.structs import replace

from switchgear.driver import Capabilities, Delivery, Fence, Revoked, Settlement, Subscription
from switchgear.errors import Lost, MaybeSent, TransportError, Unavailable
from switchgear_kafka.cluster import EARLIEST, JOIN, LATEST, Committed, Queues, TopicPartition, existing
from switchgear_kafka.lanes import Lanes
from switchgear_kafka.positions import found, known, resume
from switchgear_kafka.purging import Purge

from . import records
from .cluster import ConfluentCluster
from .committing import Commits
from .consuming import heartbeat
from .failures import GONE, error_of, failure
from .reading import OutOfRangeAt, Reader
from .transacting import Transactions

MARGIN = 5.0  # seconds that a callback waits for the loop, beside what handlers may take


class GroupSource:
    """One member of a consumer group. Also Trimming and Membership."""

    def __init__(
        self, cluster: ConfluentCluster, capabilities: Capabilities, subscription: Subscription, revoked: Revoked
    ) -> None:
        assert subscription.group is not None
        self.capabilities = replace(capabilities, revoke_within=cluster.settings.tuning.rebalance)
        self._cluster, self._subscription, self._revoked = cluster, subscription, revoked
        self._group = subscription.group
        self._at = f"{cluster.at}: group {self._group!r}"
        self._reader = Reader(cluster, self._group, subscription.lease)
        self._beat = heartbeat(subscription.lease)
        self._stepwise = cluster.settings.tuning.group_protocol == "consumer"
        """Partitions are given and taken one by one (KIP-848), not all at once."""
        self._lanes = Lanes(self._at)
        self._commits = Commits(self._reader, self._at, cluster.patience)
        name = f"{self._group}.{subscription.consumer}"  # nobody else ever has it
        self._transactions = Transactions(cluster, name, subscription.lease)
        self._member: tuple[int, object] = -1, None
        self._topics = frozenset(subscription.topics)
        self._known: set[str] = set()
        self._trimmed: dict[str, int] = {}
        self._steady = asyncio.Event()
        self._failure: Exception | None = None
        self._purge = Purge(cluster, subscription.own)

    # ---- joining --------------------------------------------------------------------------------------------------

    async def join(self) -> None:
        """Return when partitions are assigned and the positions of all are committed. Raises TransportError."""
        if self._subscription.transacts:
            self._transactions.prepare()
        tps = [tp for topic in self._topics for tp in await existing(self._cluster, topic)]
        await found(self._cluster, self._group, tps, self._subscription.start)
        self._known.update(await known(self._cluster, self._group, tps))
        await self._reader.open()
        self._subscribe()
        loop = asyncio.get_running_loop()
        until = loop.time() + JOIN + self._cluster.settings.tuning.rebalance + self._subscription.lease
        while not self._steady.is_set():
            await self._read(0, None)
            if self._failure is not None:
                raise self._failure
            if loop.time() > until:
                raise Unavailable(f"{self._at}: the group gave us no partitions; do its members hang?")
            await self._alive()
            await asyncio.sleep(0.02)
        if self._failure is not None:
            raise self._failure

    def _subscribe(self) -> None:
        self._reader.consumer.subscribe(
            list(self._topics), on_assign=self._assigned, on_revoke=self._taken, on_lost=self._lost
        )

    # The client calls these from the thread that reads, inside a read or a close.

    def _assigned(self, consumer: Consumer, natives: list[Native]) -> None:
        tps = sorted(TopicPartition(one.topic, one.partition) for one in natives)
        self._reader.tenure.proven(self._reader.since)  # the group gave them to us later
        self._reader.changed(tps)
        begun: Mapping[TopicPartition, Committed] = {}
        try:
            begun = self._reader.on_loop(self._resume(tps), 2 * self._cluster.patience + MARGIN)
        except Exception as error:  # noqa: BLE001  (the client would lose it)
            self._fail(error)
        self._reader.next.update({tp: committed.offset for tp, committed in begun.items()})
        placed = [Native(*tp, committed.offset) for tp, committed in begun.items()]
        if self._stepwise:
            consumer.incremental_assign(placed)
        else:
            consumer.assign(placed)
        self._reader.awaken(list(begun))
        self._reader.tell(partial(self._begin, begun))

    async def _resume(self, tps: Sequence[TopicPartition]) -> Mapping[TopicPartition, Committed]:
        async def commit(offsets: Mapping[TopicPartition, Committed]) -> None:
            for error in (await self._commits.commit(offsets)).values():
                raise error

        begun = await resume(self._cluster, self._group, tps, self._subscription.start, self._known, commit)
        self._known.update(tp.topic for tp in tps)
        return begun

    def _begin(self, begun: Mapping[TopicPartition, Committed]) -> None:
        self._lanes.open(begun)
        self._steady.set()

    def _taken(self, consumer: Consumer, natives: list[Native]) -> None:
        self._give(consumer, natives, lost=False)

    def _lost(self, consumer: Consumer, natives: list[Native]) -> None:
        self._give(consumer, natives, lost=True)

    def _give(self, consumer: Consumer, natives: list[Native], lost: bool) -> None:
        tps = [TopicPartition(one.topic, one.partition) for one in natives]
        if not self._reader.closed:
            self._reader.interrupted(lost)
            try:
                self._reader.on_loop(self._give_up(tps, lost), self.capabilities.revoke_within + MARGIN)
            except Exception as error:  # noqa: BLE001  (the client would lose it)
                self._fail(error)
        self._reader.changed(tps)
        for tp in tps:
            self._reader.next.pop(tp, None)
        if self._stepwise:
            consumer.incremental_unassign(natives)
        else:
            consumer.unassign()

    async def _give_up(self, tps: Sequence[TopicPartition], lost: bool) -> None:
        """All that is taken is settled, and given up."""
        if not self._stepwise:
            self._steady.clear()
        names = [one.name for tp in tps if (one := self._lanes.current.get(tp)) is not None]
        try:
            if lost:
                self._lanes.drop(tps)
            if names:
                await self._revoked(names, lost)
        finally:
            async with self._lanes.lock:  # what is being committed is ours until it is
                self._lanes.drop(tps)

    def _fail(self, error: Exception) -> None:
        """What happened inside the client's call is told by the next `receive`."""
        if not isinstance(error, TransportError) or isinstance(error, Unavailable | MaybeSent):
            error = Lost(f"{self._at}: the rebalance failed: {error}")
        self._failure = error

    # ---- reading --------------------------------------------------------------------------------------------------

    async def receive(self, limit: int, held: Collection[str] = ()) -> Sequence[Delivery]:
        """Take what is fetched, or wait about a second for something."""
        if self._failure is not None:
            raise self._failure
        if self._reader.closed:
            return []
        if self._reader.tenure.over and self._lanes:
            await self._prove()
        wanted = [one.tp for one in self._lanes.by_name.values() if one.name not in held] if held else None
        out = await self._read(limit, wanted)
        if not out:
            await self._alive()
        await self._purge.run()
        return out

    async def _prove(self) -> None:
        """Nothing was read for as long as a session may last: the process stood still, or was kept from reading.

        A heartbeat goes first. Where the group has gone on without us, the client hears it and the read tells; and a
        session that was about to end is not taken for one that has begun. Then the group takes a commit in our name, or
        does not; one of ours whose outcome is not known yet must not be undone by it.
        """
        await asyncio.sleep(self._beat)
        await self._read(0, None)
        since = time.monotonic()
        if await self._transactions.decided() and await self._lanes.confirm(self._commits.commit):
            self._reader.tenure.proven(since)

    @property
    def valid_until(self) -> float:
        """So long after the process was last seen to run, and its client with it to send heartbeats."""
        return self._reader.tenure.until

    async def _read(self, limit: int, wanted: Collection[TopicPartition] | None) -> list[Delivery]:
        try:
            messages = await self._reader.fetch(limit, wanted, list(self._lanes.current))
        except OutOfRangeAt as error:
            await self._out_of_range(error.tp)
            return []
        except KafkaException as error:
            raise self._fatal(error) from error
        out: list[Delivery] = []
        for topic, partition, some in records.runs(messages):
            ours = self._lanes.current.get(TopicPartition(topic, partition))
            if ours is not None:
                out += records.deliveries(ours.name, ours.place, some)
        return out

    def _fatal(self, error: KafkaException) -> Exception:
        """Why we can't go on: rights, or the group has gone on without us."""
        code = error_of(error).code()
        if code in GONE or code == KafkaError._MAX_POLL_EXCEEDED:
            return Lost(f"{self._at}: {error_of(error).str()}")
        return failure(self._at, error)

    async def _out_of_range(self, tp: TopicPartition) -> None:
        """Retention took what the group had not read, or the topic is another one: go on with the oldest there is."""
        ours = self._lanes.current.get(tp)
        if ours is None:
            return
        position = self._reader.next[tp]
        first = (await self._cluster.offsets({tp: EARLIEST}))[tp]
        last = (await self._cluster.offsets({tp: LATEST}))[tp]
        if position > last:
            await self._commits.commit({tp: Committed(first, ours.note)})
            raise Lost(
                f"{self._at}: {tp.topic!r}, partition {tp.partition} ends at {last}, before our position {position}: "
                "the topic was made anew or lost its end; going on with its oldest message"
            )
        self._trimmed[tp.topic] = self._trimmed.get(tp.topic, 0) + max(0, first - position)
        await self._reader.go_on(tp, max(first, position), stepwise=self._stepwise)

    @property
    def trimmed(self) -> Mapping[str, int]:
        """By topic, how many offsets retention took before the group had read them."""
        return dict(self._trimmed)

    async def _alive(self) -> None:
        if not await self._reader.alive():
            raise Unavailable(f"{self._at}: the broker does not answer")

    # ---- settling -------------------------------------------------------------------------------------------------

    async def settle(self, batch: Sequence[Settlement]) -> Sequence[TransportError | None]:
        """Commit watermarks; Lost for partitions that are not ours."""
        return await self._lanes.settle(batch, self._commit)

    async def _commit(self, offsets: Mapping[TopicPartition, Committed]) -> Mapping[TopicPartition, TransportError]:
        refused = await self._commits.commit(offsets)
        self._purge.committed({tp: one.offset for tp, one in offsets.items() if tp not in refused})
        return refused

    async def commit(self, settled: Sequence[Settlement], queues: Queues, deadline: float) -> None:
        """Store what is queued and commit watermarks in one transaction. Raises as `Transactional.commit` does."""
        async with self._lanes.together(settled) as offsets:
            await self._transactions.commit(queues, offsets, await self._membership(), deadline)
        self._purge.committed({tp: one.offset for tp, one in offsets.items()})

    async def _membership(self) -> object:
        """As which member of the group we commit. The client may take a second to tell: it is asked once for each
        assignment, where nothing but an assignment changes it."""
        epoch, known = self._member
        if known is None or self._stepwise or epoch != self._reader.epoch:
            epoch = self._reader.epoch
            known = await self._reader.between(self._reader.consumer.consumer_group_metadata)
            self._member = epoch, known
        return known

    async def assign(self, topics: Mapping[str, Fence | None]) -> None:
        """Read these topics from now on; the group rebalances."""
        if frozenset(topics) == self._topics:
            return
        tps = [tp for topic in topics for tp in await existing(self._cluster, topic)]
        self._known.update(await known(self._cluster, self._group, tps))
        self._topics = frozenset(topics)
        await self._reader.reading(self._subscribe)

    def note(self, lane: str) -> str:
        """What was committed with the lane's position."""
        return self._lanes.note(lane)

    headers = staticmethod(records.headers)
    position = staticmethod(records.position)
    time = staticmethod(records.time)

    # ---- leaving --------------------------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._reader.closed

    async def close(self) -> None:
        """Leave the group; a pending `receive` returns."""
        self._lanes.forget()
        await self._transactions.close()
        await self._reader.stop()
