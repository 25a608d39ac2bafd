"""The same with `client=confluent`, against confluent-kafka itself: publishing, and reading a backlog in key order."""

from __future__ import annotations

import secrets
import time
from importlib import import_module
from typing import Any

from switchgear import Bus, Topic

from .clock import Span
from .kafka_consume import FULL, fill, namespace, ours
from .kafka_publish import FULL as PUBLISHED
from .kafka_topics import LINGER, committed, create, drop, sample, server, stored
from .orders import Order, customer, decode, encode
from .tasks import ORDERS, from_tasks
from .workload import OURS, Sample, Setting, Workload

CLIENT = "?client=confluent"
AT_ONCE = 500  # records of a raw read
orders = Topic("orders", Order, key=customer)


async def raw_publish(setting: Setting) -> Sample:
    """`produce` of each and `poll`, with the headers that Switchgear stores; then all reports."""
    n = setting.messages(PUBLISHED)
    space = f"bench-{secrets.token_hex(4)}."
    theirs, topic = f"{space}orders", f"{space}raw"
    await create(setting.url, theirs, topic)
    async with Bus(setting.url, namespace=space) as bus:
        await bus.publish(orders, ORDERS[0])
    headers = await sample(setting.url, theirs)
    producer = import_module("confluent_kafka").Producer({
        "bootstrap.servers": server(setting.url), "acks": "all", "enable.idempotence": True, "linger.ms": LINGER * 1000,
        "partitioner": "murmur2_random",
    })  # fmt: skip
    span = Span(n)

    def report(error: Any, _: Any) -> None:
        assert error is None, error
        span.see()

    for i in range(n):
        message = ORDERS[i % 1000]
        while True:
            try:
                producer.produce(
                    topic, encode(message), key=customer(message).encode(), headers=headers, on_delivery=report
                )
                break
            except BufferError:
                producer.poll(0.001)
        producer.poll(0)
    producer.flush(60)
    rate = span.rate()
    assert await stored(setting.url, topic) == n
    await drop(setting.url, theirs, topic)
    return {"rate": rate}


async def our_publish(setting: Setting) -> Sample:
    """200 tasks, each awaiting `bus.publish`, in key order."""
    n = setting.messages(PUBLISHED)
    space = f"bench-{secrets.token_hex(4)}."
    topic = f"{space}orders"
    await create(setting.url, topic)
    async with Bus(setting.url + CLIENT, namespace=space) as bus:
        await bus.publish(orders, ORDERS[0])  # connects
        rate = await from_tasks(n, lambda order: bus.publish(orders, order))
    assert await stored(setting.url, topic) == n + 1
    await drop(setting.url, topic)
    return {"rate": rate}


async def raw_consume(setting: Setting) -> Sample:
    """`consume(500)`, decode, await the handler; a commit every second."""
    n = setting.messages(FULL)
    topic, group = f"{namespace('key')}orders", f"raw-{secrets.token_hex(4)}"
    client = import_module("confluent_kafka")
    consumer = client.Consumer({
        "bootstrap.servers": server(setting.url), "group.id": group, "auto.offset.reset": "earliest",
        "enable.auto.commit": False, "enable.auto.offset.store": False,
    })  # fmt: skip
    consumer.subscribe([topic])
    span = Span(n)

    async def handle(order: Order) -> None:
        span.see()

    done: dict[int, int] = {}
    last = time.monotonic()

    def commit() -> None:
        at = [client.TopicPartition(topic, partition, offset + 1) for partition, offset in done.items()]
        consumer.commit(offsets=at, asynchronous=False)

    while span.seen < n:
        for record in consumer.consume(AT_ONCE, 1.0):
            await handle(decode(record.value()))
            done[record.partition()] = record.offset()
        if done and time.monotonic() - last >= 1:
            commit()
            last = time.monotonic()
    commit()
    consumer.close()
    rate = span.rate()
    assert await committed(setting.url, topic, group) == n
    return {"rate": rate}


PUBLISH = Workload(
    name="kafka-confluent-publish",
    about="publish to one topic from 200 tasks, stored by all replicas, client=confluent",
    metric="rate",
    unit="msg/s",
    sides={"raw": raw_publish, OURS: our_publish},
    broker="kafka",
)
CONSUME = Workload(
    name="kafka-confluent-consume",
    about="handle a backlog of four partitions, 1,000 keys in order, committed, client=confluent",
    metric="rate",
    unit="msg/s",
    sides={"commit-1s": raw_consume, OURS: ours("key", CLIENT)},
    broker="kafka",
    prepare=fill("key"),
)
