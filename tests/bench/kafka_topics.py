"""Topics of the Kafka workloads, and what Switchgear stores in them, found by looking."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from importlib import import_module
from typing import Any, TypeAlias
from urllib.parse import urlsplit

PARTITIONS = 4
UNKNOWN = 3  # the broker's error code for a topic that is not there
LINGER = 0.005  # seconds, of the raw producer at full speed: without it, its batches are small
BATCH = 256 << 10  # bytes: the raw producer's batches; its default of 16 KiB is slower

Headers: TypeAlias = list[tuple[str, bytes]]


def server(url: str) -> str:
    """ "host:port" of a URL."""
    return urlsplit(url).netloc


async def _admin(url: str) -> Any:
    """A connected client."""
    admin = import_module("aiokafka.admin").AIOKafkaAdminClient(bootstrap_servers=server(url))
    await admin.start()
    return admin


async def create(url: str, *topics: str) -> None:
    """Make them and wait until they are led."""
    admin = await _admin(url)
    try:
        await admin.create_topics([import_module("aiokafka.admin").NewTopic(topic, PARTITIONS, 1) for topic in topics])
        for _ in range(100):
            found = await admin.describe_topics(list(topics))
            partitions = [p for topic in found for p in topic["partitions"]]
            if len(partitions) == PARTITIONS * len(topics) and all(p["leader"] >= 0 for p in partitions):
                return
            await asyncio.sleep(0.05)
    finally:
        await admin.close()
    raise AssertionError(f"{topics} have no leaders")


async def create_anew(url: str, topic: str) -> None:
    """Make one, empty also on a server that has it from an earlier run."""
    admin = await _admin(url)
    try:
        await admin.delete_topics([topic])
        for _ in range(200):
            (found,) = await admin.describe_topics([topic])
            if found["error_code"] == UNKNOWN:
                break
            await asyncio.sleep(0.05)
    finally:
        await admin.close()
    await create(url, topic)


async def drop(url: str, *topics: str) -> None:
    admin = await _admin(url)
    try:
        await admin.delete_topics(list(topics))
    finally:
        await admin.close()


async def stored(url: str, topic: str) -> int:
    """How many records it holds."""
    consumer: Any = reader(url)
    await consumer.start()
    try:
        return sum((await consumer.end_offsets(partitions(topic))).values())
    finally:
        await consumer.stop()


async def sample(url: str, topic: str) -> Headers:
    """The headers of a stored record."""
    consumer: Any = reader(url)
    await consumer.start()
    try:
        consumer.assign(partitions(topic))
        await consumer.seek_to_beginning()
        headers: Headers = list((await consumer.getone()).headers)
        return headers
    finally:
        await consumer.stop()


async def committed(url: str, topic: str, group: str) -> int:
    """The sum of the group's positions."""
    admin = await _admin(url)
    try:
        offsets = await admin.list_consumer_group_offsets(group)
        return sum(found.offset for tp, found in offsets.items() if tp.topic == topic)
    finally:
        await admin.close()


def reader(url: str, *topics: str, group: str | None = None) -> Any:
    """A consumer that commits when it is told to."""
    from aiokafka import AIOKafkaConsumer

    make: Any = AIOKafkaConsumer
    return make(
        *topics, bootstrap_servers=server(url), group_id=group, auto_offset_reset="earliest", enable_auto_commit=False
    )  # fmt: skip


def writer(url: str, linger: float) -> Any:
    """A producer as safe as ours: all replicas confirm, and what is sent again is stored once."""
    import aiokafka

    client: Any = aiokafka  # the stubs in `typings` leave this class out
    make = client.AIOKafkaProducer
    return make(
        bootstrap_servers=server(url), acks="all", enable_idempotence=True, linger_ms=round(linger * 1000),
        max_batch_size=BATCH,
    )  # fmt: skip


def partitions(topic: str) -> Collection[Any]:
    from aiokafka import TopicPartition

    return [TopicPartition(topic, n) for n in range(PARTITIONS)]
