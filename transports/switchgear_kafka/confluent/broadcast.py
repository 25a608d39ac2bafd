"""A broadcast subscription: every source reads every partition from its own start on and keeps no position."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from confluent_kafka import KafkaException
from confluent_kafka import TopicPartition as Native
from msgspec.structs import replace

from switchgear.driver import Capabilities, Delivery, Fence, Settlement, Subscription
from switchgear.errors import TransportError, Unavailable
from switchgear_kafka.cluster import EARLIEST, TopicPartition, existing, lane
from switchgear_kafka.positions import starts

from . import records
from .cluster import ConfluentCluster
from .failures import failure
from .reading import OutOfRangeAt, Reader

GROW = 50  # empty reads after which it is asked for partitions that were added


class BroadcastSource:
    """One subscriber without a group."""

    def __init__(self, cluster: ConfluentCluster, capabilities: Capabilities, subscription: Subscription) -> None:
        self.capabilities = replace(capabilities, note=0)
        self._cluster, self._subscription = cluster, subscription
        self._reader = Reader(cluster, subscription.consumer, alone=True)  # a name that nothing is ever committed under
        self._next: dict[TopicPartition, int] = {}
        """Where to go on."""
        self._topics: Collection[str] = ()
        self._empty = 0

    async def join(self) -> None:
        """Return when all that is published from now on will be handed out. Raises TransportError."""
        await self._reader.open()
        await self.assign(self._subscription.topics)

    async def assign(self, topics: Mapping[str, Fence | None]) -> None:
        """Read these topics from now on."""
        tps = [tp for topic in topics for tp in await existing(self._cluster, topic)]
        begun = await starts(self._cluster, [tp for tp in tps if tp not in self._next], self._subscription.start)
        self._topics = frozenset(topics)
        self._next = {tp: self._next.get(tp, begun.get(tp, 0)) for tp in tps}
        await self._go()

    async def _go(self) -> None:
        natives = [Native(*tp, offset) for tp, offset in self._next.items()]

        def assign() -> None:
            self._reader.changed(self._next)
            self._reader.consumer.assign(natives)

        await self._reader.reading(assign)

    async def receive(self, limit: int, held: Collection[str] = ()) -> Sequence[Delivery]:
        """Take what is fetched, or wait about a second for something."""
        if self._reader.closed:
            return []
        wanted = [tp for tp in self._next if lane(tp) not in held] if held else None
        try:
            messages = await self._reader.fetch(limit, wanted, list(self._next))
        except OutOfRangeAt as error:  # retention was quicker, or the topic was made anew
            self._next.update(await self._cluster.offsets({error.tp: EARLIEST}))
            await self._go()
            return []
        except KafkaException as error:
            raise failure(self._cluster.at, error) from error
        if not messages:
            if not await self._reader.alive():
                raise Unavailable(f"{self._cluster.at}: the broker does not answer")
            await self._grown()
        out: list[Delivery] = []
        for topic, partition, some in records.runs(messages):
            tp = TopicPartition(topic, partition)
            self._next[tp] = (some[-1].offset() or 0) + 1
            out += records.deliveries(lane(tp), lane(tp), some)
        return out

    async def _grown(self) -> None:
        """Now and then take in partitions that were added: all of what they hold is new."""
        self._empty += 1
        if self._empty % GROW:
            return
        added = {
            tp: 0
            for topic in self._topics
            for tp in await self._cluster.partitions(topic, fresh=True)
            if tp not in self._next
        }
        if added:
            self._next.update(added)
            await self._go()

    async def settle(self, batch: Sequence[Settlement]) -> Sequence[TransportError | None]:
        """Nothing is kept."""
        return [None] * len(batch)

    def note(self, lane: str) -> str:  # noqa: ARG002
        """Nothing is kept."""
        return ""

    headers = staticmethod(records.headers)
    position = staticmethod(records.position)
    time = staticmethod(records.time)

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._reader.closed

    async def close(self) -> None:
        """Stop reading; a pending `receive` returns."""
        await self._reader.stop()
