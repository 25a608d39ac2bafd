"""From publish to handler through Redis, at a fixed rate of 1,000 messages a second."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable

from switchgear import Bus, Topic

from .orders import Order, customer, decode, encode, order
from .redis_entries import connect, forget, only_stream, sample
from .schedule import FULL, Stopwatch
from .workload import OURS, Requirement, Sample, Setting, Workload

orders = Topic("orders", Order, key=customer, order="none")


async def raw(setting: Setting) -> Sample:
    """XADD for each message; XREADGROUP that blocks, handler, one XACK for what it returned."""
    redis, reader = connect(setting.url), connect(setting.url)
    writer = connect(setting.url, connections=10)
    namespace = f"bench-{secrets.token_hex(4)}."
    async with Bus(setting.url, namespace=namespace) as bus:
        await bus.publish(orders, order(1))
    entry, body = await sample(redis, await only_stream(redis, namespace))
    stream = f"{namespace}raw"
    await redis.xgroup_create(stream, "bench", id="0", mkstream=True)
    watch = Stopwatch(setting.messages(FULL))

    async def handle(order: Order) -> None:
        watch.arrived(order)

    async def consume() -> None:
        while True:
            for _, entries in await reader.xreadgroup("bench", "one", {stream: ">"}, count=500, block=1000):
                for _, fields in entries:
                    await handle(decode(fields[body]))
                await reader.xack(stream, "bench", *[id for id, _ in entries])

    def publish(order: Order) -> Awaitable[object]:
        added: Awaitable[object] = writer.xadd(stream, {**entry, body: encode(order)})
        return added

    consumer = asyncio.create_task(consume())
    figures = await watch.run(publish)
    consumer.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await consumer
    await writer.aclose()
    await forget(redis, namespace)
    await redis.aclose()
    await reader.aclose()
    return figures


async def switchgear(setting: Setting) -> Sample:
    """One bus that publishes and subscribes."""
    redis = connect(setting.url)
    namespace = f"bench-{secrets.token_hex(4)}."
    watch = Stopwatch(setting.messages(FULL))
    bus = Bus(setting.url, namespace=namespace)

    @bus.subscribe(orders, group="bench")
    async def handle(order: Order) -> None:
        watch.arrived(order)

    async with bus.serving():
        figures = await watch.run(lambda order: bus.publish(orders, order))
    await forget(redis, namespace)
    await redis.aclose()
    return figures


WORKLOAD = Workload(
    name="redis-latency",
    about="publish to handler through one stream at 1,000 msg/s",
    metric="p50",
    unit="ms",
    sides={"raw": raw, OURS: switchgear},
    requirements=[Requirement("p50", over="raw", at_most=1.3), Requirement("p99", over="raw", at_most=2.0)],
    broker="redis",
    rounds=9,
)
