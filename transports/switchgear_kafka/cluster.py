"""What every client of Kafka is asked for: the seam between what is Kafka and what is one of its clients.

All that is the same whichever client talks to the brokers (partitioning, positions, the registry, lag, seek, browsing,
provisioning) is written once against `Cluster`; an engine implements it, and is imported only when it is chosen.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import msgspec

from switchgear.driver import Capabilities, Delivery, Headers, Revoked, Settlement, Source, Subscription
from switchgear.errors import NotFound, SwitchgearError, TransportError

from .tuning import Settings

LATEST, EARLIEST = -1, -2  # in the place of a time, as ListOffsets has them
STALE = 3.0  # seconds without an answer after which the brokers are asked whether they are there
JOIN = 60.0  # seconds to be given partitions, beside what the group's other members take for theirs
FETCH_BYTES = 16 << 20  # of one answer, over all partitions
FENCED = "currently fenced"  # what a controller says of brokers that have not come up yet


class TopicPartition(NamedTuple):
    """One partition of a topic."""

    topic: str
    partition: int


class Committed(NamedTuple):
    """A group's position in a partition."""

    offset: int
    """Of the next message to handle."""
    note: str


class Configured(NamedTuple):
    """One configured value."""

    value: str | None
    own: bool
    """Set for this very topic, not a default."""


class Record(msgspec.Struct, gc=False):
    """One record for a partition."""

    place: int
    """Its index in the caller's batch."""
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]


Queues: TypeAlias = dict[TopicPartition, deque[Record]]
"""What is to be stored, by partition, in order."""
Refusals: TypeAlias = Mapping[TopicPartition, SwitchgearError]
"""Partitions where it was refused, and why; of a position `Lost` where the group has members, or has gone on."""


class OutOfRange(Exception):
    """A partition holds no record at, or after, the offset that was asked for, nor does it end there."""


class Cluster(Protocol):
    """A client of the cluster, for all but a subscription's reading.

    Every call ends within the settings' `timeout` where it has no deadline, and raises errors of ours alone:
    Unavailable, Refused, ConfigurationError.
    """

    @property
    def settings(self) -> Settings: ...

    @property
    def at(self) -> str:
        """Where it is, for messages of errors."""
        ...

    @property
    def patience(self) -> float:
        """Seconds to wait for an answer."""
        ...

    def soon(self) -> float:
        """The deadline of a call that has none of its own."""
        ...

    async def connect(self, deadline: float) -> None:
        """Reach a broker and learn about the others; idempotent."""
        ...

    async def close(self) -> None: ...

    async def partitions(self, topic: str, *, fresh: bool = False) -> list[TopicPartition]:
        """The topic's partitions in order; none where there is no such topic. Asking creates none.

        What is known already may be told without asking, unless `fresh`.
        """
        ...

    def known(self, topic: str) -> int:
        """How many partitions the topic has, as far as is known without asking; else 0. Raises Unavailable."""
        ...

    async def led(self, topic: str) -> bool:
        """Whether all of the topic's partitions have a leader that knows of it."""
        ...

    async def replicas(self, topic: str) -> int:
        """How many replicas a topic that is there has."""
        ...

    async def names(self) -> list[str]:
        """The topics that there are, but for the brokers' own."""
        ...

    async def offsets(self, times: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
        """The offset of the first record at or after a time (unix milliseconds), or LATEST, or EARLIEST.

        Where no record is that late it is the end.
        """
        ...

    async def committed(self, group: str, tps: Iterable[TopicPartition]) -> dict[TopicPartition, Committed]:
        """What the group has committed; partitions without a commit are left out."""
        ...

    async def place(self, group: str, offsets: Mapping[TopicPartition, int]) -> Refusals:
        """Commit from outside, which the broker takes only while the group has no member."""
        ...

    async def members(self, group: str) -> list[str]:
        """Clients and hosts of the group's members; none of a group that is stopped, or that is not there."""
        ...

    async def groups(self) -> list[str]:
        """The groups that there are."""
        ...

    async def create(self, topic: str, partitions: int, replicas: int, config: Mapping[str, str]) -> bool:
        """Have a topic made; False if it is there already."""
        ...

    async def grow(self, topic: str, partitions: int) -> None:
        """Have partitions added to a topic, up to so many."""
        ...

    async def broker_config(self, names: Iterable[str]) -> Mapping[str, Configured]:
        """Settings of a broker; empty where this user may not see them."""
        ...

    async def topic_config(self, topic: str) -> Mapping[str, Configured]:
        """All settings of a topic."""
        ...

    async def configure(self, topic: str, wanted: Mapping[str, str]) -> None:
        """Ask for some settings of a topic; all others stay as they are."""
        ...

    async def delete(self, offsets: Mapping[TopicPartition, int]) -> Refusals:
        """Have all records before these offsets deleted; where that was refused, and why."""
        ...

    async def read(self, tp: TopicPartition, offset: int) -> tuple[Sequence[Delivery], int]:
        """The records from an offset on, as many as fit an answer, and the offset to go on with.

        The offset stays where there is nothing more. Nothing of transactions that are open or were aborted is read. A
        delivery's token is (topic/partition, offset). Raises OutOfRange.
        """
        ...

    def headers(self, delivery: Delivery) -> Headers:
        """The headers of what `read` returned."""
        ...

    def time(self, delivery: Delivery) -> float:
        """The timestamp of what `read` returned, unix seconds."""
        ...


class Producer(Protocol):
    """The storing half of an engine."""

    async def send(self, queues: Queues, deadline: float) -> dict[int, int | TransportError]:
        """Store what is queued for each partition, in order; by place the offset, or what happened instead."""
        ...


class Engine(Protocol):
    """One client of Kafka."""

    @property
    def cluster(self) -> Cluster: ...

    @property
    def producer(self) -> Producer: ...

    def adapted(self, capabilities: Capabilities) -> Capabilities:
        """The grades of Kafka as this client has them."""
        ...

    def reader(self, capabilities: Capabilities, subscription: Subscription, revoked: Revoked) -> Reader:
        """A source that has yet to join."""
        ...

    async def close(self) -> None:
        """Close every connection; the sources are closed already."""
        ...


class Reader(Source, Protocol):
    """A source of an engine."""

    @property
    def closed(self) -> bool: ...

    async def join(self) -> None:
        """Return when everything published from then on will be delivered. Raises TransportError."""
        ...


@runtime_checkable
class Transacting(Protocol):
    """A source of an engine that has transactions."""

    async def commit(self, settled: Sequence[Settlement], queues: Queues, deadline: float) -> None:
        """Store what is queued and carry out what is settled, both or neither, as `Transactional.commit` says."""
        ...


async def existing(cluster: Cluster, topic: str) -> list[TopicPartition]:
    """The partitions of a topic that has to be there. Raises NotFound."""
    found = await cluster.partitions(topic)
    if not found:
        raise NotFound(f"{cluster.at} has no topic {topic!r}: run `switchgear provision`, or create it")
    return found


def lane(tp: TopicPartition) -> str:
    """How a partition is called: "orders/3"."""
    return f"{tp.topic}/{tp.partition}"
