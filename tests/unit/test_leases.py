"""Leases while messages are held, and the time that handlers have."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import pytest

from switchgear import Batch, Depends, Message, Retry
from switchgear.driver import Settlement, Verdict
from switchgear.errors import NotSent, Unavailable
from switchgear.knobs import Handler
from switchgear.middleware.timeout import bounded
from switchgear.testing import in_memory
from tests.support.serving import BURIED, a_bus, consumer_of, loose, orders, turns, until
from tests.support.virtual import virtual

SOON = Retry(attempts=2, base=0.01, cap=0.01)


def now() -> float:
    return asyncio.get_running_loop().time()


@virtual
async def test_leases_are_extended_while_handled_and_while_waiting() -> None:
    bus, events, _ = a_bus()
    seen: list[int] = []

    @bus.subscribe(orders, group="g", lease=4, concurrency=1)
    async def handle(order: dict[str, Any]) -> None:
        seen.append(order["n"])
        await asyncio.sleep(30)

    async with bus.serving():
        for n in range(4):
            await bus.publish(orders, {"k": f"k{n}", "n": n})
        await until(lambda: events["handled"] == 4, 300)
    assert seen == [0, 1, 2, 3]
    assert events.seen == {"handled": 4}


@virtual
async def test_an_interruption_of_the_extensions_is_overcome() -> None:
    bus, events, _ = a_bus()
    calls = 0

    @bus.subscribe(orders, group="g", lease=10)
    async def handle(order: dict[str, Any]) -> None:
        nonlocal calls
        calls += 1
        await asyncio.sleep(60)

    async with bus.serving():
        source: Any = consumer_of(bus).source
        real, faults = source.settle, [Unavailable("gone"), NotSent("busy")]

        async def settle(batch: list[Settlement]) -> Any:
            if faults and batch[0].verdict is Verdict.EXTEND:
                error = faults.pop(0)
                if isinstance(error, Unavailable):
                    raise error
                return [error] * len(batch)
            return await real(batch)

        source.settle = settle
        await bus.publish(orders, {"k": "a"})
        await until(lambda: events["handled"] == 1)
    assert not faults
    assert calls == 1
    assert events.seen == {"handled": 1}


@pytest.mark.parametrize("batch", [False, True])
@virtual
async def test_a_handler_that_overruns_is_cancelled_counted_once_and_tried_again(batch: bool) -> None:
    bus, events, letters = a_bus()
    ended: list[float] = []

    async def hang() -> None:
        began = now()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(now() - began)

    if batch:

        @bus.subscribe(orders, group="g", max_handling=60, retry=SOON, dead_letter=BURIED, batch=Batch(5))
        async def handle_all(found: list[dict[str, Any]]) -> None:
            await hang()
    else:

        @bus.subscribe(orders, group="g", max_handling=60, retry=SOON, dead_letter=BURIED)
        async def handle(order: dict[str, Any]) -> None:
            await hang()

    async with bus.serving():
        await bus.publish(orders, {"k": "a"})
        await until(lambda: letters.found, 300)
        assert bus.health().ready
    assert ended == [pytest.approx(60, abs=1)] * 2
    assert letters.reasons() == ["TimeoutError: the handler took longer than max_handling=60 s"]
    assert events.seen == {"overrun": 2, "retried": 1, "dead_lettered": 1}


@virtual
async def test_waiting_for_a_retry_or_a_dead_letter_is_not_handling() -> None:
    bus, events, letters = a_bus()

    @bus.subscribe(orders, group="g", max_handling=1, retry=Retry(attempts=1), dead_letter=BURIED)
    async def handle(order: dict[str, Any]) -> None:
        raise ValueError("no")

    async with bus.serving():
        transport: Any = bus.transport
        real = transport.send

        async def send(batch: Any, deadline: float) -> Any:
            if batch[0].topic == "graves":
                await asyncio.sleep(4)
            return await real(batch, deadline)

        transport.send = send
        await bus.publish(orders, {"k": "a"})
        await until(lambda: letters.found)
        assert bus.health().ready
    assert events.seen == {"dead_lettered": 1}


@virtual
async def test_a_handler_that_returns_in_spite_of_its_cancellation_leaves_its_worker_well() -> None:
    bus, events, letters = a_bus()
    calls = 0

    @bus.subscribe(orders, group="g", max_handling=10, retry=SOON, dead_letter=BURIED, concurrency=1)
    async def handle(order: dict[str, Any]) -> None:
        nonlocal calls
        calls += 1
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            if order["n"]:
                raise

    async with bus.serving():
        await bus.publish(orders, {"k": "a", "n": 0})
        await bus.publish(orders, {"k": "a", "n": 1})
        await until(lambda: letters.found, 300)
    assert events.seen == {"handled": 1, "overrun": 3, "retried": 1, "dead_lettered": 1}
    assert calls == 3


@virtual
async def test_a_timeout_fails_one_attempt() -> None:
    bus, events, letters = a_bus()

    @bus.subscribe(orders, group="g", timeout=5, retry=SOON, dead_letter=BURIED)
    async def handle(order: dict[str, Any]) -> None:
        await asyncio.sleep(60)

    async with bus.serving():
        began = now()
        await bus.publish(orders, {"k": "a"})
        await until(lambda: letters.found)
    assert now() - began == pytest.approx(10, abs=0.5)
    assert letters.reasons() == ["TimeoutError: the handler took longer than its timeout of 5 s"]
    assert events.seen == {"retried": 1, "dead_lettered": 1}


@virtual
async def test_a_timeout_of_the_handlers_own_is_not_ours() -> None:
    bus, _, letters = a_bus()

    @bus.subscribe(orders, group="g", timeout=5, retry=Retry(attempts=1), dead_letter=BURIED)
    async def handle(order: dict[str, Any]) -> None:
        async with asyncio.timeout(1):
            await asyncio.sleep(60)

    async with bus.serving():
        await bus.publish(orders, {"k": "a"})
        await until(lambda: letters.found)
    assert letters.reasons() == ["TimeoutError"]


# ---- def handlers: real threads -------------------------------------------------------------------------------------


def bounded_once(handle: Handler) -> Handler:
    """What `timeout=` does, for the attempt that waits alone: the others take as long as the machine lets them."""
    limited = bounded(0.05, handle)
    return lambda message: limited(message) if (message.body["n"], message.attempt) == (0, 1) else handle(message)


@pytest.mark.parametrize("bound", ["timeout", "max_handling"])
@pytest.mark.parametrize("how", ["def", "executor", "dependency"])
async def test_a_def_handler_keeps_its_message_key_and_thread_until_it_returns(bound: str, how: str) -> None:
    bus, events, letters = a_bus()
    gate, begun = threading.Event(), threading.Event()
    running = 0
    seen: list[int] = []

    def body(order: dict[str, Any]) -> None:
        nonlocal running
        running += 1
        assert running == 1
        seen.append(order["n"])
        begun.set()
        if order["n"] == 0:
            gate.wait()
        running -= 1

    pool = ThreadPoolExecutor(4)
    knobs: Any = {"middleware": [bounded_once]} if bound == "timeout" else {"max_handling": 10}
    knobs |= {"retry": SOON, "lease": 4, "dead_letter": BURIED}
    if how == "executor":
        bus.subscribe(orders, group="g", executor=pool, **knobs)(body)
    elif how == "def":
        bus.subscribe(orders, group="g", **knobs)(body)
    else:

        def provide(message: Message[dict[str, Any]]) -> int:
            body(message.body)
            return 1

        async def handle(order: dict[str, Any], given: int) -> None: ...

        handle.__annotations__["given"] = Annotated[int, Depends(provide)]
        bus.subscribe(orders, group="g", **knobs)(handle)

    async with in_memory(bus) as trace:
        await bus.publish(orders, {"k": "a", "n": 0})
        await bus.publish(orders, {"k": "a", "n": 1})
        await until(begun.is_set)
        if bound == "max_handling":
            await trace._clock.advance(11, turns)
        await until(lambda: events["overrun"] == 1)
        await trace._clock.advance(30, turns)  # longer than its lease
        assert seen == [0]
        assert events.seen == {"overrun": 1}
        assert [d.token for d in consumer_of(bus).running()] == [1]
        gate.set()
        await until(lambda: events["retried"] == 1)
        await trace._clock.advance(0.02, turns)
        await until(lambda: events["handled"] == 2)
    assert seen == [0, 0, 1]
    assert events.seen == {"overrun": 1, "retried": 1, "handled": 2}
    assert not letters.found
    pool.shutdown()


async def test_a_def_handler_that_overran_fails_with_a_timeout_whatever_it_returned() -> None:
    bus, events, letters = a_bus()

    @bus.subscribe(loose, group="g", retry=Retry(attempts=1), timeout=0.02, dead_letter=BURIED)
    def handle(order: dict[str, Any]) -> None:
        time.sleep(0.1)

    async with bus.serving():
        await bus.publish(loose, {"k": "a"})
        await until(lambda: letters.found)
    assert letters.reasons() == ["TimeoutError: the handler took longer than its timeout of 0.02 s"]
    assert events.seen == {"overrun": 1, "dead_lettered": 1}


# ---- pull -----------------------------------------------------------------------------------------------------------


@virtual
async def test_a_pulled_message_is_kept_no_longer_than_max_handling() -> None:
    bus, events, _ = a_bus()
    async with bus, bus.consumer(orders, group="g", start="earliest") as consumer:
        await bus.publish(orders, {"k": "a"})
        message = await anext(consumer)
        await asyncio.sleep(1700)
        assert not events.seen
        again = asyncio.ensure_future(anext(consumer))
        await asyncio.sleep(200)
        assert events.seen == {"overrun": 1}
        newer = await again
        assert newer.id == message.id
        assert newer.attempt == 2
        await newer.ack()
        del message
    assert events["handled"] == 1
