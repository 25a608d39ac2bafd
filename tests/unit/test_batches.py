"""Batches: gathered, handed over, settled item by item."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from typing import Any

import msgspec
import pytest

from switchgear import Batch, Drop, Message, Reject, Retry, RetryAfter, Topic
from tests.support.serving import BURIED, a_bus, consumer_of, loose, orders, until
from tests.support.virtual import virtual

Orders = list[dict[str, Any]]


@virtual
async def test_size_and_wait() -> None:
    bus, events, _ = a_bus()
    got: list[tuple[float, list[int]]] = []

    @bus.subscribe(loose, group="g", batch=Batch(5, wait=2.0), concurrency=1)
    async def handle(batch: Orders) -> None:
        got.append((asyncio.get_running_loop().time(), [o["n"] for o in batch]))

    async with bus.serving():
        began = asyncio.get_running_loop().time()
        for n in range(7):
            await bus.publish(loose, {"n": n})
        await until(lambda: events["handled"] == 7)
    assert [numbers for _, numbers in got] == [[0, 1, 2, 3, 4], [5, 6]]
    assert got[0][0] - began < 0.5
    assert got[1][0] - began == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize("seed", range(5))
@virtual
async def test_order_holds_whatever_fails(seed: int) -> None:
    bus, events, _ = a_bus()
    draw = random.Random(seed)
    running: set[str] = set()
    done: dict[str, list[int]] = defaultdict(list)

    @bus.subscribe(
        orders, group="g", batch=Batch(8, wait=0.05), concurrency=3, retry=Retry(attempts=3, base=0.1, cap=0.3),
        dead_letter=BURIED,
    )  # fmt: skip
    async def handle(batch: list[Message[dict[str, Any]]]) -> list[Exception | None]:
        keys = {m.body["k"] for m in batch}
        assert not keys & running, "a key in two batches at once"
        running.update(keys)
        await asyncio.sleep(draw.choice([0, 0.01, 0.2]))
        running.difference_update(keys)
        if draw.random() < 0.1:
            raise ValueError("all of it")
        failed: set[str] = set()
        outcomes: list[Exception | None] = []
        for m in batch:
            key, n = m.body["k"], m.body["n"]
            error = draw.choice([None] * 8 + [ValueError("no"), Reject("bad"), Drop("old")])
            outcomes.append(error)
            if key not in failed and not isinstance(error, ValueError):
                done[key].append(n)
            elif isinstance(error, ValueError):
                failed.add(key)
        return outcomes

    async with bus.serving():
        for n in range(200):
            await bus.publish(orders, {"k": f"k{n % 5}", "n": n})
        await until(lambda: events["handled"] + events["dead_lettered"] + events["dropped"] == 200, 1000)
        await until(lambda: not consumer_of(bus).lanes.held)
        assert not consumer_of(bus).lanes.chains
        assert not consumer_of(bus).failures
    for found in done.values():
        assert found == sorted(found)


@virtual
async def test_a_failed_item_takes_its_keys_later_items_with_it() -> None:
    bus, events, _ = a_bus()
    got: list[list[tuple[str, int]]] = []

    @bus.subscribe(orders, group="g", batch=Batch(10, wait=0.2), concurrency=2)
    async def handle(batch: Orders) -> list[Exception | None]:
        got.append([(o["k"], o["n"]) for o in batch])
        return [RetryAfter(5) if (o["k"], o["n"]) == ("a", 1) and len(got) == 1 else None for o in batch]

    async with bus.serving():
        for n in range(3):
            await bus.publish(orders, {"k": "a", "n": n})
            await bus.publish(orders, {"k": "b", "n": n})
        await until(lambda: events["handled"] == 6)
    assert got == [[("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1), ("b", 2)], [("a", 1), ("a", 2)]]


@pytest.mark.parametrize("wrong", [[], [None], [None] * 4, ["no", None, None]])
@virtual
async def test_a_wrong_number_or_kind_of_outcomes_retries_all(wrong: Any) -> None:
    bus, events, letters = a_bus()
    calls: list[list[int]] = []

    @bus.subscribe(orders, group="g", batch=Batch(3, wait=0.2), retry=Retry(attempts=2, base=0.1), dead_letter=BURIED)
    async def handle(batch: Orders) -> list[Exception | None]:
        calls.append(sorted(o["n"] for o in batch))
        return wrong if len(calls) == 1 else [None] * len(batch)

    async with bus.serving():
        for n in range(3):
            await bus.publish(orders, {"k": f"k{n}", "n": n})
        await until(lambda: events["handled"] == 3)
    assert calls[0] == [0, 1, 2]
    assert sorted(n for call in calls[1:] for n in call) == [0, 1, 2]
    assert events["retried"] == 3
    assert not letters.found


@virtual
async def test_what_cannot_be_read_holds_up_only_what_follows_in_its_key() -> None:
    bus, events, letters = a_bus()
    typed = Topic("orders", Order, key=lambda o: o.k)
    got: list[list[tuple[str, int]]] = []

    @bus.subscribe(typed, group="g", batch=Batch(10, wait=0.2), concurrency=1, dead_letter=BURIED)
    async def handle(batch: list[Order]) -> None:
        assert len(letters.found) == len(got)  # the dead letter goes before what follows it
        got.append([(o.k, o.n) for o in batch])

    async with bus.serving():
        for k, n in [("a", 0), ("a", "x"), ("a", 2), ("b", 0), ("b", 1)]:
            await bus.publish(orders, {"k": k, "n": n})
        await until(lambda: events["handled"] == 4)
    assert got == [[("a", 0), ("b", 0), ("b", 1)], [("a", 2)]]


class Order(msgspec.Struct):
    k: str
    n: int


@virtual
async def test_each_type_goes_to_its_own_handler_and_order_holds_between_them() -> None:
    bus, events, _ = a_bus()
    up, down = (
        Topic("moves", Order, type="up", key=lambda o: o.k),
        Topic("moves", Order, type="down", key=lambda o: o.k),
    )
    got: list[tuple[str, list[int]]] = []

    @bus.subscribe(up, group="g", batch=Batch(10, wait=0.2), concurrency=1)
    async def go_up(batch: list[Order]) -> list[Exception | None]:
        got.append(("up", [o.n for o in batch]))
        return [RetryAfter(1) if o.n == 1 and len(got) == 1 else None for o in batch]

    @bus.subscribe(down, group="g", batch=Batch(10, wait=0.2), concurrency=1)
    async def go_down(batch: list[Order]) -> None:
        got.append(("down", [o.n for o in batch]))

    async with bus.serving():
        for topic, n in [(up, 0), (up, 1), (down, 2), (up, 3)]:
            await bus.publish(topic, Order("a", n))
        await until(lambda: events["handled"] == 4)
    assert got == [("up", [0, 1]), ("up", [1]), ("down", [2]), ("up", [3])]


@virtual
async def test_what_is_lost_while_a_batch_is_gathered_is_not_handled_twice() -> None:
    bus, events, _ = a_bus()
    got: list[list[int]] = []

    @bus.subscribe(orders, group="g", batch=Batch(10, wait=20.0), concurrency=2, lease=4)
    async def handle(batch: Orders) -> None:
        got.append([o["n"] for o in batch])

    async with bus.serving():
        await bus.publish(orders, {"k": "a", "n": 0})
        await bus.publish(orders, {"k": "b", "n": 1})
        consumer = consumer_of(bus)
        await until(lambda: len(consumer.gathered) == 2)
        source: Any = consumer.source
        lost = source.leased.pop(next(t for t, d in source.leased.items() if d.key == b"a"))
        await until(lambda: events["lease_lost"] == 1)
        await until(lambda: got)
        assert got == [[1]]
        (group,) = source._groups.values()
        group.returned([lost])
        await until(lambda: len(got) == 2)
    assert got[1] == [0]
    assert events["handled"] == 2


@virtual
async def test_an_unfinished_batch_is_given_back_by_the_drain() -> None:
    bus, events, _ = a_bus()

    @bus.subscribe(orders, group="g", batch=Batch(10, wait=1000.0))
    async def handle(batch: Orders) -> None:
        raise AssertionError("it is not complete")

    async with bus.serving():
        for n in range(4):
            await bus.publish(orders, {"k": "a", "n": n})
        consumer = consumer_of(bus)
        await until(lambda: len(consumer.gathered) == 4)
        source: Any = consumer.source
        (group,) = source._groups.values()
    assert not events.seen
    assert len(list(group.unsettled())) == 4
    assert not group._counts  # no attempt


@virtual
async def test_requests_to_a_batch_handler_are_answered() -> None:
    from switchgear import RequestFailed

    bus, _, _ = a_bus()

    @bus.subscribe(loose, group="g", batch=Batch(1), retry=Retry(attempts=1))
    async def handle(batch: Orders) -> list[Exception | None]:
        return [Reject("no such order") if o["n"] else None for o in batch]

    async with bus.serving():
        assert await bus.request(loose, {"n": 0}, Any) is None
        with pytest.raises(RequestFailed, match="no such order"):
            await bus.request(loose, {"n": 1}, Any)
