"""A subscription of a group: lanes are partitions as assigned, what is taken away is settled first."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Final

import msgspec
from aiokafka import TopicPartition
from aiokafka import errors as kafka
from aiokafka.abc import ConsumerRebalanceListener

from switchgear.driver import Capabilities, Delivery, Fence, Headers, Revoked, Settlement, Subscription
from switchgear.errors import Lost, MaybeSent, TransportError, Unavailable

from . import records
from .consumers import Reader
from .failures import CONNECT, failure
from .positions import found, known, resume
from .purging import Purge
from .wire import EARLIEST, LATEST, Committed, Member, Wire

JOIN = 60.0  # seconds to be given partitions, beside what the group's other members take for theirs
ENDING = 1.0  # seconds that a client may take to connect whose source is not wanted any more

_GONE: Final = (kafka.UnknownMemberIdError, kafka.IllegalGenerationError, kafka.RebalanceInProgressError)
"""The group has gone on without us."""


class Lane(msgspec.Struct):
    """A partition for as long as it is assigned."""

    name: str
    tp: TopicPartition
    place: str
    member: Member
    note: str


class GroupSource(ConsumerRebalanceListener):
    """One member of a consumer group. Also Trimming."""

    def __init__(
        self, wire: Wire, capabilities: Capabilities, subscription: Subscription, revoked: Revoked,
        left: Callable[[GroupSource], None],
    ) -> None:  # fmt: skip
        assert subscription.group is not None
        self.capabilities = replace(capabilities, revoke_within=wire.settings.tuning.rebalance)
        self._wire, self._subscription, self._revoked, self._left = wire, subscription, revoked, left
        self._group = subscription.group
        self._reader = Reader(wire, self._group, subscription.lease)
        self._consumer = self._reader.consumer
        self._lanes: dict[str, Lane] = {}
        self._current: dict[TopicPartition, Lane] = {}
        self._known: set[str] = set()
        self._trimmed: dict[str, int] = {}
        self._steady = asyncio.Event()
        """Set while no rebalance is under way."""
        self._failure: Exception | None = None
        """Why this source can't go on."""
        self._epoch = 0
        """How often partitions were assigned."""
        self._committing = asyncio.Lock()
        self._purge = Purge(wire, subscription.own)

    # ---- joining --------------------------------------------------------------------------------------------------

    async def join(self) -> None:
        """Return when partitions are assigned and the positions of all are committed. Raises TransportError."""
        wire, topics = self._wire, list(self._subscription.topics)
        tps = [tp for topic in topics for tp in await wire.existing(topic)]
        await found(wire, self._group, tps, self._subscription.start)
        self._known.update(await known(wire, self._group, tps))
        consumer = self._consumer
        consumer.subscribe(topics, listener=self)
        starting = asyncio.ensure_future(consumer.start())
        steady = asyncio.ensure_future(self._steady.wait())
        loop = asyncio.get_running_loop()
        until = loop.time() + JOIN + wire.settings.tuning.rebalance + self._subscription.lease
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
        return f"{self._wire.at}: group {self._group!r}"

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:  # noqa: ARG002
        """A rebalance begins: all that is ours is settled, and given up. Called by the client."""
        self._steady.clear()
        if not self._lanes:
            return
        names = list(self._lanes)
        lost = self._member() != next(iter(self._lanes.values())).member
        if lost:
            self._forget()
        try:
            await self._revoked(names, lost)
        except Exception as error:  # noqa: BLE001  (the client would only log it)
            self._fail(error)
        finally:
            self._forget()

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """A rebalance ends: partitions are ours, and it is known where to go on. Called by the client."""
        try:
            member = self._member()
            self._epoch += 1
            begun = await resume(
                self._wire, self._group, member, sorted(assigned), self._subscription.start, self._known
            )  # fmt: skip
            self._known.update(tp.topic for tp in assigned)
            for tp, committed in begun.items():
                self._open(tp, member, committed)
            self._steady.set()
        except _GONE:
            pass  # the next rebalance is under way
        except Exception as error:  # noqa: BLE001  (the client would only log it)
            self._fail(error)

    def _open(self, tp: TopicPartition, member: Member, committed: Committed) -> None:
        place = records.place_of(tp)
        lane = Lane(f"{place}#{self._epoch}", tp, place, member, committed.note)
        self._lanes[lane.name] = self._current[tp] = lane
        self._reader.seek(tp, committed.offset)

    def _forget(self) -> None:
        self._lanes.clear()
        self._current.clear()

    def _fail(self, error: Exception) -> None:
        """What happened inside the client's call is told by the next `receive`."""
        if isinstance(error, Unavailable | MaybeSent | kafka.KafkaError):
            error = Lost(f"{self._at}: the rebalance failed: {error}")
        self._failure = error
        self._steady.set()

    def _member(self) -> Member:
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
        wanted = [lane.tp for lane in self._lanes.values() if lane.name not in held] if held else None
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
            lane = self._current.get(tp)
            if lane is not None:
                name = lane.name
                for delivery in fetched:
                    delivery.lane = name
                out += fetched
        return out

    async def _out_of_range(self, error: kafka.OffsetOutOfRangeError) -> None:
        """Retention took what the group had not read, or the topic is another one: go on with the oldest there is."""
        positions: Mapping[TopicPartition, int] = error.args[0]
        first = await self._wire.offsets(dict.fromkeys(positions, EARLIEST))
        last = await self._wire.offsets(dict.fromkeys(positions, LATEST))
        for tp, position in positions.items():
            lane = self._current.get(tp)
            if lane is None:
                continue
            if position <= last[tp]:
                taken = max(0, first[tp] - position)
                self._trimmed[tp.topic] = self._trimmed.get(tp.topic, 0) + taken
                self._reader.seek(tp, max(first[tp], position))
                continue
            await self._wire.commit(self._group, lane.member, {tp: Committed(first[tp], lane.note)})
            raise Lost(
                f"{self._at}: {tp.topic!r}, partition {tp.partition} ends at {last[tp]}, before our position "
                f"{position}: the topic was made anew or lost its end; going on with its oldest message"
            )

    @property
    def trimmed(self) -> Mapping[str, int]:
        """By topic, how many offsets retention took before the group had read them."""
        return dict(self._trimmed)

    async def _alive(self) -> None:
        if not await self._reader.alive():
            raise Unavailable(f"{self._at}: the broker does not answer")

    # ---- settling -------------------------------------------------------------------------------------------------

    async def settle(self, batch: Sequence[Settlement]) -> Sequence[TransportError | None]:
        """Commit watermarks in the name under which their partitions were assigned; Lost for any other partition."""
        outcomes: list[TransportError | None] = [None] * len(batch)
        async with self._committing:
            offsets: dict[TopicPartition, Committed] = {}
            members: set[Member] = set()
            for n, settlement in enumerate(batch):
                lane = self._lanes.get(settlement.delivery.lane)
                if lane is None:
                    outcomes[n] = Lost(f"{self._at}: {settlement.delivery.lane} is no longer assigned to us")
                    continue
                members.add(lane.member)
                before = offsets.get(lane.tp)
                offset = records.offset_of(settlement.delivery) + 1
                if before is None or offset >= before.offset:
                    offsets[lane.tp] = Committed(offset, settlement.note)
            if not offsets:
                return outcomes
            refused = await self._commit(members.pop(), offsets)
            for n, settlement in enumerate(batch):
                lane = self._lanes.get(settlement.delivery.lane)
                if outcomes[n] is not None:
                    continue
                error = refused.get(lane.tp) if lane is not None else kafka.IllegalGenerationError
                if error is None:
                    assert lane is not None
                    lane.note = offsets[lane.tp].note
                    self._purge.settled(lane.tp, offsets[lane.tp].offset)
                elif issubclass(error, _GONE):
                    outcomes[n] = Lost(f"{self._at}: {settlement.delivery.lane} was taken from us")
                else:
                    outcomes[n] = self._refusal(settlement, error)
        return outcomes

    def _refusal(self, settlement: Settlement, error: type[kafka.KafkaError]) -> TransportError:
        found = failure(f"{self._at}: {settlement.delivery.lane}", error())
        return found if isinstance(found, TransportError) else MaybeSent(str(found))

    async def _commit(
        self, member: Member, offsets: Mapping[TopicPartition, Committed]
    ) -> dict[TopicPartition, type[kafka.KafkaError]]:
        refused = dict(await self._wire.commit(self._group, member, offsets))
        long = [tp for tp, error in refused.items() if issubclass(error, kafka.OffsetMetadataTooLargeError)]
        if long:  # the note is of less worth than the position: what is finished ahead is then handled again
            for tp in long:
                del refused[tp]
            refused.update(await self._wire.commit(
                self._group, member, {tp: Committed(offsets[tp].offset, "") for tp in long}
            ))  # fmt: skip
        return refused

    async def assign(self, topics: Mapping[str, Fence | None]) -> None:
        """Read these topics from now on; the group rebalances."""
        wanted = set(topics)
        if wanted == set(self._consumer.subscription()):
            return
        tps = [tp for topic in topics for tp in await self._wire.existing(topic)]
        self._known.update(await known(self._wire, self._group, tps))
        self._steady.clear()
        self._consumer.subscribe(list(wanted), listener=self)

    def note(self, lane: str) -> str:
        """What was committed with the lane's position."""
        found = self._lanes.get(lane)
        return found.note if found is not None else ""

    def headers(self, delivery: Delivery) -> Headers:
        """As they were sent, without the content type."""
        return records.headers(delivery)

    def position(self, delivery: Delivery) -> str:
        """Partition and offset: "3:1207"."""
        return records.position(delivery)

    def time(self, delivery: Delivery) -> float:
        """The record's timestamp, unix seconds."""
        return records.time(delivery)

    # ---- leaving --------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Leave the group; a pending `receive` returns."""
        self._forget()
        self._left(self)
        await self._reader.stop()
