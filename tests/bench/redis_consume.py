"""Reading a backlog from a Redis stream, acknowledged."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

from switchgear import Bus, Topic

from .clock import Span
from .faststreams import redis_broker
from .orders import Order, customer, decode, encode, order
from .redis_entries import connect, forget, only_stream, sample
from .workload import OURS, Requirement, Sample, Setting, Workload

NAMESPACE = "bench-consume."
FULL = 100_000
orders = Topic("orders", Order, key=customer, order="none", retention=86_400)


async def fill(setting: Setting) -> Sample:
    """The backlog that both sides read, each with a group of its own."""
    n = setting.messages(FULL)
    redis = connect(setting.url)
    await forget(redis, NAMESPACE)
    async with Bus(setting.url, namespace=NAMESPACE) as bus:
        for start in range(0, n, 1000):
            await bus.publish_many(orders, [order(start + i) for i in range(1000)])
    assert await redis.xlen(await only_stream(redis, NAMESPACE)) == n
    await redis.aclose()
    return {}


async def raw(setting: Setting) -> Sample:
    """XREADGROUP 500, decode, await the handler, one XACK."""
    n = setting.messages(FULL)
    redis = connect(setting.url)
    stream = await only_stream(redis, NAMESPACE)
    _, body = await sample(redis, stream)
    group = f"raw-{secrets.token_hex(4)}"
    await redis.xgroup_create(stream, group, id="0")
    span = Span(n)

    async def handle(order: Order) -> None:
        span.see()

    while span.seen < n:
        for _, entries in await redis.xreadgroup(group, "one", {stream: ">"}, count=500, block=1000):
            done: list[bytes] = []
            for id, entry in entries:
                await handle(decode(entry[body]))
                done.append(id)
            await redis.xack(stream, group, *done)
    rate = span.rate()
    await redis.xgroup_destroy(stream, group)
    await redis.aclose()
    return {"rate": rate}


async def switchgear(setting: Setting) -> Sample:
    """A subscription from the earliest message on, until the broker has nothing pending."""
    n = setting.messages(FULL)
    redis = connect(setting.url)
    stream = await only_stream(redis, NAMESPACE)
    span = Span(n)
    bus = Bus(setting.url, namespace=NAMESPACE)
    before = await groups(redis, stream)

    @bus.subscribe(orders, group=f"ours-{secrets.token_hex(4)}", start="earliest")
    async def handle(order: Order) -> None:
        span.see()

    async with bus.serving():
        (group,) = await groups(redis, stream) - before
        await span.all_seen.wait()
        while (await redis.xpending(stream, group))["pending"]:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        rate = span.rate()
    assert span.seen == n
    await redis.xgroup_destroy(stream, group)
    await redis.aclose()
    return {"rate": rate}


async def groups(redis: Any, stream: str) -> set[str]:
    return {info["name"].decode() for info in await redis.xinfo_groups(stream)}


async def faststream(setting: Setting) -> Sample:
    """FastStream's defaults on a stream that it wrote itself; its handler takes a dict, which costs it least."""
    from faststream.redis import StreamSub

    n = setting.messages(3000)
    redis = connect(setting.url)
    stream = f"faststream-{secrets.token_hex(4)}"
    span = Span(n)
    broker = redis_broker(setting.url)

    async def handle(order: dict[str, Any]) -> None:
        span.see()

    broker.subscriber(stream=StreamSub(stream, group="bench", consumer="one"))(handle)

    await redis.xgroup_create(stream, "bench", id="0", mkstream=True)
    await broker.connect()
    for i in range(n):
        await broker.publish(encode(order(i)), stream=stream)
    await broker.start()
    await span.all_seen.wait()
    rate = span.rate()
    await broker.stop()
    await redis.unlink(stream)
    await redis.aclose()
    return {"rate": rate}


WORKLOAD = Workload(
    name="redis-consume",
    about="handle a backlog from one stream, acknowledged",
    metric="rate",
    unit="msg/s",
    sides={"raw": raw, OURS: switchgear, "faststream": faststream},
    requirements=[Requirement("rate", over="raw", at_least=0.95), Requirement("rate", over="faststream", at_least=40)],
    broker="redis",
    prepare=fill,
)
