"""From publish to handler through Redis, at a fixed rate of 1,000 messages a second."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import secrets
import time
from collections.abc import Awaitable, Callable

from switchgear import Bus, Topic

from .clock import percentiles
from .orders import Order, customer, decode, encode, order
from .redis_entries import connect, forget, only_stream, sample
from .workload import OURS, Requirement, Sample, Setting, Workload

RATE = 1000
FULL = 4000
WARM_UP = 200
orders = Topic("orders", Order, key=customer, order="none")


class Stopwatch:
    """Publishes on schedule, whatever the earlier publishes are doing, and notes when each arrives."""

    def __init__(self, n: int) -> None:
        self._sent = [0.0] * (n + WARM_UP)
        self._late: list[float] = []
        self._all = asyncio.Event()

    def arrived(self, order: Order) -> None:
        self._late.append((time.perf_counter() - self._sent[int(order.id[2:])]) * 1000)
        if len(self._late) == len(self._sent):
            self._all.set()

    async def run(self, publish: Callable[[Order], Awaitable[object]]) -> Sample:
        """Percentiles in milliseconds, without the warm-up. Fails where the rate was not kept."""
        messages = [order(i) for i in range(len(self._sent))]
        pending: set[asyncio.Future[object]] = set()

        def sent(task: asyncio.Future[object]) -> None:
            if task.exception() is None:  # a failure stays, to be raised
                pending.discard(task)

        gc.collect()
        began = time.perf_counter()
        for i, message in enumerate(messages):
            early = began + i / RATE - time.perf_counter()
            if early > 0:
                await asyncio.sleep(early)
            self._sent[i] = time.perf_counter()
            task = asyncio.ensure_future(publish(message))
            pending.add(task)
            task.add_done_callback(sent)
        took = time.perf_counter() - began
        await asyncio.gather(*pending)
        await asyncio.wait_for(self._all.wait(), 30)
        rate = len(messages) / took
        assert rate > 0.97 * RATE, f"{rate:.0f} messages a second were sent, not {RATE}"
        return percentiles(self._late[WARM_UP:])


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
