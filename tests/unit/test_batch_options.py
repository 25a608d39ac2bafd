"""What else is declared on a batch subscription counts for it, or is refused."""

from __future__ import annotations

import asyncio

import pytest

from switchgear import Batch, Bus, Message, Middleware, Reject, Retry, Topic, Unsupported, testing
from switchgear.guarantees import explain
from switchgear.knobs import Handler

orders = Topic("orders", int)


def seen(handle: Handler) -> Handler:
    return handle


async def test_timeout_bounds_a_batch() -> None:
    bus = Bus("memory://")
    calls: list[list[int]] = []

    @bus.subscribe(orders, group="g", batch=Batch(10), timeout=0.05, retry=Retry(attempts=1))
    async def handle(batch: list[int]) -> None:
        calls.append(batch)
        await asyncio.Event().wait()

    async with testing.in_memory(bus) as trace:
        await bus.publish_many(orders, range(3))
        await trace.idle()
        dead = trace.dead_letters(orders, group="g")
    assert sorted(m.body for m in dead) == [0, 1, 2]
    assert [n for batch in calls for n in batch] == [0, 1, 2]


@pytest.mark.parametrize(("of_bus", "of_subscription"), [([seen], []), ([], [seen])])
async def test_middleware_with_a_batch_is_refused(of_bus: list[Middleware], of_subscription: list[Middleware]) -> None:
    bus = Bus("memory://", middleware=of_bus)

    @bus.subscribe(orders, group="g", batch=Batch(10), middleware=of_subscription)
    async def handle(batch: list[int]) -> None: ...

    with pytest.raises(Unsupported, match=r"middleware .*would not see a batch"):
        async with bus.serving():
            pass
    [refused] = [need for need in (await explain(bus)).needs if need.how == "refused"]
    assert refused.need == "middleware"


async def test_a_trace_has_what_batches_handled() -> None:
    bus = Bus("memory://")

    @bus.subscribe(orders, group="g", batch=Batch(10))
    async def handle(batch: list[Message[int]]) -> list[Exception | None]:
        return [Reject("odd") if m.body % 2 else None for m in batch]

    async with testing.in_memory(bus) as trace:
        await bus.publish_many(orders, range(4))
        await trace.idle()
        assert [m.body for m in trace.handled(orders, group="g")] == [0, 2]
