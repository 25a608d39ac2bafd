"""Publishing to a Kafka topic: plain awaits from 200 tasks against the client's own `send`."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable
from typing import Any

from switchgear import Bus, Topic

from .clock import Span
from .kafka_topics import LINGER, create, drop, sample, stored, writer
from .orders import Order, customer, encode
from .tasks import ORDERS, from_tasks
from .workload import OURS, Requirement, Sample, Setting, Workload

FULL = 60_000
orders = Topic("orders", Order, key=customer)


async def raw(setting: Setting) -> Sample:
    """`send()` of each, with the headers that Switchgear stores, then all of their futures."""
    n = setting.messages(FULL)
    namespace = f"bench-{secrets.token_hex(4)}."
    ours, topic = f"{namespace}orders", f"{namespace}raw"
    await create(setting.url, ours, topic)
    async with Bus(setting.url, namespace=namespace) as bus:
        await bus.publish(orders, ORDERS[0])
    headers = await sample(setting.url, ours)
    producer = writer(setting.url, LINGER)
    await producer.start()
    await producer.send_and_wait(topic, encode(ORDERS[0]), key=customer(ORDERS[0]).encode(), headers=headers)
    span = Span(n)
    futures: list[Awaitable[Any]] = []
    for i in range(n):
        message = ORDERS[i % 1000]
        key = customer(message).encode()
        futures.append(await producer.send(topic, encode(message), key=key, headers=headers))
        span.see()
    await asyncio.gather(*futures)
    rate = span.rate()
    await producer.stop()
    assert await stored(setting.url, topic) == n + 1
    await drop(setting.url, ours, topic)
    return {"rate": rate}


async def switchgear(setting: Setting) -> Sample:
    """200 tasks, each awaiting `bus.publish`, in key order."""
    n = setting.messages(FULL)
    namespace = f"bench-{secrets.token_hex(4)}."
    topic = f"{namespace}orders"
    await create(setting.url, topic)
    async with Bus(setting.url, namespace=namespace) as bus:
        await bus.publish(orders, ORDERS[0])  # connects
        rate = await from_tasks(n, lambda order: bus.publish(orders, order))
    assert await stored(setting.url, topic) == n + 1
    await drop(setting.url, topic)
    return {"rate": rate}


WORKLOAD = Workload(
    name="kafka-publish",
    about="publish to one topic from 200 tasks, stored by all replicas",
    metric="rate",
    unit="msg/s",
    sides={"raw": raw, OURS: switchgear},
    requirements=[Requirement("rate", over="raw", at_least=0.9)],
    broker="kafka",
)
