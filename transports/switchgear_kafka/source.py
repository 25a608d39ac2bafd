"""A subscription of a group: lanes are partitions as assigned, what is taken away is settled first."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence

from aiokafka import TopicPartition as Native
from aiokafka import errors as kafka
from aiokafka.abc import ConsumerRebalanceListener
from msgspec.structs import replace

from switchgear.driver import Capabilities, Delivery, Fence, Revoked, Settlement, Subscription
from switchgear.errors import Lost, MaybeSent, TransportError, Unavailable

from . import records
from .aiokafka_cluster import GONE, AiokafkaCluster
from .cluster import EARLIEST, JOIN, LATEST, Committed, TopicPartition, existing, lane
from .consumers import Reader
from .failures import CONNECT, failure
from .heartbeats import Heartbeats
from .lanes import Lanes
from .membership import Tenure, tenable
from .positions import found, known, resume
from .purging import Purge
from .wire import NOBODY, Member

ENDING = 1.0  # seconds that a client may take to connect whose source is not wanted any more


class GroupSource(ConsumerRebalanceListener):
    """One member of a consumer group. Also Trimming and Membership."""

    def __init__(
        self, cluster: AiokafkaCluster, capabilities: Capabilities, subscription: Subscription, revoked: Revoked
    ) -> None:
        assert subscription.group is not None
        self.capabilities = replace(capabilities, revoke_within=cluster.settings.tuning.rebalance)
        self._cluster, self._wire = cluster, cluster.wire
        self._subscription, self._revoked = subscription, revoked
        self._group = subscription.group
        self._reader = Reader(cluster.wire, self._group, subscription.lease)
        self._consumer = self._reader.consumer
        self._tenure = Tenure(tenable(subscription.lease, cluster.settings.tuning.rebalance))
        self._heartbeats = Heartbeats(self._consumer, self._tenure)
        self._lanes = Lanes(self._at)
        self._member = NOBODY
        """In whose name the lanes were assigned."""
        self._known: set[str] = set()
        self._trimmed: dict[str, int] = {}
        self._steady = asyncio.Event()
        """Set while no rebalance is under way."""
        self._failure: Exception | None = None
        """Why this source can't go on."""
        self._purge = Purge(cluster, subscription.own)

    # ---- joining --------------------------------------------------------------------------------------------------

    async def join(self) -> None:
        """Return when partitions are assigned and the positions of all are committed. Raises TransportError."""
        cluster, topics = self._cluster, list(self._subscription.topics)
        tps = [tp for topic in topics for tp in await existing(cluster, topic)]
        await found(cluster, self._group, tps, self._subscription.start)
        self._known.update(await known(cluster, self._group, tps))
        consumer = self._consumer
        consumer.subscribe(topics, listener=self)
        starting = asyncio.ensure_future(consumer.start())
        steady = asyncio.ensure_future(self._steady.wait())
        loop = asyncio.get_running_loop()
        until = loop.time() + JOIN + cluster.settings.tuning.rebalance + self._subscription.lease
        try:
            while not (starting.done() and steady.done()):
                pending = [task for task in (starting, steady) if not task.done()]
                await asyncio.wait(pending, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
                if starting.done():
                    starting.result()
                if self._failure is not None:
                    raise self._failure
                if loop.time() > until:
                    raise Unavailable(f"{self._at}: the group gave us no partitions; do its members hang?")
                if not starting.done() and not await self._reader.alive():
                    raise Unavailable(f"{self._at}: the broker does not answer")
        except CONNECT as error:
            raise failure(self._at, error) from error
        finally:
            steady.cancel()
            if not starting.done():  # a client that is cancelled while it connects leaves the connection open
                await asyncio.wait([starting], timeout=ENDING)
                starting.cancel()
            await asyncio.wait([starting, steady])

    @property
    def _at(self) -> str:
        return f"{self._cluster.at}: group {self._group!r}"

    async def on_partitions_revoked(self, revoked: Collection[Native]) -> None:  # noqa: ARG002
        """A rebalance begins: all that is ours is settled, and given up. Called by the client."""
        self._steady.clear()
        names = list(self._lanes.by_name)
        if not names:
            return
        lost = self._now() != self._member
        if lost:
            self._lanes.forget()
        try:
            await self._revoked(names, lost)
        except Exception as error:  # noqa: BLE001  (the client would only log it)
            self._fail(error)
        finally:
            self._lanes.forget()

    async def on_partitions_assigned(self, assigned: Collection[Native]) -> None:
        """A rebalance ends: partitions are ours, and it is known where to go on. Called by the client."""
        member = self._now()

        async def commit(offsets: Mapping[TopicPartition, Committed]) -> None:
            for error in (await self._wire.commit(self._group, member, offsets)).values():
                raise error(self._group)

        try:
            tps = [TopicPartition(*tp) for tp in sorted(assigned)]
            begun = await resume(self._cluster, self._group, tps, self._subscription.start, self._known, commit)
            self._known.update(tp.topic for tp in tps)
            self._member = member
            self._lanes.open(begun)
            self._reader.seek({tp: committed.offset for tp, committed in begun.items()})
            await self._heartbeats.begin(self._cluster.patience)
            self._steady.set()
        except GONE:
            pass  # the next rebalance is under way
        except Exception as error:  # noqa: BLE001  (the client would only log it)
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        """What happened inside the client's call is told by the next `receive`."""
        if isinstance(error, Unavailable | MaybeSent | kafka.KafkaError):
            error = Lost(f"{self._at}: the rebalance failed: {error}")
        self._failure = error
        self._steady.set()

    def _now(self) -> Member:
        coordinator = self._consumer._coordinator
        return Member(coordinator.generation, coordinator.member_id)

    # ---- reading --------------------------------------------------------------------------------------------------

    async def receive(self, limit: int, held: Collection[str] = ()) -> Sequence[Delivery]:
        """Take what is fetched, or wait about a second for something."""
        if self._failure is not None:
            raise self._failure
        if self._reader.closed:
            return []
        if not self._steady.is_set() and not await self._reader.wait(self._steady):
            await self._alive()
            return []
        wanted = [one.tp for one in self._lanes.current.values() if one.name not in held] if held else None
        try:
            batch = await self._reader.fetch(limit, wanted)
        except kafka.OffsetOutOfRangeError as error:
            await self._out_of_range(error)
            return []
        except CONNECT as error:
            raise failure(self._at, error) from error
        if not batch:
            await self._alive()
        await self._purge.run()
        out: list[Delivery] = []
        for tp, fetched in batch.items():
            ours = self._lanes.current.get(TopicPartition(*tp))
            if ours is not None:
                name = ours.name
                for delivery in fetched:
                    delivery.lane = name
                out += fetched
        return out

    async def _out_of_range(self, error: kafka.OffsetOutOfRangeError) -> None:
        """Retention took what the group had not read, or the topic is another one: go on with the oldest there is."""
        positions: Mapping[TopicPartition, int] = error.args[0]
        first = await self._cluster.offsets(dict.fromkeys(positions, EARLIEST))
        last = await self._cluster.offsets(dict.fromkeys(positions, LATEST))
        for tp, position in positions.items():
            ours = self._lanes.current.get(tp)
            if ours is None:
                continue
            if position <= last[tp]:
                taken = max(0, first[tp] - position)
                self._trimmed[tp.topic] = self._trimmed.get(tp.topic, 0) + taken
                self._reader.seek({tp: max(first[tp], position)})
                continue
            await self._wire.commit(self._group, self._member, {tp: Committed(first[tp], ours.note)})
            raise Lost(
                f"{self._at}: {tp.topic!r}, partition {tp.partition} ends at {last[tp]}, before our position "
                f"{position}: the topic was made anew or lost its end; going on with its oldest message"
            )

    @property
    def trimmed(self) -> Mapping[str, int]:
        """By topic, how many offsets retention took before the group had read them."""
        return dict(self._trimmed)

    @property
    def valid_until(self) -> float:
        """So long after the last heartbeat that was answered, nobody else can have our partitions."""
        return self._tenure.until

    async def _alive(self) -> None:
        if not await self._reader.alive():
            raise Unavailable(f"{self._at}: the broker does not answer")

    # ---- settling -------------------------------------------------------------------------------------------------

    async def settle(self, batch: Sequence[Settlement]) -> Sequence[TransportError | None]:
        """Commit watermarks in the name under which their partitions were assigned; Lost for any other partition."""
        return await self._lanes.settle(batch, self._commit)

    async def _commit(self, offsets: Mapping[TopicPartition, Committed]) -> Mapping[TopicPartition, TransportError]:
        member = self._member
        refused = dict(await self._wire.commit(self._group, member, offsets))
        long = [tp for tp, error in refused.items() if issubclass(error, kafka.OffsetMetadataTooLargeError)]
        if long:  # the note is of less worth than the position: what is finished ahead is then handled again
            for tp in long:
                del refused[tp]
            refused.update(await self._wire.commit(
                self._group, member, {tp: Committed(offsets[tp].offset, "") for tp in long}
            ))  # fmt: skip
        self._purge.committed({tp: one.offset for tp, one in offsets.items() if tp not in refused})
        return {tp: self._refusal(tp, error) for tp, error in refused.items()}

    def _refusal(self, tp: TopicPartition, error: type[kafka.KafkaError]) -> TransportError:
        if issubclass(error, GONE):
            return Lost(f"{self._at}: {lane(tp)} was taken from us")
        found = failure(f"{self._at}: {lane(tp)}", error())
        return found if isinstance(found, TransportError) else MaybeSent(str(found))

    async def assign(self, topics: Mapping[str, Fence | None]) -> None:
        """Read these topics from now on; the group rebalances."""
        wanted = set(topics)
        if wanted == set(self._consumer.subscription()):
            return
        tps = [tp for topic in topics for tp in await existing(self._cluster, topic)]
        self._known.update(await known(self._cluster, self._group, tps))
        self._steady.clear()
        self._consumer.subscribe(list(wanted), listener=self)

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
        await self._reader.stop()
