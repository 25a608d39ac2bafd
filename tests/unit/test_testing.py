"""`testing.in_memory`: the same bus, a broker in memory, and a clock of the test's own."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import Annotated, Any

import pytest

from switchgear import Bus, Depends, Message, Misuse, Reject, Retry, RetryAfter, Topic
from switchgear.testing import in_memory

orders = Topic("orders", dict)
paid = Topic("paid", dict)


def bus_of(**more: Any) -> Bus:
    return Bus("redis://nowhere:1", name="shop", **{"config": {}, **more})


async def test_what_happens_is_recorded() -> None:
    bus = bus_of()

    @bus.subscribe(orders, group="billing", to=paid)
    async def bill(order: dict[str, int]) -> dict[str, int]:
        if order["n"] < 0:
            raise Reject("negative")
        return {"paid": order["n"]}

    async with in_memory(bus) as trace:
        await bus.publish(orders, {"n": 1})
        await bus.publish(orders, {"n": -1})
        await trace.idle()
        assert trace.published(orders) == [{"n": 1}, {"n": -1}]
        assert trace.published(paid) == [{"paid": 1}]
        assert [m.body for m in trace.handled(orders, group="billing")] == [{"n": 1}]
        (dead,) = trace.dead_letters(orders, group="billing")
        assert (dead.body, dead.attempt) == ({"n": -1}, 1)
        assert trace.handled(orders, group="other") == []


async def test_retries_wait_for_the_tests_clock() -> None:
    bus = bus_of()
    attempts: list[int] = []

    @bus.subscribe(orders, group="billing", retry=Retry(attempts=3, base=100.0, cap=1000.0))
    async def bill(order: dict[str, int], message: Message[Any]) -> None:
        attempts.append(message.attempt)
        raise RetryAfter(3600)

    async with in_memory(bus) as trace:
        await bus.publish(orders, {})
        await trace.idle()
        assert attempts == [1]
        await trace.advance(3599)
        assert attempts == [1]
        await trace.advance(timedelta(seconds=2))
        assert attempts == [1, 2]
        await trace.advance(7200)
        assert attempts == [1, 2, 3]
        assert len(trace.dead_letters(orders, group="billing")) == 1


async def test_delays_and_expiry_follow_the_tests_clock() -> None:
    bus = bus_of()
    seen: list[int] = []

    @bus.subscribe(orders, group="billing")
    async def bill(order: dict[str, int]) -> None:
        seen.append(order["n"])

    async with in_memory(bus) as trace:
        await bus.publish(orders, {"n": 1}, delay=timedelta(hours=2))
        await bus.publish(orders, {"n": 2}, delay=60, expires=30)
        gone = await bus.publish(orders, {"n": 3}, delay=90)
        assert await bus.cancel(orders, gone)
        assert not await bus.cancel(orders, gone)
        await trace.advance(3600)
        assert seen == []
        await trace.advance(3601)
        assert seen == [1]


async def test_leases_follow_the_tests_clock() -> None:
    bus = bus_of()
    started: list[int] = []

    @bus.subscribe(orders, group="billing", lease=10)
    async def bill(order: dict[str, int], message: Message[Any]) -> None:
        started.append(message.attempt)
        await asyncio.sleep(0.05)

    async with in_memory(bus) as trace:
        await bus.publish(orders, {})
        await trace.advance(100)
        assert started == [1]


async def database() -> str:
    return "real"


async def fake() -> str:
    return "fake"


async def test_dependencies_are_replaced_for_the_while() -> None:
    bus = bus_of()
    used: list[str] = []

    @bus.subscribe(orders, group="billing")
    async def bill(order: dict[str, int], db: Annotated[str, Depends(database)]) -> None:
        used.append(db)

    async with in_memory(bus, depends={database: fake}) as trace:
        await bus.publish(orders, {})
        await trace.idle()
    async with in_memory(bus) as trace:
        await bus.publish(orders, {})
        await trace.idle()
    assert used == ["fake", "real"]


async def test_several_buses_share_a_broker_and_a_clock() -> None:
    shop, bank = bus_of(), Bus("kafka://nowhere", name="bank", config={})
    seen: list[Any] = []

    @shop.subscribe(orders, group="shop", to=paid)
    async def order(body: dict[str, int]) -> dict[str, int]:
        return body

    @bank.subscribe(paid, group="bank")
    async def pay(body: dict[str, int]) -> None:
        seen.append(body)

    async with in_memory(shop, bank) as trace:
        await bank.publish(orders, {"n": 1}, delay=10)
        await trace.advance(10)
        assert seen == [{"n": 1}]
        assert trace.published(paid) == [{"n": 1}]


async def test_two_tests_do_not_see_each_other() -> None:
    bus = bus_of()
    seen: list[int] = []

    @bus.subscribe(orders, group="billing", start="earliest")
    async def bill(order: dict[str, int]) -> None:
        seen.append(order["n"])

    async def one(n: int) -> None:
        async with in_memory(bus) as trace:
            await bus.publish(orders, {"n": n})
            if n == 2:
                await trace.idle()

    await one(1)
    seen.clear()
    await one(2)
    assert seen == [2]


@pytest.mark.parametrize("looked", [True, False])
async def test_the_bus_is_as_before_afterwards(looked: bool) -> None:
    bus = bus_of(config={"namespace": "live."})
    if looked:
        assert bus.url == "redis://nowhere:1"
    with pytest.raises(ZeroDivisionError):
        async with in_memory(bus):
            assert bus.url.startswith("memory://test-")
            assert bus.namespace == "live."
            _ = 1 / 0
    assert bus.url == "redis://nowhere:1"
    assert (bus._test_clock, bus._test_overrides, bus._test_taps, bus._open) == (None, None, [], None)


async def test_an_open_bus_is_refused_and_the_others_are_as_before() -> None:
    first, second = bus_of(), Bus("memory://", name="open", config={})
    async with second:
        with pytest.raises(Misuse, match="the bus is open"):
            async with in_memory(first, second):
                pytest.fail("it serves")
    assert first.url == "redis://nowhere:1"
    assert second.url == "memory://"


async def test_a_thread_handler_and_a_broadcast_are_waited_for() -> None:
    bus = bus_of()
    seen: list[str] = []

    @bus.subscribe(orders, group="threads")
    def slow(order: dict[str, int]) -> None:
        time.sleep(0.05)
        seen.append("thread")

    @bus.subscribe(orders, group=None)
    async def everyone(order: dict[str, int]) -> None:
        await asyncio.sleep(0.02)
        seen.append("broadcast")

    async with in_memory(bus) as trace:
        await bus.publish(orders, {})
        await trace.idle()
        assert sorted(seen) == ["broadcast", "thread"]
        assert len(trace.handled(orders, group="threads")) == 1


async def test_requests_work_there_too() -> None:
    bus = bus_of()

    @bus.subscribe(orders, group="billing")
    async def bill(order: dict[str, int]) -> int:
        return order["n"] + 1

    async with in_memory(bus) as trace:
        assert await bus.request(orders, {"n": 1}, int) == 2
        await trace.idle()
