"""Publishing to a Redis stream: plain awaits from 200 tasks against a pipeline written by hand."""

from __future__ import annotations

import secrets
from typing import Any

from switchgear import Bus, Topic

from .clock import Span
from .faststreams import redis_broker
from .orders import Order, customer, encode, order
from .redis_entries import connect, forget, only_stream, sample
from .tasks import TASKS, from_tasks
from .workload import OURS, Requirement, Sample, Setting, Workload

FULL = 60_000
PIPELINE = 500
ORDERS = [order(n) for n in range(1000)]
orders = Topic("orders", Order, key=customer, order="none")


async def raw(setting: Setting) -> Sample:
    """XADD in pipelines of 500: the fields that Switchgear stores, the body encoded for each."""
    n = setting.messages(FULL)
    redis = connect(setting.url)
    namespace = f"bench-{secrets.token_hex(4)}."
    async with Bus(setting.url, namespace=namespace) as bus:
        await bus.publish(orders, ORDERS[0])
    entry, body = await sample(redis, await only_stream(redis, namespace))
    stream = f"{namespace}raw"
    await redis.ping()
    span = Span(n)
    for _ in range(0, n, PIPELINE):
        pipeline = redis.pipeline(transaction=False)
        for i in range(PIPELINE):
            pipeline.xadd(stream, {**entry, body: encode(ORDERS[i])})
        for _ in await pipeline.execute():
            span.see()
    rate = span.rate()
    await check_and_forget(redis, namespace, stream, n)
    return {"rate": rate}


async def switchgear(setting: Setting) -> Sample:
    """200 tasks, each awaiting `bus.publish`."""
    n = setting.messages(FULL)
    redis = connect(setting.url)
    namespace = f"bench-{secrets.token_hex(4)}."
    async with Bus(setting.url, namespace=namespace) as bus:
        await bus.publish(orders, ORDERS[0])  # connects, and writes the topic's plan
        rate = await from_tasks(n, lambda order: bus.publish(orders, order))
    await check_and_forget(redis, namespace, await only_stream(redis, namespace), n + 1)
    return {"rate": rate}


async def faststream(setting: Setting) -> Sample:
    """200 tasks, each awaiting FastStream's publish."""
    n = setting.messages(6000)
    redis = connect(setting.url)
    namespace = f"bench-{secrets.token_hex(4)}."
    stream = f"{namespace}faststream"
    broker = redis_broker(setting.url, connections=TASKS)
    await broker.connect()
    rate = await from_tasks(n, lambda order: broker.publish(encode(order), stream=stream))
    await broker.stop()
    await check_and_forget(redis, namespace, stream, n)
    return {"rate": rate}


async def check_and_forget(redis: Any, namespace: str, stream: str, n: int) -> None:
    assert await redis.xlen(stream) == n
    await forget(redis, namespace)
    await redis.aclose()


WORKLOAD = Workload(
    name="redis-publish",
    about="publish to one stream from 200 tasks, stored",
    metric="rate",
    unit="msg/s",
    sides={"raw": raw, OURS: switchgear, "faststream": faststream},
    requirements=[Requirement("rate", over="raw", at_least=0.9)],
    broker="redis",
)
