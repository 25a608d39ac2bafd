"""What a type checker tells a user: a line that ends in `# E` is an error to mypy and to pyright, no other line is."""

import asyncio
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from typing import Annotated, assert_type

import msgspec

from switchgear import (
    Batch,
    Breaker,
    Bus,
    DeadLetter,
    Depends,
    Header,
    Health,
    Message,
    Rate,
    Reject,
    Retry,
    RetryAfter,
    Router,
    Topic,
    TransportError,
    sync,
    testing,
)
from switchgear_kafka import KafkaTuning
from switchgear_redis import RedisTuning


class Parcel(msgspec.Struct):
    id: str
    city: str
    grams: int


class Label(msgspec.Struct):
    parcel: str
    text: str


parcels = Topic("parcels", Parcel, key=lambda parcel: parcel.city)
labels = Topic("labels", Label)
bus = Bus("memory://")
router = Router()
parcel = Parcel("p-1", "Ulm", 300)
label = Label("p-1", "fragile")

# ---- topics: the schema is a type expression, and the key sees it

Topic("parcels", Parcel, key=lambda p: p.town)  # E
Topic("parcels", Parcel, key=lambda p: p.grams)  # E
Topic("parcels", Parcel, order="keyed")  # E
Topic("parcels", Parcel, partition=3)  # E
assert_type(Topic("either", Parcel | Label), Topic[Parcel | Label])
assert_type(Topic("many", list[Parcel]), Topic[list[Parcel]])
assert_type(Topic("checked", Annotated[int, msgspec.Meta(gt=0)]), Topic[int])
assert_type(Topic("perhaps", str | None), Topic[str | None])
assert_type(parcels.name, str)

# ---- handlers: what they take


@bus.subscribe(parcels, group="sort")
async def body(parcel: Parcel) -> None: ...


@bus.subscribe(parcels, group="sort")
async def body_and_message(parcel: Parcel, message: Message) -> None: ...


@bus.subscribe(parcels, group="sort")
async def message_alone(message: Message[Parcel]) -> None:
    assert_type(message.body, Parcel)
    assert_type(message.attempt, int)
    assert_type(message.key, str | None)
    message.body.town  # E


@bus.subscribe(parcels, group="sort")
async def message_first(message: Message[Parcel], parcel: Parcel) -> None: ...


@bus.subscribe(parcels, group="sort")
def in_a_thread(parcel: Parcel, bus: sync.Bus) -> None: ...


@router.subscribe("anything", group="sort")
async def any_json(value: dict[str, int]) -> None: ...


@bus.subscribe(parcels, group="sort")  # E
async def another_body(parcel: Label) -> None: ...


@bus.subscribe(parcels, group="sort")  # E
async def another_message(message: Message[Label]) -> None: ...


@router.subscribe(parcels, group="sort")  # E
def nothing() -> None: ...


class Desk:
    async def sort(self, parcel: Parcel) -> None: ...


bus.subscribe(parcels, group="sort")(Desk().sort)


# ---- handlers: the same function comes back


async def unit_test() -> None:
    assert_type(await body(parcel), None)
    assert_type(await body_and_message(parcel, message=Message()), None)
    await asyncio.create_task(body_and_message(parcel, Message()))
    await body(label)  # E


# ---- handlers: what they need


async def connection(message: Message, tenant: Annotated[str, Header("tenant")]) -> AsyncGenerator[int]:
    yield len(tenant) + message.attempt


@bus.subscribe(parcels, group="sort")
async def needs(
    parcel: Parcel, open: Annotated[int, Depends(connection)], again: Annotated[str, Header("x")] = ""
) -> None: ...


# ---- to=: what they return


@bus.subscribe(parcels, group="print", to=labels)
async def prints(parcel: Parcel) -> Label:
    return label


@bus.subscribe(parcels, group="print", to=labels)
def may_print(parcel: Parcel) -> Label | None:
    return None


@bus.subscribe("parcels", group="print", to="labels")
async def untyped(value: dict[str, str], message: Message) -> int:
    return len(value)


@bus.subscribe(parcels, group="print", to=labels)  # E
async def prints_another(parcel: Parcel) -> Parcel:
    return parcel


@bus.subscribe(parcels, group="print", to=labels)  # E
async def prints_or_says(parcel: Parcel) -> Label | str:
    return "no"


@bus.subscribe(parcels, group="print", to=labels)  # E
def thread_prints_another(parcel: Parcel) -> Parcel:
    return parcel


# ---- batches: a list in, outcomes out


@bus.subscribe(parcels, group="load", batch=Batch(100, wait=0.5))
async def load(batch: list[Parcel]) -> None: ...


@bus.subscribe(parcels, group="load", batch=Batch(100))
async def load_messages(batch: list[Message[Parcel]]) -> list[Exception | None]:
    return [Reject("heavy") if m.body.grams > 9 else RetryAfter(timedelta(seconds=1)) for m in batch]


@bus.subscribe("parcels", group="load", batch=Batch(3))
async def load_json(batch: list[str]) -> None: ...


@bus.subscribe(parcels, group="load", batch=Batch(100))  # E
async def load_one(parcel: Parcel) -> None: ...


@bus.subscribe(parcels, group="load", batch=Batch(100))  # E
async def load_names(batch: list[Parcel]) -> list[str]:
    return []


@bus.subscribe(parcels, group="load", to=labels, batch=Batch(100))  # E
async def load_and_print(batch: list[Parcel]) -> None: ...


# ---- knobs: names and values

bus.subscribe(parcels, group=None)
bus.subscribe(parcels, group="a", order="none", concurrency=4, start="earliest", lease=3, window=10)
bus.subscribe(parcels, group="a", retry=Retry(attempts=None, on=(OSError,)), timeout=timedelta(seconds=2))
bus.subscribe(parcels, group="a", dead_letter=DeadLetter(after="park"), unhandled="drop")
bus.subscribe(parcels, group="a", dead_letter=False, delivery="at_most_once", start=datetime(2026, 1, 1, tzinfo=UTC))
bus.subscribe(parcels, group="a", breaker=Breaker("carrier"), rate=Rate(5, per=60))
bus.subscribe(parcels, group="a", tuning=[KafkaTuning(acks="1"), RedisTuning(maxlen=5)])
bus.subscribe(parcels)  # E
bus.subscribe(parcels, group="a", ordre="key")  # E
bus.subscribe(parcels, group="a", order="keyed")  # E
bus.subscribe(parcels, group="a", retry=3)  # E
bus.subscribe("parcels", group="a", concurency=4)  # E
bus.subscribe(parcels, group="a", start="oldest")  # E
bus.subscribe(parcels, group="a", dead_letter=DeadLetter(after="halt"))  # E
bus.subscribe(parcels, group="a", tuning=[Retry()])  # E
KafkaTuning(acks="none")  # E

# ---- publishing, asking, pulling


async def talk() -> None:
    assert_type(await bus.publish(parcels, parcel, key="Ulm", delay=3, expires=timedelta(hours=1)), str)
    await bus.publish("parcels", {"id": "p-1"}, headers={"tenant": "a"}, retry_indeterminate=False)
    await bus.publish(parcels, label)  # E
    await bus.publish(parcels, parcel, keys="Ulm")  # E
    await bus.publish(parcels, parcel, headers={"n": 1})  # E
    assert_type(await bus.publish_many(parcels, [parcel], id=lambda p: p.id), list[str])
    assert_type(await bus.publish_many(parcels, [parcel], return_exceptions=True), list[str | TransportError])
    assert_type(await bus.request(parcels, parcel, Label, timeout=1), Label)
    assert_type(await bus.request(parcels, parcel, Label | None), Label | None)
    assert_type(await bus.cancel(parcels, "p-1"), bool)
    assert_type(bus.health(), Health)
    async with bus.consumer(parcels, group="look", idle=1) as messages:
        async for message in messages:
            assert_type(message.body, Parcel)
            await message.retry(after=timedelta(seconds=3))
    async with bus.serving(router), bus as entered:
        assert_type(entered, Bus)


def talk_from_a_thread() -> None:
    with sync.Bus("memory://") as plain:
        assert_type(plain.publish(parcels, parcel, timeout=2), str)
        assert_type(plain.publish_many(parcels, [parcel]), list[str])
        assert_type(plain.request(parcels, parcel, Label), Label)
        plain.publish(parcels, label)  # E
        with plain.consumer(parcels, group="look") as messages:
            for message in messages:
                assert_type(message.body, Parcel)
                messages.ack(message)


async def test() -> None:
    async with testing.in_memory(bus, depends={connection: int}) as trace:
        assert_type(trace.published(labels), list[Label])
        assert_type(trace.handled(parcels, group="sort"), list[Message[Parcel]])
        assert_type(trace.dead_letters(parcels, group="sort"), list[Message[Parcel]])
        await trace.advance(timedelta(days=1))
        await trace.idle()
