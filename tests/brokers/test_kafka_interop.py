"""Others read what we write to Kafka, and we what they write: Java's client, the CloudEvents SDK, plain JSON."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

pytest.importorskip("aiokafka")
pytest.importorskip("cloudevents.core")

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from cloudevents.core.bindings import kafka as kafka_binding
from cloudevents.core.v1.event import CloudEvent

from switchgear import Bus, Message, Topic
from switchgear_conformance.harnesses.kafka_server import _jars as jars
from switchgear_kafka.transport import KafkaTransport
from tests.brokers.fixtures import Server
from tests.brokers.test_kafka_transport import make, opened

pytestmark = pytest.mark.kafka
PROGRAM = Path(__file__).parent / "java" / "Interop.java"


class Count(msgspec.Struct):
    n: int


async def java(*arguments: str) -> list[list[str]]:
    """The words that the Java program prints."""
    process = await asyncio.create_subprocess_exec(
        "java", "-Xmx64m", "-XX:TieredStopAtLevel=1", "-cp", f"{jars()}/*", str(PROGRAM), *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=os.environ,
    )  # fmt: skip
    out, said = await asyncio.wait_for(process.communicate(), 90)
    assert process.returncode == 0, said.decode()
    return [line.split() for line in out.decode().splitlines()]


def data(word: str) -> bytes | None:
    if word == "-":
        return None
    text = word.removesuffix(".")
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def address(server: Server) -> str:
    return server.url.removeprefix("kafka://").partition("?")[0]


def partition_of(message: Message[Any]) -> str:
    native = message.native
    return str(native.partition() if callable(native.partition) else native.partition)


async def stored(server: Server, topic: str, count: int, partitions: int = 1) -> list[ConsumerRecord]:
    """As another client reads it."""
    consumer = AIOKafkaConsumer(bootstrap_servers=address(server), auto_offset_reset="earliest")
    await consumer.start()
    try:
        consumer.assign([TopicPartition(topic, n) for n in range(partitions)])
        found: list[ConsumerRecord] = []
        async with asyncio.timeout(20):
            while len(found) < count:
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    found += records
    finally:
        await consumer.stop()
    return found


async def test_java_writes_and_we_read(kafka: Server, namespace: str) -> None:
    """Keys are in the partitions where we put them ourselves; what it writes without a value is a tombstone."""
    bus = Bus(kafka.url, name="test", namespace=namespace, config={})
    topic = Topic("counts", Count | None, key=lambda c: f"key-{c.n}" if c else "", partitions=7, envelope="none")
    seen: dict[str, tuple[Count | None, dict[str, str], str]] = {}
    done = asyncio.Event()

    @bus.subscribe(topic, group="g", start="earliest")
    async def handle(message: Message[Count | None]) -> None:
        seen.setdefault(message.key or "", (message.body, dict(message.headers), partition_of(message)))
        if len(seen) == 40:
            done.set()

    async with bus.serving():
        printed = await java("write", address(kafka), f"{namespace}counts", "40")
        await asyncio.wait_for(done.wait(), 30)
        await bus.publish_many(topic, [Count(n) for n in range(40)])
        transport = bus.transport
        assert isinstance(transport, KafkaTransport)
        places: dict[bytes | None, set[str]] = {}
        async for delivery, _ in transport.browse(f"{namespace}counts", "earliest", None):
            places.setdefault(delivery.key, set()).add(delivery.lane.rpartition("/")[2])
    assert dict(printed) == {key: partition for key, (_, _, partition) in seen.items()}  # type: ignore[arg-type]
    assert len({partition for _, partition in printed}) > 3
    assert {key: {partition} for key, partition in printed} == {(k or b"").decode(): at for k, at in places.items()}
    assert seen["key-7"][:2] == (Count(7), {"größe": "42", "empty": ""})
    assert seen["key-39"][0] is None


async def test_we_write_and_java_reads(kafka: Server, namespace: str) -> None:
    bus = Bus(f"{kafka.url}&compression=zstd", name="test", namespace=namespace, config={})
    topic = Topic("counts", Count, key=lambda count: f"key-{count.n}", partitions=7)
    async with bus:
        ids = await bus.publish_many(topic, [Count(n) for n in range(39)])
        ids.append(await bus.publish(topic, Count(39), headers={"size": "größer"}))
        ours = await java("read", address(kafka), f"{namespace}counts", "40")
    theirs = dict(await java("write", address(kafka), f"{namespace}counts", "40"))  # type: ignore[arg-type]
    assert len(ours) == 40
    for partition, key, body, *fields in ours:
        name = (data(key) or b"").decode()
        n = int(name.removeprefix("key-"))
        assert theirs[name] == partition
        assert data(body) == b'{"n":%d}' % n
        headers = {(data(k) or b"").decode(): data(v) for k, v in (field.split("=") for field in fields)}
        assert headers["ce_id"] == ids[n].encode()
        assert headers["ce_specversion"] == b"1.0"
        assert headers["content-type"] == b"application/json"
        assert headers.get("size") == ("größer".encode() if n == 39 else None)


async def test_the_cloudevents_sdk_reads_what_we_write(kafka: Server, namespace: str) -> None:
    bus = Bus(kafka.url, name="test", namespace=namespace, config={})
    topic = Topic("counts", Count, key=lambda count: "k", partitions=1, type="org.example.counted")
    async with bus:
        id_ = await bus.publish(topic, Count(7), expires=60)
    (record,) = await stored(kafka, f"{namespace}counts", 1)
    headers = {name: value or b"" for name, value in record.headers}
    message = kafka_binding.KafkaMessage(headers=headers, key=record.key, value=record.value or b"")
    event = kafka_binding.from_kafka(message, kafka_binding.JSONFormat())
    assert isinstance(event, CloudEvent)
    assert event.get_id() == id_
    assert event.get_type() == "org.example.counted"
    assert event.get_datacontenttype() == "application/json"
    assert event.get_data() == {"n": 7}
    assert abs((datetime.now(UTC) - event.get_time()).total_seconds()) < 30  # type: ignore[operator]
    assert event.get_extension("expirytime")
    again = kafka_binding.to_binary_event(event)
    assert {k: v for k, v in again.headers.items() if "time" not in k} == {
        k: v for k, v in headers.items() if "time" not in k
    }


@pytest.mark.parametrize("mode", ["binary", "structured"])
async def test_we_read_what_the_cloudevents_sdk_writes(kafka: Server, namespace: str, mode: str) -> None:
    bus = Bus(kafka.url, name="test", namespace=namespace, config={})
    seen: list[Message[Count]] = []
    arrived = asyncio.Event()

    @bus.subscribe(Topic("counts", Count, partitions=1, type="org.example.counted"), group="g", start="earliest")
    async def handle(message: Message[Count]) -> None:
        seen.append(message)
        arrived.set()

    attributes = {
        "id": "an id of theirs", "source": "/sensors/ü", "type": "org.example.counted", "specversion": "1.0",
        "time": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "datacontenttype": "application/json",
        "correlationid": "c-1", "partitionkey": "k-1",
    }  # fmt: skip
    convert = kafka_binding.to_binary_event if mode == "binary" else kafka_binding.to_structured_event
    written = convert(CloudEvent(attributes, {"n": 7}))
    async with bus.serving():
        producer = AIOKafkaProducer(bootstrap_servers=address(kafka))
        await producer.start()
        key = written.key.encode() if isinstance(written.key, str) else written.key
        await producer.send_and_wait(
            f"{namespace}counts", written.value, key=key, headers=list(written.headers.items())
        )
        await producer.stop()
        await asyncio.wait_for(arrived.wait(), 20)
    (message,) = seen
    assert message.body == Count(7)
    assert (message.id, message.source, message.type) == ("an id of theirs", "/sensors/ü", "org.example.counted")
    assert message.time == attributes["time"]
    assert message.correlation_id == "c-1"
    assert message.key == "k-1"


async def test_plain_json_both_ways(kafka: Server, namespace: str) -> None:
    bus = Bus(kafka.url, name="test", namespace=namespace, config={})
    plain = Topic("counts", Count, partitions=1, envelope="none")
    seen: list[tuple[int, str, datetime]] = []
    arrived = asyncio.Event()

    @bus.subscribe(plain, group="g", start="earliest")
    async def handle(message: Message[Count]) -> None:
        seen.append((message.body.n, message.id, message.time))
        if len(seen) == 2:
            arrived.set()

    async with bus.serving():
        await bus.publish(plain, Count(1))
        (record,) = await stored(kafka, f"{namespace}counts", 1)
        assert json.loads(record.value or b"") == {"n": 1}
        assert [name for name, _ in record.headers if name.startswith("ce_")] == []
        producer = AIOKafkaProducer(bootstrap_servers=address(kafka))
        await producer.start()
        await producer.send_and_wait(f"{namespace}counts", b'{"n": 2}', timestamp_ms=1_700_000_000_000)
        await producer.stop()
        await asyncio.wait_for(arrived.wait(), 20)
    assert [n for n, _, _ in seen] == [1, 2]
    assert seen[1][2] == datetime.fromtimestamp(1_700_000_000, UTC)
    assert seen[0][1] != seen[1][1]


async def test_a_topic_of_java_is_taken_as_it_is(kafka: Server, namespace: str) -> None:
    """Nobody declares its partitions again."""
    transport = await opened(kafka.url)
    await make(transport, f"{namespace}counts", 3)
    await transport.close()
    bus = Bus(kafka.url, name="test", namespace=namespace, config={})
    async with bus:
        for n in range(20):
            await bus.publish(Topic("counts", Count, key=lambda count: f"key-{count.n}"), Count(n))
    printed = dict(await java("write", address(kafka), f"{namespace}counts", "20"))  # type: ignore[arg-type]
    for record in await stored(kafka, f"{namespace}counts", 40, partitions=3):
        assert str(record.partition) == printed[(record.key or b"").decode()]
