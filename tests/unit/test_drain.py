"""The end: what runs may finish, the rest goes back, all within the deadline."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from switchgear import Bus, Message, Retry, RetryAfter
from switchgear.driver import Settlement, Verdict
from switchgear.errors import Unavailable
from tests.support.serving import BURIED, a_bus, consumer_of, fresh, loose, orders, until
from tests.support.virtual import virtual


def now() -> float:
    return asyncio.get_running_loop().time()


def group_of(bus: Bus) -> Any:
    source: Any = consumer_of(bus).source
    (group,) = source._groups.values()
    return group


@virtual
async def test_handlers_finish_and_what_none_has_begun_goes_back_uncounted() -> None:
    bus, events, _ = a_bus()
    seen: list[int] = []

    @bus.subscribe(orders, group="g", concurrency=2)
    async def handle(order: dict[str, Any]) -> None:
        seen.append(order["n"])
        await asyncio.sleep(3)

    async with bus.serving():
        for n in range(10):
            await bus.publish(orders, {"k": f"k{n % 5}", "n": n})
        await until(lambda: len(seen) == 2)
        group = group_of(bus)
        began = now()
    assert now() - began < 4
    assert seen == [0, 1]
    assert events.seen == {"handled": 2}
    left = sorted(s.position for s in group.unsettled())
    assert len(left) == 8
    assert not group._counts


@virtual
async def test_a_handler_that_does_not_end_is_cancelled_and_its_message_given_back() -> None:
    bus, events, _ = a_bus()
    bus._code["grace"] = 8.0
    ended: list[str] = []

    @bus.subscribe(orders, group="g")
    async def handle(order: dict[str, Any]) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cleaned up")

    async with bus.serving():
        await bus.publish(orders, {"k": "a"})
        await until(lambda: bus._open and consumer_of(bus).running())
        group = group_of(bus)
        began = now()
    assert 6 <= now() - began <= 8.05
    assert ended == ["cleaned up"]
    assert not events.seen
    assert len(list(group.unsettled())) == 1
    assert not group._counts
    assert not bus._abandoned


@virtual
async def test_held_retries_go_back_with_their_failure_counted() -> None:
    url = fresh()
    keeper, _, _ = a_bus(url)
    attempts: list[int] = []

    def member() -> Bus:
        bus, _, _ = a_bus(url)

        @bus.subscribe(orders, group="g", retry=Retry(attempts=9))
        async def handle(order: dict[str, Any], message: Message[Any]) -> None:
            attempts.append(message.attempt)
            if len(attempts) == 1:
                raise RetryAfter(1000)

        return bus

    async with keeper:
        first = member()
        async with first.serving():
            await first.publish(orders, {"k": "a", "n": 0})
            await first.publish(orders, {"k": "a", "n": 1})
            await until(lambda: attempts)
        second = member()
        async with second.serving():
            await until(lambda: len(attempts) == 3)
    assert attempts == [1, 2, 1]


@pytest.mark.parametrize("comes_back", [True, False])
@virtual
async def test_while_the_broker_is_away_the_drain_waits_for_it_and_then_gives_up_in_time(comes_back: bool) -> None:
    bus, events, _ = a_bus()
    bus._code["grace"] = grace = 60.0 if comes_back else 10.0
    away = True

    @bus.subscribe(orders, group="g")
    async def handle(order: dict[str, Any]) -> None:
        pass

    def back() -> None:
        nonlocal away
        away = False

    async with bus.serving():
        consumer = consumer_of(bus)
        source: Any = consumer.source
        real = source.settle

        async def settle(batch: list[Settlement]) -> Any:
            if away:
                raise Unavailable("gone")
            return await real(batch)

        source.settle = settle
        await bus.publish(orders, {"k": "a"})
        await until(lambda: consumer.settler.done)
        began = now()
        if comes_back:
            asyncio.get_running_loop().call_later(5, back)
    assert now() - began <= (45 if comes_back else grace + 0.1)  # a connection is tried again at least every 10 s
    assert events["handled"] == int(comes_back)


@virtual
async def test_a_drain_during_an_outage_lets_handlers_finish() -> None:
    bus, _, _ = a_bus()
    bus._code["grace"] = 10.0
    finished: list[int] = []

    @bus.subscribe(orders, group="g")
    async def handle(order: dict[str, Any]) -> None:
        await asyncio.sleep(3)
        finished.append(1)

    async with bus.serving():
        await bus.publish(orders, {"k": "a"})
        consumer = consumer_of(bus)
        await until(consumer.running)
        source: Any = consumer.source

        async def receive(limit: int, held: Any = ()) -> Any:
            raise Unavailable("gone")

        source.receive = receive
        source.wake()
        transport: Any = bus.transport

        async def connect(deadline: float) -> None:
            raise Unavailable("gone")

        transport.connect = connect
        await until(lambda: consumer.state == "reconnecting")
    assert finished == [1]


@virtual
async def test_stop_while_connecting_to_nobody_ends_at_once() -> None:
    bus, _, _ = a_bus()

    @bus.subscribe(orders, group="g")
    async def handle(order: dict[str, Any]) -> None: ...

    async with bus.serving():
        consumer = consumer_of(bus)
        transport: Any = bus.transport

        async def subscribe(*args: Any) -> Any:
            raise Unavailable("gone")

        async def receive(*args: Any) -> Any:
            from switchgear.errors import Lost

            raise Lost("gone")

        transport.subscribe = subscribe
        source: Any = consumer.source
        source.receive = receive
        await until(lambda: consumer.state == "reconnecting" and consumer.source is None)
        began = now()
    assert now() - began < 1


@virtual
async def test_leaving_is_quick_when_nothing_is_to_be_done() -> None:
    bus, _, _ = a_bus()

    @bus.subscribe(orders, group="g")
    async def handle(order: dict[str, Any]) -> None: ...

    async with bus.serving():
        await asyncio.sleep(5.3)
        began = now()
    assert now() - began < 0.5


@virtual
async def test_what_the_last_receive_brings_is_given_back() -> None:
    bus, events, _ = a_bus()

    @bus.subscribe(orders, group="g", concurrency=1)
    async def handle(order: dict[str, Any]) -> None:
        await asyncio.sleep(2)

    async with bus.serving():
        await bus.publish(orders, {"k": "a", "n": 0})
        consumer = consumer_of(bus)
        await until(consumer.running)
        source: Any = consumer.source
        (group,) = source._groups.values()
        real, verdicts = source.settle, []

        async def settle(batch: list[Settlement]) -> Any:
            verdicts.extend(s.verdict for s in batch)
            return await real(batch)

        source.settle = settle
        leaving = asyncio.create_task(consumer.stop(now() + 10))
        await asyncio.sleep(0.1)
        await bus.publish(orders, {"k": "b", "n": 1})
        await leaving
        assert len(list(group.unsettled())) == 1
        assert not group._counts
        assert events["handled"] == 1
        assert verdicts.count(Verdict.ACK) == 1


@virtual
async def test_a_def_handler_is_waited_for_until_the_deadline_and_then_left_alone() -> None:
    bus, events, _ = a_bus()
    bus._code["grace"] = 1.0
    gate, begun = threading.Event(), threading.Event()

    @bus.subscribe(orders, group="g")
    def handle(order: dict[str, Any]) -> None:
        begun.set()
        gate.wait()

    try:
        async with bus.serving():
            await bus.publish(orders, {"k": "a"})
            await until(lambda: begun.wait(0.01))  # for a thread this time is no quicker than the real one
            source: Any = consumer_of(bus).source
            real, verdicts = source.settle, []

            async def settle(batch: list[Settlement]) -> Any:
                verdicts.extend(s.verdict for s in batch)
                return await real(batch)

            source.settle = settle
            began = now()
        assert 0.5 < now() - began < 1.5
        assert bus._abandoned
        assert verdicts == []
        assert not events.seen
        assert asyncio.all_tasks() == {asyncio.current_task()}
    finally:
        gate.set()


async def test_a_def_handler_that_ends_in_time_is_acknowledged() -> None:
    bus, events, _ = a_bus()
    gate, begun = threading.Event(), threading.Event()

    @bus.subscribe(loose, group="g")
    def handle(order: dict[str, Any]) -> None:
        begun.set()
        gate.wait()

    async with bus.serving():
        await bus.publish(loose, {"k": "a"})
        await until(begun.is_set)
        asyncio.get_running_loop().call_later(0.2, gate.set)
    assert events.seen == {"handled": 1}
    assert not bus._abandoned


@pytest.mark.parametrize("swallows", [False, True])
@virtual
async def test_cleaning_up_may_fail_or_take_its_time(swallows: bool) -> None:
    bus, events, letters = a_bus()
    bus._code["grace"] = 4.0

    @bus.subscribe(orders, group="g", dead_letter=BURIED)
    async def handle(order: dict[str, Any]) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if swallows:
                return
            raise ValueError("while cleaning up") from None

    async with bus.serving():
        await bus.publish(orders, {"k": "a"})
        await until(lambda: consumer_of(bus).running())
        group = group_of(bus)
    assert len(list(group.unsettled())) == (0 if swallows else 1)
    assert events["handled"] == int(swallows)
    assert not letters.found


@virtual
async def test_a_stop_while_the_source_is_being_left_leaves_it_all_the_same() -> None:
    from switchgear.errors import Lost

    bus, _, _ = a_bus()

    @bus.subscribe(orders, group="g")
    async def handle(order: dict[str, Any]) -> None: ...

    async with bus.serving():
        consumer = consumer_of(bus)
        source: Any = consumer.source
        closed: list[bool] = []
        real = source.close

        async def close() -> None:
            await asyncio.sleep(2)
            await real()
            closed.append(True)

        async def receive(*args: Any) -> Any:
            raise Lost("gone")

        source.close, source.receive = close, receive
        await until(lambda: consumer.source is None)
    assert closed == [True]
