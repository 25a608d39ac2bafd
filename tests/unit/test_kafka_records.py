"""A Kafka record becomes a delivery that costs the garbage collector nothing, and the client's own only on demand."""

from __future__ import annotations

import gc
from typing import Any

import pytest

pytest.importorskip("aiokafka")

from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.consumer.fetcher import FetchResult, PartitionRecords
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords

from switchgear_kafka import records
from switchgear_kafka.records import Fetched, KafkaDelivery

TP = TopicPartition("orders", 3)
HEADERS = [("ce_id", b"1"), ("content-type", b"application/json"), ("ce_expirytime", b"2030-01-01T00:00:00Z")]


def stored() -> PartitionRecords:
    """Two records as a broker returns them: one with headers, one of nothing but a value."""
    make: Any = DefaultRecordBatchBuilder
    builder = make(
        2, 0, is_transactional=0, producer_id=-1, producer_epoch=-1, base_sequence=-1, batch_size=1 << 16
    )  # fmt: skip
    builder.append(0, 1_700_000_000_123, b"ada", b"one", HEADERS)
    builder.append(1, 1_700_000_000_456, None, b"two", [])
    return PartitionRecords(TP, MemoryRecords(bytes(builder.build())), [], 0, None, None, True, 1)


def taken() -> list[KafkaDelivery]:
    """As the client hands them out, of what it has fetched."""
    make: Any = FetchResult
    fetched = Fetched()
    assignment: Any = None
    found = stored()
    fetched[TP] = make(TP, assignment=assignment, partition_records=found, backoff=0)
    return list(found)  # type: ignore[arg-type]  # `Fetched` has told it what to make


def test_what_the_client_fetched_is_handed_out_as_deliveries() -> None:
    one, two = taken()
    assert (one.topic, one.key, one.body, one.media) == ("orders", b"ada", b"one", b"application/json")
    assert (one.lane, one.token) == ("orders/3", ("orders/3", 0))
    assert one.marked, "it has an expiry time, on which the core acts"
    assert records.headers(one) == [h for h in HEADERS if h[0] != "content-type"]
    assert (records.position(one), records.time(one)) == ("3:0", 1_700_000_000.123)
    assert (two.key, two.body, two.media, two.marked, two.token) == (None, b"two", None, False, ("orders/3", 1))


def test_the_native_record_is_what_the_client_alone_would_give() -> None:
    assert [delivery.native for delivery in taken()] == list(stored())
    assert all(type(delivery.native) is ConsumerRecord for delivery in taken())


def test_a_buffered_record_is_nothing_for_the_garbage_collector() -> None:
    deliveries = taken()
    gc.collect()  # which leaves alone what holds nothing but plain values,
    gc.collect()  # and what holds nothing but that
    assert [d for d in deliveries if gc.is_tracked(d)] == []
    assert [d for d in deliveries if gc.is_tracked(d.token) or gc.is_tracked(d.written)] == []


def test_records_that_were_read_without_a_consumer_are_the_same() -> None:
    again = records.deliveries(TP, stored())
    assert [(d.token, d.body, d.marked, d.native) for d in again] == [
        (d.token, d.body, d.marked, d.native) for d in taken()
    ]
