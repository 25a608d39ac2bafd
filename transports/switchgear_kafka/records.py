"""What a record says: content type and headers apart, as the CloudEvents binding for Kafka has them."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeAlias

from aiokafka import ConsumerRecord
from aiokafka import TopicPartition as Native
from aiokafka.consumer.fetcher import FetchResult

from switchgear.driver import Delivery, Headers

from .cluster import TopicPartition
from .headers import ACTED_ON, CONTENT_TYPE, KNOWN
from .lanes import offset_of


class Parsed(Protocol):
    """What the client's parsers make of a record; its `ConsumerRecord` says the same."""

    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def timestamp_type(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Sequence[tuple[str, bytes | None]]: ...


class KafkaDelivery(Delivery, gc=False):
    """A record as it is handed out. The client's own class is made of it for who asks for `native`: of that class, a
    thousand buffered messages make the garbage collector's full passes a third of what reading costs."""

    partition: int = 0
    timestamp: int = 0
    """Milliseconds since 1970."""
    timestamp_type: int = 0
    """0: of the record's creation; 1: of its append to the log."""
    written: tuple[tuple[str, bytes | None], ...] = ()
    """The record's headers."""

    @property  # type: ignore[misc]
    def native(self) -> ConsumerRecord:  # type: ignore[override]
        """The record as the client gives it to those who read with it alone."""
        key, value = self.key, self.body
        return ConsumerRecord(
            self.topic, self.partition, offset_of(self), self.timestamp, self.timestamp_type, key, value, None,
            -1 if key is None else len(key), -1 if value is None else len(value), self.written,
        )  # fmt: skip


Maker: TypeAlias = Callable[[Native, Parsed], KafkaDelivery]


def maker(tp: Native) -> Maker:
    """What makes deliveries of a partition's records; their tokens are (place, offset), their lane is the place."""
    topic, partition = tp
    place = f"{topic}/{partition}"
    acted_on, content_type, make = ACTED_ON, CONTENT_TYPE, KafkaDelivery

    def delivery(_: Native, record: Parsed) -> KafkaDelivery:
        media: bytes | None = None
        marked = False
        written = tuple(record.headers)
        for name, value in written:
            if name == content_type:
                media = value
            elif name in acted_on and value != KNOWN:
                marked = True
        return make(
            topic, record.value, media, record.key, place, (place, record.offset), None, math.inf, 0, None, marked,
            partition, record.timestamp, record.timestamp_type, written,
        )  # fmt: skip

    return delivery


class Fetched(OrderedDict[Native, Any]):
    """What the client has fetched and not handed out: of what its parser makes it hands out deliveries."""

    def __setitem__(self, tp: Native, result: Any) -> None:
        if isinstance(result, FetchResult):
            result._partition_records._consumer_record = maker(tp)
        super().__setitem__(tp, result)


def deliveries(tp: TopicPartition, records: Iterable[Parsed]) -> list[KafkaDelivery]:
    """The same for records that were read without a consumer."""
    native = Native(*tp)
    make = maker(native)
    return [make(native, record) for record in records]


def _ours(delivery: Delivery) -> KafkaDelivery:
    assert isinstance(delivery, KafkaDelivery)
    return delivery


def headers(delivery: Delivery) -> Headers:
    """As they were sent; a header without a value, which only others write, is empty."""
    return [(name, value or b"") for name, value in _ours(delivery).written if name != CONTENT_TYPE]


def position(delivery: Delivery) -> str:
    """Partition and offset, as `seek` takes them: "3:1207"."""
    return f"{_ours(delivery).partition}:{offset_of(delivery)}"


def time(delivery: Delivery) -> float:
    """The record's timestamp, unix seconds: when it was sent, or stored, as the topic is configured."""
    return _ours(delivery).timestamp / 1000
