"""Reading a backlog from a Kafka topic, committed: without order, and with key order."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import Any, Literal, TypeAlias

from switchgear import Bus, Topic

from .clock import Span
from .kafka_topics import committed, create, create_anew, reader, server, stored
from .orders import Order, customer, decode, encode, order
from .workload import OURS, Requirement, Sample, Setting, Side, Workload

FULL = 200_000
AT_ONCE = 500  # records of a raw read


Kept: TypeAlias = Literal["none", "key"]


def namespace(order: Kept) -> str:
    """Each kind of topic has one of its own: the order is part of a topic's plan on the broker."""
    return f"bench-{order}."


def declared(order: Kept) -> Topic[Order]:
    return Topic("orders", Order, key=customer, order=order)


def fill(kept: Kept) -> Side:
    """The backlog that raw and ours read, each with a group of its own."""

    async def side(setting: Setting) -> Sample:
        n = setting.messages(FULL)
        topic = f"{namespace(kept)}orders"
        await create_anew(setting.url, topic)
        async with Bus(setting.url, namespace=namespace(kept)) as bus:
            for start in range(0, n, 1000):
                await bus.publish_many(declared(kept), [order(start + i) for i in range(1000)])
        assert await stored(setting.url, topic) == n
        return {}

    return side


def raw(kept: Kept, every: float) -> Side:
    """`getmany(500)`, decode, await the handler; a commit after each read, or every so many seconds."""

    async def side(setting: Setting) -> Sample:
        n = setting.messages(FULL)
        topic, group = f"{namespace(kept)}orders", f"raw-{secrets.token_hex(4)}"
        consumer = reader(setting.url, topic, group=group)
        await consumer.start()
        span = Span(n)

        async def handle(order: Order) -> None:
            span.see()

        done: dict[Any, int] = {}
        last = time.monotonic()
        while span.seen < n:
            for tp, records in (await consumer.getmany(timeout_ms=1000, max_records=AT_ONCE)).items():
                for record in records:
                    await handle(decode(record.value))
                done[tp] = records[-1].offset + 1
            if time.monotonic() - last >= every:
                await consumer.commit(done)
                last = time.monotonic()
        await consumer.commit(done)
        await consumer.stop()
        rate = span.rate()
        assert await committed(setting.url, topic, group) == n
        return {"rate": rate}

    return side


def ours(kept: Kept, options: str = "") -> Side:
    """A subscription from the earliest message on, until all is committed and the group is left.

    `options` are added to the URL.
    """

    async def side(setting: Setting) -> Sample:
        n = setting.messages(FULL)
        group = f"ours-{secrets.token_hex(4)}"
        span = Span(n)
        bus = Bus(setting.url + options, namespace=namespace(kept))

        @bus.subscribe(declared(kept), group=group, start="earliest")
        async def handle(order: Order) -> None:
            span.see()

        async with bus.serving():
            await span.all_seen.wait()
        rate = span.rate()
        prefix = namespace(kept)
        assert await committed(setting.url, f"{prefix}orders", f"{prefix}{group}") == n
        return {"rate": rate}

    return side


def faststream(policy: str, full: int) -> Side:
    """FastStream, one message a call; its handler takes a dict, which costs it least."""

    async def side(setting: Setting) -> Sample:
        from faststream import AckPolicy
        from faststream.kafka import KafkaBroker

        n = setting.messages(full)
        name = f"faststream-{secrets.token_hex(4)}"
        await create(setting.url, name)
        make: Any = KafkaBroker
        broker = make(server(setting.url), logger=None)
        span = Span(n)

        async def handle(order: dict[str, Any]) -> None:
            span.see()

        subscriber = broker.subscriber(
            name, group_id=name, auto_offset_reset="earliest", ack_policy=AckPolicy[policy],
        )  # fmt: skip
        subscriber(handle)
        await broker.connect()
        for i in range(0, n, 1000):
            messages = [order(i + j) for j in range(1000)]
            await asyncio.gather(
                *[broker.publish(encode(m), topic=name, key=customer(m).encode(), no_confirm=True) for m in messages]
            )
        await broker.start()
        await span.all_seen.wait()
        await broker.stop()
        return {"rate": span.rate()}

    return side


def workload(name: str, about: str, kept: Kept) -> Workload:
    return Workload(
        name=name,
        about=about,
        metric="rate",
        unit="msg/s",
        sides={
            "commit-each": raw(kept, 0.0),
            OURS: ours(kept),
            "commit-1s": raw(kept, 1.0),
            "fs-auto": faststream("ACK_FIRST", 20_000),
            "fs-ack": faststream("ACK", 2000),
        },
        requirements=[
            Requirement("rate", over="commit-each", at_least=0.65),
            Requirement("rate", over="commit-1s", at_least=0.5),
            Requirement("rate", over="fs-auto", at_least=7),
            Requirement("rate", over="fs-ack", at_least=50),
        ],
        broker="kafka",
        prepare=fill(kept),
    )


NO_ORDER = workload("kafka-consume", "handle a backlog of four partitions without order, committed", "none")
KEY_ORDER = workload("kafka-consume-key", "handle a backlog of four partitions, 1,000 keys in order, committed", "key")
