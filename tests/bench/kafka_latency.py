"""From publish to handler through Kafka, at a fixed rate of 1,000 messages a second."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Awaitable
from typing import Any

from switchgear import Bus, Topic

from .kafka_topics import create, drop, reader, sample, writer
from .orders import Order, customer, decode, encode, order
from .schedule import FULL, Stopwatch
from .workload import OURS, Requirement, Sample, Setting, Workload

orders = Topic("orders", Order, key=customer)


async def raw(setting: Setting) -> Sample:
    """`send_and_wait` without linger for each message; `getmany`, handler, a commit every second."""
    namespace = f"bench-{secrets.token_hex(4)}."
    ours, topic = f"{namespace}orders", f"{namespace}raw"
    await create(setting.url, ours, topic)
    async with Bus(setting.url, namespace=namespace) as bus:
        await bus.publish(orders, order(1))
    headers = await sample(setting.url, ours)
    producer, consumer = writer(setting.url, 0.0), reader(setting.url, topic, group=topic)
    await producer.start()
    await consumer.start()
    while len(consumer.assignment()) < 4:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    watch = Stopwatch(setting.messages(FULL))

    async def handle(order: Order) -> None:
        watch.arrived(order)

    async def consume() -> None:
        done: dict[Any, int] = {}
        last = time.monotonic()
        while True:
            for tp, records in (await consumer.getmany(timeout_ms=1000, max_records=500)).items():
                for record in records:
                    await handle(decode(record.value))
                done[tp] = records[-1].offset + 1
            if done and time.monotonic() - last >= 1:
                await consumer.commit(done)
                last = time.monotonic()

    def publish(order: Order) -> Awaitable[object]:
        sent: Awaitable[object] = producer.send_and_wait(
            topic, encode(order), key=customer(order).encode(), headers=headers
        )
        return sent

    consuming = asyncio.create_task(consume())
    figures = await watch.run(publish)
    consuming.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await consuming
    await producer.stop()
    await consumer.stop()
    await drop(setting.url, ours, topic)
    return figures


async def switchgear(setting: Setting) -> Sample:
    """One bus that publishes and subscribes, in key order."""
    namespace = f"bench-{secrets.token_hex(4)}."
    await create(setting.url, f"{namespace}orders")
    watch = Stopwatch(setting.messages(FULL))
    bus = Bus(setting.url, namespace=namespace)

    @bus.subscribe(orders, group="bench")
    async def handle(order: Order) -> None:
        watch.arrived(order)

    async with bus.serving():
        figures = await watch.run(lambda order: bus.publish(orders, order))
    await drop(setting.url, f"{namespace}orders")
    return figures


WORKLOAD = Workload(
    name="kafka-latency",
    about="publish to handler through one topic at 1,000 msg/s, no linger",
    metric="p50",
    unit="ms",
    sides={"raw": raw, OURS: switchgear},
    requirements=[Requirement("p50", over="raw", at_most=1.3), Requirement("p99", over="raw", at_most=2.0)],
    broker="kafka",
    rounds=9,
)
