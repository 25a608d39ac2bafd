"""The wiring: middlewares, observers, what a publish inside a handler goes on with."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from switchgear import Bus, Handler, Message, Reject, Topic
from switchgear.testing import in_memory
from switchgear_conformance.virtual import LoopTime
from switchgear_memory.transport import MemoryTransport
from tests.support.serving import fresh
from tests.support.virtual import virtual

orders = Topic("orders", dict)
paid = Topic("paid", dict)


async def test_a_publish_inside_a_handler_goes_on_with_correlation_cause_and_trace_and_no_user_headers() -> None:
    bus = Bus("memory://", name="tests", config={})
    seen: list[Message[Any]] = []

    @bus.subscribe(orders, group="g")
    async def handle(order: dict[str, int]) -> None:
        await bus.publish(paid, {"by": "handler"})
        await asyncio.create_task(bus.publish(paid, {"by": "task"}))  # type: ignore[arg-type]
        await bus.publish_many(paid, [{"by": "many"}])

    @bus.subscribe(paid, group="g", to="done")
    async def pay(body: dict[str, str]) -> dict[str, str]:
        return body

    @bus.subscribe("done", group="g")
    async def collect(body: dict[str, str], message: Message[Any]) -> None:
        seen.append(message)

    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with in_memory(bus) as watch:
        core = bus._open
        assert core is not None
        writer = await core.writer(orders, core.loop.time() + 5)
        out = writer.message({"n": 1}, {"headers": {"tenant": "a"}}, None)
        out.headers.append(("ce-traceparent", trace.encode()))
        await core.emit(out)
        await watch.idle()
        handled = watch.handled(paid, group="g")
        assert [m.body["by"] for m in handled] == ["handler", "task", "many"]
        for message in handled:
            attributes = message._attributes()
            assert (message.correlation_id, attributes.causation_id) == (out.dedup, out.dedup)
            assert attributes.traceparent == trace
            assert dict(message.headers) == {}
        for before, after in zip(handled, seen, strict=True):
            assert after.correlation_id == out.dedup
            assert after._attributes().causation_id == before.id
            assert after.id == f"{before.id}>done"


async def test_a_publish_beside_a_handler_begins_anew() -> None:
    bus = Bus("memory://", name="tests", config={})

    @bus.subscribe(orders, group="g")
    async def handle(order: dict[str, int]) -> None: ...

    async with in_memory(bus) as watch:
        first = await bus.publish(orders, {})
        await watch.idle()
        (message,) = watch.handled(orders, group="g")
        assert message.correlation_id == first
        assert message._attributes().causation_id is None


async def test_middlewares_wrap_from_the_outside_in_and_see_errors() -> None:
    told: list[str] = []

    def named(name: str) -> Any:
        def wrap(handle: Handler) -> Handler:
            async def around(message: Message[Any]) -> object:
                told.append(f"{name} in")
                try:
                    return await handle(message)
                except Reject as error:
                    told.append(f"{name} saw {error}")
                    raise
                finally:
                    told.append(f"{name} out")

            return around

        return wrap

    bus = Bus("memory://", config={}, middleware=[named("bus1"), named("bus2")])

    @bus.subscribe(orders, group="g", middleware=[named("own")])
    async def handle(order: dict[str, bool]) -> None:
        told.append("handler")
        if order["bad"]:
            raise Reject("bad")

    @bus.subscribe(paid, group="g")
    async def pay(body: dict[str, int]) -> None:
        told.append("pay")

    async with in_memory(bus) as watch:
        await bus.publish(orders, {"bad": False})
        await watch.idle()
        assert told == ["bus1 in", "bus2 in", "own in", "handler", "own out", "bus2 out", "bus1 out"]
        told.clear()
        await bus.publish(orders, {"bad": True})
        await watch.idle()
        assert told[3:] == ["handler", "own saw bad", "own out", "bus2 saw bad", "bus2 out", "bus1 saw bad", "bus1 out"]
        told.clear()
        await bus.publish(paid, {})
        await watch.idle()
        assert told == ["bus1 in", "bus2 in", "pay", "bus2 out", "bus1 out"]


class Counting:
    """An observer."""

    def __init__(self) -> None:
        self.seen: Counter[tuple[str, str, str | None]] = Counter()

    def count(self, event: str, topic: str, group: str | None, n: int) -> None:
        self.seen[event, topic, group] += n


async def test_observers_count_what_happens() -> None:
    counting, other = Counting(), Counting()
    bus = Bus("memory://", config={}, observers=[counting, other])

    @bus.subscribe(orders, group="g", to=paid)
    async def handle(order: dict[str, bool]) -> dict[str, int]:
        if order["bad"]:
            raise Reject("bad")
        return {}

    async with in_memory(bus) as watch:
        for n in range(4):
            await bus.publish(orders, {"bad": n == 3})
        await bus.publish(orders, {"bad": False}, expires=-1)
        await watch.idle()
    assert counting.seen == other.seen
    assert counting.seen == {
        ("published", "orders", None): 5,
        ("published", "paid", None): 3,
        ("handled", "orders", "g"): 3,
        ("rejected", "orders", "g"): 1,
        ("dead_lettered", "orders", "g"): 1,
        ("expired", "orders", "g"): 1,
    }


@pytest.mark.parametrize("url", ["memory://?namespace=blue.", "memory://"])
async def test_the_namespace_is_before_every_name(url: str) -> None:
    bus = Bus(url, config={"namespace": "blue."})

    @bus.subscribe(orders, group="g")
    async def handle(order: dict[str, int]) -> None: ...

    async with bus.serving():
        await bus.publish(orders, {})
        assert bus.namespace == "blue."
        transport: Any = bus.transport
        assert [(info.name, info.groups) for info in await transport.topics("")] == [("blue.orders", ("blue.g",))]
        assert set(await transport.read("")) == {"blue.sg.plan.orders"}


async def test_an_observer_that_fails_affects_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def count(self, event: str, topic: str, group: str | None, n: int) -> None:
            raise RuntimeError("no metrics today")

    bus = Bus("memory://", observers=[Broken()])
    seen: list[int] = []

    @bus.subscribe("numbers", group="g")
    async def handle(n: int) -> None:
        seen.append(n)

    async with in_memory(bus) as trace:
        await bus.publish("numbers", 1)
        await trace.idle()
    assert seen == [1]
    assert "no metrics today" in caplog.text


async def test_a_bus_that_only_subscribes_moves_what_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    moved = asyncio.Event()

    async def promote(transport: MemoryTransport, limit: int) -> None:
        moved.set()

    monkeypatch.setattr(MemoryTransport, "promote", promote)
    bus = Bus("memory://", name="tests", config={})

    @bus.subscribe(orders, group="g")
    async def handle(order: dict[str, int]) -> None: ...

    async with bus.serving(), asyncio.timeout(5):
        await moved.wait()


@virtual
async def test_a_delayed_message_is_looked_for_at_once_only_if_it_is_due_before_the_next_look() -> None:
    bus, looks = Bus(fresh(), name="tests", config={}), list[float]()
    bus._test_clock = LoopTime()
    loop = asyncio.get_running_loop()
    async with bus:
        transport: Any = bus.transport
        promote = transport.promote

        async def watched(limit: int) -> Any:
            looks.append(loop.time())
            return await promote(limit)

        transport.promote = watched
        await bus.publish(orders, {"n": 0}, delay=60)
        await asyncio.sleep(1.0)
        looks.clear()
        for n in range(100):
            await bus.publish(orders, {"n": n}, delay=60)
            await asyncio.sleep(0.001)
        assert len(looks) <= 1, "each message that is due in a minute was looked for"
        looks.clear()
        now = loop.time()
        await bus.publish(orders, {"n": 0}, delay=0.05)
        await asyncio.sleep(0.06)
        assert looks[0] == pytest.approx(now, abs=0.002)
        assert looks[-1] >= now + 0.049
