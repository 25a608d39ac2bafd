"""In one process, from publish to handler: against a bare queue, and against FastStream's own test broker."""

from __future__ import annotations

import asyncio
from typing import Any

from switchgear import Bus, Message, Topic
from switchgear.knobs import Handler

from .clock import Span
from .faststreams import redis_broker
from .orders import Order, customer, decode, encode, order
from .workload import OURS, Requirement, Sample, Setting, Workload

ORDERS = [order(n) for n in range(1000)]


async def queue(setting: Setting) -> Sample:
    """Two tasks over an asyncio.Queue; the body is encoded, decoded, and handed to an awaited handler."""
    n = setting.messages(200_000)
    span = Span(n)
    between: asyncio.Queue[bytes] = asyncio.Queue(1000)

    async def handle(order: Order) -> None:
        span.see()

    async def publish() -> None:
        for i in range(n):
            await between.put(encode(ORDERS[i % 1000]))

    async def consume() -> None:
        for _ in range(n):
            await handle(decode(await between.get()))

    await asyncio.gather(publish(), consume())
    return {"rate": span.rate()}


def first(handle: Handler) -> Handler:
    async def passed(message: Message[Any]) -> object:
        return await handle(message)

    return passed


def second(handle: Handler) -> Handler:
    async def passed(message: Message[Any]) -> object:
        return await handle(message)

    return passed


async def switchgear(setting: Setting) -> Sample:
    """One task publishes, the handler runs behind two middlewares; like the queue's, the messages have no key."""
    return await _switchgear(setting, Topic("orders", Order))


async def keyed(setting: Setting) -> Sample:
    """The same with a key and key order, which the queue does not know: for comparison, nothing is required of it."""
    return await _switchgear(setting, Topic("orders", Order, key=customer))


async def _switchgear(setting: Setting, orders: Topic[Order]) -> Sample:
    n = setting.messages(100_000)
    span = Span(n)
    bus = Bus("memory://", middleware=[first, second])

    @bus.subscribe(orders, group="bench")
    async def handle(order: Order) -> None:
        span.see()

    async with bus.serving():
        for i in range(n):
            await bus.publish(orders, ORDERS[i % 1000])
        await span.all_seen.wait()
        rate = span.rate()
    return {"rate": rate}


async def faststream(setting: Setting) -> Sample:
    """FastStream's test broker with two middlewares; its handler takes a dict, which costs it least."""
    from faststream import BaseMiddleware
    from faststream.redis import TestRedisBroker

    class First(BaseMiddleware):
        async def consume_scope(self, call_next: Any, msg: Any) -> Any:
            return await call_next(msg)

    class Second(First):
        pass

    n = setting.messages(2000)
    span = Span(n)
    broker = redis_broker("redis://localhost", middlewares=[First, Second])

    async def handle(order: dict[str, Any]) -> None:
        span.see()

    broker.subscriber("orders")(handle)

    async with TestRedisBroker(broker) as tested:
        for i in range(n):
            await tested.publish(encode(ORDERS[i % 1000]), "orders")
        rate = span.rate()
    return {"rate": rate}


WORKLOAD = Workload(
    name="memory-handle",
    about="publish to handler in one process, two middlewares",
    metric="rate",
    unit="msg/s",
    sides={"queue": queue, OURS: switchgear, "key order": keyed, "faststream": faststream},
    requirements=[
        Requirement("rate", over="queue", at_least=0.25),
        Requirement("rate", over="faststream", at_least=30),
    ],
)
