"""Opening, serving, draining, closing; in every order that programs do it."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from switchgear import Bus, ConfigurationError, Refused, Router, Topic, Unavailable
from switchgear import core as core_module
from switchgear.testing.clock import resolve
from tests.support.virtual import virtual

orders = Topic("orders", dict)


def memory_bus(name: str = "tests", **more: Any) -> Bus:
    return Bus(f"memory://{name}", name=name, config={}, **more)


class Got:
    """What a handler was given, and a way to wait for it."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._changed = asyncio.Event()

    def add(self, value: Any) -> None:
        self.values.append(value)
        self._changed.set()

    async def until(self, n: int) -> list[Any]:
        while len(self.values) < n:
            self._changed.clear()
            await self._changed.wait()
        return self.values


@virtual
async def test_serving_is_ready_on_enter_and_drained_on_exit() -> None:
    bus, got = memory_bus(), Got()

    @bus.subscribe(orders, group="billing")
    async def bill(order: dict[str, int]) -> None:
        await asyncio.sleep(1)
        got.add(order["n"])

    async with bus.serving():
        assert bus.health().ready
        assert bus.health().detail == {"broker": "connected", "orders → billing": "active"}
        for n in range(5):
            await bus.publish(orders, {"n": n})
        await asyncio.sleep(0.5)
    assert sorted(got.values) == [0, 1, 2, 3, 4], "what had begun was finished"
    assert not bus.health().ready


@virtual
async def test_nested_and_reopened() -> None:
    bus, got = memory_bus(), Got()

    @bus.subscribe(orders, group="billing")
    async def bill(order: dict[str, int]) -> None:
        got.add(order["n"])

    for turn in range(3):
        async with bus:
            async with bus, bus.serving():
                await bus.publish(orders, {"n": turn})
                await got.until(turn + 1)
            await bus.publish(orders, {"n": -1})
            assert bus.transport is not None
        assert bus._open is None
    assert got.values == [0, 1, 2]


@virtual
async def test_routers_come_and_go_while_the_bus_is_open() -> None:
    bus, first, second = memory_bus(), Got(), Got()
    one, two = Router(), Router()

    @one.subscribe(orders, group="one")
    async def handle_one(order: dict[str, int]) -> None:
        first.add(order["n"])

    @two.subscribe(orders, group="two")
    async def handle_two(order: dict[str, int]) -> None:
        second.add(order["n"])

    async with bus.serving(one):
        async with bus.serving(two):
            await bus.publish(orders, {"n": 1})
            await first.until(1)
            await second.until(1)
            assert set(bus.health().detail) == {"broker", "orders → one", "orders → two"}
        await bus.publish(orders, {"n": 2})
        await first.until(2)
        assert second.values == [1]
        assert set(bus.health().detail) == {"broker", "orders → one"}


@virtual
async def test_a_bus_that_serves_nothing_of_its_own_serves_routers_given() -> None:
    bus, router = memory_bus(), Router()
    async with bus.serving(), bus.serving(router):
        assert bus.health().detail == {"broker": "connected"}


@virtual
async def test_included_routers_belong_to_the_bus_those_filled_later_too() -> None:
    bus, inner, outer = memory_bus(), Router(), Router()
    bus.include(outer)
    outer.include(inner)
    got = Got()

    @inner.subscribe(orders, group="late")
    async def handle(order: dict[str, int]) -> None:
        got.add(order["n"])

    async with bus.serving():
        await bus.publish(orders, {"n": 1})
        await got.until(1)
    with pytest.raises(ConfigurationError, match="cannot include itself"):
        inner.include(outer)


@virtual
async def test_an_error_of_the_body_goes_through_and_everything_is_drained() -> None:
    bus, got = memory_bus(), Got()

    @bus.subscribe(orders, group="billing")
    async def bill(order: dict[str, int]) -> None:
        await asyncio.sleep(1)
        got.add(order["n"])

    with pytest.raises(ZeroDivisionError):
        async with bus.serving():
            await bus.publish(orders, {"n": 1})
            await asyncio.sleep(0.5)
            _ = 1 / 0
    assert got.values == [1]
    assert bus._open is None


@virtual
async def test_a_cancelled_program_drains() -> None:
    bus, got = memory_bus(), Got()

    @bus.subscribe(orders, group="billing")
    async def bill(order: dict[str, int]) -> None:
        await asyncio.sleep(1)
        got.add(order["n"])

    async def program() -> None:
        async with bus.serving():
            await bus.publish(orders, {"n": 1})
            await asyncio.get_running_loop().create_future()

    task = asyncio.create_task(program())
    await asyncio.sleep(0.5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert got.values == [1]


@virtual
async def test_two_who_open_at_once_share_and_two_who_leave_close_once() -> None:
    bus = memory_bus()

    async def use(pause: float) -> object:
        async with bus:
            await asyncio.sleep(pause)
            return bus.transport

    assert len({id(t) for t in await asyncio.gather(*(use(n / 10) for n in range(5)))}) == 1
    assert bus._open is None


@virtual
async def test_who_opens_while_another_drains_gets_a_bus_that_works() -> None:
    bus, got = memory_bus(), Got()

    @bus.subscribe(orders, group="billing")
    async def bill(order: dict[str, int]) -> None:
        await asyncio.sleep(5)
        got.add(order["n"])

    async def serve() -> None:
        async with bus.serving():
            await bus.publish(orders, {"n": 1})
            await asyncio.sleep(1)

    serving = asyncio.create_task(serve())
    await asyncio.sleep(2)  # it drains now
    async with bus:
        await serving
        assert got.values == [1]
        await bus.publish(orders, {"n": 2})


@virtual
async def test_a_handler_may_publish_while_the_bus_drains() -> None:
    bus, seen = memory_bus(), Got()
    done = Topic("done", dict)

    @bus.subscribe(orders, group="billing")
    async def bill(order: dict[str, int]) -> None:
        await asyncio.sleep(1)
        async with bus:
            await bus.publish(done, order)
        seen.add(order["n"])

    async with bus.serving():
        await bus.publish(orders, {"n": 1})
        await asyncio.sleep(0.5)
    assert seen.values == [1]


@virtual
async def test_the_grace_bounds_the_drain() -> None:
    bus = memory_bus(grace=2)
    loop = asyncio.get_running_loop()
    hung: asyncio.Future[None] = loop.create_future()

    @bus.subscribe(orders, group="billing")
    async def bill(order: dict[str, int]) -> None:
        await hung

    async with bus.serving():
        await bus.publish(orders, {"n": 1})
        await asyncio.sleep(0.5)
        began = loop.time()
    assert loop.time() - began == pytest.approx(2.0, abs=1.1)
    resolve(hung)


@virtual
async def test_a_declaration_that_is_wrong_is_raised_on_enter_and_leaves_nothing_open() -> None:
    bus = memory_bus()

    @bus.subscribe(Topic("orders", dict, order="none"), group="billing", order="key")
    async def bill(order: dict[str, int]) -> None: ...

    with pytest.raises(ConfigurationError, match="more than the topic's plan"):
        async with bus.serving():
            pytest.fail("it serves")
    assert bus._open is None


class Away:
    """A memory transport, or a source of it, whose broker is not there at first, or breaks later."""

    def __init__(self, inner: Any, errors: list[Exception]) -> None:
        self._inner, self._errors = inner, errors

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def connect(self, deadline: float) -> None:
        if self._errors:
            raise self._errors.pop(0)
        await self._inner.connect(deadline)

    async def subscribe(self, subscription: Any, revoked: Any) -> Any:
        return Away(await self._inner.subscribe(subscription, revoked), self._errors)

    async def receive(self, limit: int, held: Any = ()) -> Any:
        if self._errors:
            raise self._errors.pop(0)
        return await self._inner.receive(limit, held)


@pytest.fixture
def errors(monkeypatch: pytest.MonkeyPatch) -> list[Exception]:
    """What the next connects of any bus raise."""
    found: list[Exception] = []
    open_transport = core_module.open_transport
    monkeypatch.setattr(core_module, "open_transport", lambda url, tuning: Away(open_transport(url, tuning), found))
    return found


@virtual
async def test_serving_waits_for_a_broker_that_is_away(errors: list[Exception]) -> None:
    bus, got = memory_bus(), Got()
    errors[:] = [Unavailable("connection refused")] * 8

    @bus.subscribe(orders, group="billing")
    async def bill(order: dict[str, int]) -> None:
        got.add(order["n"])

    async with bus.serving():
        assert errors == []
        await bus.publish(orders, {"n": 1})
        await got.until(1)


@virtual
async def test_a_wrong_password_ends_the_waiting(errors: list[Exception]) -> None:
    bus = memory_bus()
    errors[:] = [*[Unavailable("connection refused")] * 8, Refused("wrong password")]

    @bus.subscribe(orders, group="billing")
    async def bill(order: dict[str, int]) -> None: ...

    with pytest.raises(Refused, match="wrong password"):
        async with bus.serving():
            pytest.fail("it serves")
    assert bus._open is None


@virtual
async def test_a_subscription_that_ends_for_good_shows_at_once_and_is_raised_at_the_exit(
    errors: list[Exception],
) -> None:
    bus = memory_bus()

    @bus.subscribe(orders, group="billing")
    async def bill(order: dict[str, int]) -> None: ...

    with pytest.raises(KeyError, match="bug in receive"):
        async with bus.serving():
            assert bus.health().live
            errors.append(KeyError("bug in receive"))
            assert bus._open is not None
            await bus._open.failed.wait()
            assert not bus.health().live
            assert not bus.health().ready
    assert bus._open is None


@virtual
async def test_health_may_be_asked_from_any_thread() -> None:
    bus = memory_bus()
    found: list[Any] = []
    async with bus:
        thread = threading.Thread(target=lambda: found.append(bus.health()))
        thread.start()
        await asyncio.to_thread(thread.join)
    await asyncio.get_running_loop().shutdown_default_executor()
    assert found[0].ready
    assert found[0].detail == {"broker": "connected"}


@virtual
async def test_health_of_a_bus_that_was_never_open() -> None:
    health = memory_bus().health()
    assert (health.live, health.ready, dict(health.detail)) == (True, False, {"broker": "not open"})


@virtual
async def test_opening_and_closing_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    for _ in range(3):
        bus = memory_bus()

        @bus.subscribe(orders, group="billing")
        def bill(order: dict[str, int]) -> None: ...

        async with bus.serving():
            await bus.publish(orders, {"n": 1})
            await asyncio.sleep(1)
    for thread in set(threading.enumerate()) - before:
        thread.join()
