"""A broadcast subscription: every source reads every partition from its own start on and keeps no position."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from aiokafka import TopicPartition as Native
from aiokafka import errors as kafka
from msgspec.structs import replace

from switchgear.driver import Capabilities, Delivery, Fence, Settlement, Subscription
from switchgear.errors import TransportError, Unavailable

from . import records
from .aiokafka_cluster import AiokafkaCluster
from .cluster import EARLIEST, TopicPartition, existing, lane
from .consumers import Reader
from .failures import CONNECT, failure
from .lanes import offset_of
from .positions import starts


class BroadcastSource:
    """One subscriber without a group."""

    def __init__(self, cluster: AiokafkaCluster, capabilities: Capabilities, subscription: Subscription) -> None:
        self.capabilities = replace(capabilities, note=0)
        self._cluster, self._subscription = cluster, subscription
        self._reader = Reader(cluster.wire, None)
        self._next: dict[TopicPartition, int] = {}
        """Where to go on."""
        self._topics: Collection[str] = ()

    async def join(self) -> None:
        """Return when all that is published from now on will be handed out. Raises TransportError."""
        await self.assign(self._subscription.topics)
        try:
            await self._reader.consumer.start()
        except CONNECT as error:
            raise failure(self._cluster.at, error) from error
        self._go()

    async def assign(self, topics: Mapping[str, Fence | None]) -> None:
        """Read these topics from now on."""
        tps = [tp for topic in topics for tp in await existing(self._cluster, topic)]
        begun = await starts(self._cluster, [tp for tp in tps if tp not in self._next], self._subscription.start)
        opened = bool(self._topics)
        self._topics = frozenset(topics)
        self._next = {tp: self._next.get(tp, begun.get(tp, 0)) for tp in tps}
        self._reader.consumer.assign([Native(*tp) for tp in tps])
        if opened:
            self._go()

    def _go(self) -> None:
        self._reader.seek(self._next)

    async def receive(self, limit: int, held: Collection[str] = ()) -> Sequence[Delivery]:
        """Take what is fetched, or wait about a second for something."""
        if self._reader.closed:
            return []
        self._grown()
        wanted = [tp for tp in self._next if lane(tp) not in held] if held else None
        try:
            batch = await self._reader.fetch(limit, wanted)
        except kafka.OffsetOutOfRangeError as error:  # retention was quicker, or the topic was made anew
            positions: Mapping[TopicPartition, int] = error.args[0]
            self._next.update(await self._cluster.offsets(dict.fromkeys(positions, EARLIEST)))
            self._go()
            return []
        except CONNECT as error:
            raise failure(self._cluster.at, error) from error
        if not batch and not await self._reader.alive():
            raise Unavailable(f"{self._cluster.at}: the broker does not answer")
        out: list[Delivery] = []
        for native, fetched in batch.items():
            tp = TopicPartition(*native)
            self._next[tp] = offset_of(fetched[-1]) + 1
            out += fetched
        return out

    def _grown(self) -> None:
        """Take in partitions that were added: all of what they hold is new."""
        consumer = self._reader.consumer
        added = {
            tp: 0
            for topic in self._topics
            for n in consumer.partitions_for_topic(topic) or ()
            if (tp := TopicPartition(topic, n)) not in self._next
        }
        if added:
            self._next.update(added)
            consumer.assign([Native(*tp) for tp in self._next])
            self._go()

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
