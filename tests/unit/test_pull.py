"""Pulled messages: one by one, settled by hand."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from switchgear import Topic
from switchgear.driver import Outgoing, Settlement
from switchgear.errors import Lost, Misuse, Unavailable
from tests.support.serving import a_bus, consumer_of, loose, orders, until
from tests.support.virtual import virtual


@virtual
async def test_the_first_settlement_wins() -> None:
    bus, events, _ = a_bus()
    async with bus, bus.consumer(loose, group="g") as consumer:
        await bus.publish(loose, {"n": 0})
        message = await anext(consumer)
        await message.ack()
        await message.ack()
        await message.retry()
        await message.reject("too late")
        assert not consumer_of(bus, "loose").lanes.held
    assert events.seen == {"handled": 1}


@virtual
async def test_what_is_left_unsettled_returns_without_an_attempt() -> None:
    bus, events, _ = a_bus()
    async with bus:
        async with bus.consumer(orders, group="g") as consumer:
            for n in range(3):
                await bus.publish(orders, {"k": "a", "n": n})
            first = await anext(consumer)
            await anext(consumer)
            await first.ack()
        async with bus.consumer(orders, group="g") as consumer:
            second, third = await anext(consumer), await anext(consumer)
            assert [second.body["n"], third.body["n"]] == [1, 2]
            assert second.attempt == 1
            await second.ack()
            await third.ack()
    assert events["handled"] == 3


@virtual
async def test_idle_ends_the_iteration() -> None:
    bus, _, _ = a_bus()
    async with bus, bus.consumer(loose, group="g", idle=7) as consumer:
        await bus.publish(loose, {"n": 0})
        began = asyncio.get_running_loop().time()
        got = []
        async for message in consumer:
            got.append(message.body["n"])
            await message.ack()
        assert got == [0]
        assert asyncio.get_running_loop().time() - began == pytest.approx(7, abs=0.1)
        assert not consumer_of(bus, "loose").idle


@virtual
async def test_a_cancelled_call_takes_nothing() -> None:
    bus, _, _ = a_bus()
    async with bus, bus.consumer(loose, group="g") as consumer:
        got: list[int] = []
        for n in range(50):
            waiting = asyncio.ensure_future(anext(consumer))
            await asyncio.sleep(0.001 * (n % 3))
            await bus.publish(loose, {"n": n})
            for _ in range(n % 7):
                await asyncio.sleep(0)
            waiting.cancel()
            try:
                message = await waiting
            except asyncio.CancelledError:
                continue
            got.append(message.body["n"])
        while len(got) < 50:
            got.append((await anext(consumer)).body["n"])
        assert got == list(range(50))


@virtual
async def test_several_callers_share() -> None:
    bus, _, _ = a_bus()
    async with bus, bus.consumer(loose, group="g") as consumer:
        callers = [asyncio.ensure_future(anext(consumer)) for _ in range(5)]
        await asyncio.sleep(1)
        for n in range(5):
            await bus.publish(loose, {"n": n})
        found = await asyncio.gather(*callers)
        assert sorted(m.body["n"] for m in found) == [0, 1, 2, 3, 4]


@virtual
async def test_retry_and_reject() -> None:
    bus, events, _ = a_bus()
    async with bus, bus.consumer(loose, group="g") as consumer:
        await bus.publish(loose, {"n": 0})
        message = await anext(consumer)
        began = asyncio.get_running_loop().time()
        await message.retry(30)
        again = await anext(consumer)
        assert asyncio.get_running_loop().time() - began == pytest.approx(30, abs=0.1)
        assert (again.id, again.attempt) == (message.id, 2)
        await again.reject("worthless")
        await until(lambda: not consumer_of(bus, "loose").lanes.held)
    assert events.seen == {"retried": 1, "rejected": 1, "dead_lettered": 1}


@virtual
async def test_attempts_end_with_a_dead_letter() -> None:
    bus, events, _ = a_bus()
    async with bus, bus.consumer(orders, group="g") as consumer:
        await bus.publish(orders, {"k": "a"})
        attempts = []
        while len(attempts) < 5:
            message = await anext(consumer)
            attempts.append(message.attempt)
            await message.retry(1)
        await until(lambda: events["dead_lettered"])
        assert attempts == [1, 2, 3, 4, 5]


@virtual
async def test_undecodable_and_expired_are_passed_over() -> None:
    bus, events, _ = a_bus()

    class Paid(msgspec.Struct):
        id: str

    paid = Topic("paid", Paid)
    async with bus, bus.consumer(paid, group="g") as consumer:
        assert await bus.transport.send([Outgoing(topic="paid", body=b"{", marked=True)], 1e9)
        await bus.publish(paid, Paid("late"), expires=0.001)
        await asyncio.sleep(0.01)
        assert bus._open is not None
        now = bus._open.clock.now
        bus._open.clock.now = lambda: now() + 1  # type: ignore[method-assign]
        await bus.publish(paid, Paid("good"))
        message = await anext(consumer)
        assert message.body == Paid("good")
        await message.ack()
        await until(lambda: not consumer_of(bus, "paid").lanes.held)
    assert events.seen == {"rejected": 1, "dead_lettered": 1, "expired": 1, "handled": 1}


@virtual
async def test_a_call_cancelled_while_it_buries_loses_nothing() -> None:
    bus, events, _ = a_bus()

    class Paid(msgspec.Struct):
        id: str

    paid = Topic("paid", Paid)
    async with bus, bus.consumer(paid, group="g") as consumer:
        transport: Any = bus.transport
        real, slow = transport.send, True

        async def send(batch: Any, deadline: float) -> Any:
            if slow and batch[0].topic.startswith("sg.dlq"):
                await asyncio.sleep(3)
            return await real(batch, deadline)

        transport.send = send
        await real([Outgoing(topic="paid", body=b"{", marked=True)], 1e9)
        waiting = asyncio.ensure_future(anext(consumer))
        await asyncio.sleep(2)
        waiting.cancel()
        await asyncio.wait([waiting])
        engine = consumer_of(bus, "paid")
        assert len(engine.lanes.held) == 1
        slow = False
        waiting = asyncio.ensure_future(anext(consumer))
        await until(lambda: events["dead_lettered"] == 1)
        await until(lambda: not engine.lanes.held)
        waiting.cancel()
        await asyncio.wait([waiting])


@virtual
async def test_broadcast_needs_no_settling_and_stays_flat() -> None:
    bus, events, _ = a_bus()
    async with bus, bus.consumer(loose, group=None) as consumer:
        engine = consumer_of(bus, "loose")
        source: Any = engine.source
        for n in range(300):
            await bus.publish(loose, {"n": n})
            assert (await anext(consumer)).body["n"] == n
        await asyncio.sleep(1)
        assert not engine.lanes.held
        assert not source.leased
        await asyncio.sleep(100)  # nothing comes again when leases end
        assert not engine.lanes.ready
        await bus.publish(loose, {"n": -1})
        message = await anext(consumer)
        await message.ack()
        with pytest.raises(Misuse):
            await message.retry()
        with pytest.raises(Misuse):
            await message.reject("no")
    assert not events.seen


@virtual
async def test_an_acknowledgement_that_fails_can_be_made_again() -> None:
    bus, events, _ = a_bus()
    async with bus, bus.consumer(loose, group="g") as consumer:
        await bus.publish(loose, {"n": 0})
        message = await anext(consumer)
        source: Any = consumer_of(bus, "loose").source
        real, faults = source.settle, [Unavailable("gone")]

        async def settle(batch: list[Settlement]) -> Any:
            if faults:
                raise faults.pop()
            return await real(batch)

        source.settle = settle
        with pytest.raises(Unavailable):
            await message.ack()
        await message.ack()
        assert not consumer_of(bus, "loose").lanes.held
    assert events.seen == {"handled": 1}


@virtual
async def test_a_lost_message_says_so_and_one_that_came_again_is_settled_in_its_place() -> None:
    bus, events, _ = a_bus()
    async with bus, bus.consumer(loose, group="g") as consumer:
        await bus.publish(loose, {"n": 0})
        message = await anext(consumer)
        engine = consumer_of(bus, "loose")
        source: Any = engine.source
        (group,) = source._groups.values()
        group.returned([source.leased.popitem()[1]])
        source.wake()
        await until(lambda: source.leased)
        await message.ack()  # settles the new delivery
        assert not source.leased
        assert not engine.lanes.held
        await bus.publish(loose, {"n": 1})
        message = await anext(consumer)
        source.leased.clear()
        await until(lambda: events["lease_lost"] == 1)
        with pytest.raises(Lost):
            await message.ack()
        await message.ack()  # settled: whatever is said later changes nothing
        assert not engine.lanes.held


@virtual
async def test_a_new_source_settles_what_came_again_through_it() -> None:
    bus, events, _ = a_bus()
    async with bus, bus.consumer(loose, group="g") as consumer:
        await bus.publish(loose, {"n": 0})
        message = await anext(consumer)
        engine = consumer_of(bus, "loose")
        before: Any = engine.source

        async def lost(*args: Any) -> Any:
            raise Lost("gone")

        before.receive = lost
        await until(lambda: engine.source not in (None, before))
        await until(lambda: engine.lanes.moved)
        await asyncio.sleep(5)
        assert not engine.lanes.ready
        await message.ack()
        assert not engine.lanes.held
    assert events["handled"] == 1


@virtual
async def test_what_ends_the_subscription_is_raised() -> None:
    bus, _, _ = a_bus()
    async with bus, bus.consumer(loose, group="g") as consumer:
        source: Any = consumer_of(bus, "loose").source

        async def broken(*args: Any) -> Any:
            raise ZeroDivisionError("a bug")

        waiting = asyncio.ensure_future(anext(consumer))
        source.receive = broken
        with pytest.raises(ZeroDivisionError):
            await waiting


@virtual
async def test_a_consumer_that_begins_while_the_bus_closes_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    bus, _, _ = a_bus()
    async with bus:
        core = bus._running()
        prepare = core.prepare

        async def prepare_meanwhile(assembled: Any) -> None:
            await prepare(assembled)
            closing.append(asyncio.ensure_future(bus.close()))
            while not core.closing:  # noqa: ASYNC110  (the core has no event for it)
                await asyncio.sleep(0)

        closing: list[asyncio.Future[None]] = []
        monkeypatch.setattr(core, "prepare", prepare_meanwhile)
        with pytest.raises(Misuse, match="closed"):
            async with bus.consumer(loose, group="g"):
                pass
        await closing[0]
    assert not core.consumers


@virtual
async def test_who_waits_to_join_is_told_that_the_bus_is_closed() -> None:
    bus, _, _ = a_bus()

    async def away(*_: object) -> Any:
        raise Unavailable("the broker is away")

    async def pull() -> None:
        async with bus.consumer(loose, group="g"):
            pass

    await bus.__aenter__()
    assert bus._open is not None
    bus._open.transport.subscribe = away  # type: ignore[method-assign]
    pulling = asyncio.create_task(pull())
    await asyncio.sleep(1)
    await bus.close()
    with pytest.raises(Misuse, match="closed"):
        await pulling
