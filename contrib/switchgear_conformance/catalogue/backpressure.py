"""Backpressure: who is slow is handed what there is room for, goes on afterwards, and stalls nobody else."""

from __future__ import annotations

import asyncio

from switchgear import Topic
from switchgear.driver import Settling
from switchgear_conformance.case import case
from switchgear_conformance.context import Context, numbered
from switchgear_conformance.member import bodies, each_once, out
from switchgear_conformance.watching import held

ORDERS = Topic("orders", str)
BACKLOG = 300
ROOM = 64  # deliveries: several times what two handlers at a time justify


@case(57)
async def backpressure(c: Context) -> None:
    """A source hands out no more than its limit, and nothing at 0; what it keeps ahead is bounded by `outstanding`."""
    t = await c.open()
    slow = await c.join(t, c.name(), outstanding=20)
    orders = numbered(BACKLOG)
    await c.stored(t, *(out(c.name(), order) for order in orders))
    taken = await slow.take(10)
    for _ in range(5):
        none = await slow.receive(0)
        assert none == [], f"receive(0) handed out {bodies(none)[:5]}"
    if c.capabilities.settling is Settling.INDIVIDUAL:  # else the rest of a lane waits for its owner
        other = await c.join(await c.open(), c.name(), outstanding=1000)
        rest = await other.drain(BACKLOG - 20)
        await other.close()
        await slow.settle(taken)
        last = await slow.drain(10)
        each_once(bodies([*taken, *rest, *last]), orders)
    else:
        await slow.settle(taken)
        each_once(bodies([*taken, *await slow.drain(BACKLOG - 10)]), orders)
    await slow.close()


@case(57, "groups", level="bus")
async def backpressure_through_bus(c: Context) -> None:
    """Handlers that stand still are fetched for within their room, however long the backlog grows; nothing is lost."""
    bus, publisher, log, go = c.bus(), await c.opened(c.bus()), c.log(), asyncio.Event()

    @bus.subscribe(ORDERS, group="billing", concurrency=2)
    async def bill(order: str) -> None:
        await go.wait()
        log.add(order)

    await c.serve(bus)
    orders = numbered(2 * BACKLOG)
    try:
        for begin, wait in ((0, c.quiet), (BACKLOG, 1.2)):  # longer than a source may go without being called
            await publisher.publish_many(ORDERS, orders[begin : begin + BACKLOG])
            await c.eventually(lambda: held(bus) >= 2, "two orders are being handled")
            await asyncio.sleep(wait)
            assert held(bus) <= ROOM, f"{held(bus)} messages are held for 2 handlers that stand still"
    finally:
        go.set()
    await log.reach(len(orders))
    await log.quiet()
    assert sorted(log.items) == sorted(orders), "after the handlers went on, messages are missing or came twice"


@case(58)
async def resume_after_saturation(c: Context) -> None:
    """After a time without room a source hands out what came meanwhile, and what comes then."""
    t = await c.open()
    m = await c.join(t, c.name())
    await c.stored(t, *(out(c.name(), order) for order in numbered(120)))
    taken = await m.take(20)
    for n in range(6):
        assert await m.receive(0) == []
        await c.stored(t, out(c.name(), f"meanwhile {n}"))
        await asyncio.sleep(0.2)
    await m.settle(taken)
    found = await m.drain(106)
    await c.stored(t, out(c.name(), "then"))
    found += await m.drain(1)
    meanwhile = [f"meanwhile {n}" for n in range(6)]
    each_once(bodies([*taken, *found]), [*numbered(120), *meanwhile, "then"])
    await m.nothing()
    await m.close()


@case(58, "groups", level="bus")
async def resume_after_saturation_through_bus(c: Context) -> None:
    """A subscription whose window was full for a while goes on with everything."""
    bus, publisher, log, go = c.bus(), await c.opened(c.bus()), c.log(), asyncio.Event()

    @bus.subscribe(ORDERS, group="billing", concurrency=4, window=20)
    async def bill(order: str) -> None:
        await go.wait()
        log.add(order)

    await c.serve(bus)
    orders = numbered(BACKLOG)
    try:
        await publisher.publish_many(ORDERS, orders)
        await asyncio.sleep(1.2)  # longer than a source may go without being called
    finally:
        go.set()
    await log.reach(BACKLOG)
    await publisher.publish_many(ORDERS, numbered(50, "then "))
    await log.reach(BACKLOG + 50)
    await log.quiet()
    assert sorted(log.items) == sorted([*orders, *numbered(50, "then ")])


@case(59, "groups")
async def slow_consumer_isolation(c: Context) -> None:
    """A group that keeps what it was handed does not stall another group of the same topic."""
    t = await c.open()
    slow, quick = await c.join(t, c.name(), group="slow"), await c.join(t, c.name(), group="quick")
    orders = numbered(BACKLOG)
    await c.stored(t, *(out(c.name(), order) for order in orders))
    taken = await slow.take(30)
    began = c.time()
    each_once(bodies(await quick.drain(BACKLOG)), orders)
    assert c.time() - began < 5, f"beside a slow group {BACKLOG} messages took {c.time() - began:.1f} s"
    await slow.settle(taken)
    each_once(bodies([*taken, *await slow.drain(BACKLOG - 30)]), orders)
    await slow.close()
    await quick.close()


@case(59, "groups", level="bus")
async def slow_consumer_isolation_through_bus(c: Context) -> None:
    """A group whose handlers stand still does not stall another group, not of the same bus either."""
    bus, quick, slow, go = c.bus(), c.log(), c.log(), asyncio.Event()

    @bus.subscribe(ORDERS, group="slow", concurrency=2)
    async def creep(order: str) -> None:
        await go.wait()
        slow.add(order)

    @bus.subscribe(ORDERS, group="quick")
    async def run(order: str) -> None:
        quick.add(order)

    await c.serve(bus)
    orders = numbered(BACKLOG)
    try:
        await bus.publish_many(ORDERS, orders)
        await quick.reach(BACKLOG, within=5)
        assert len(slow) == 0
    finally:
        go.set()
    await slow.reach(BACKLOG)
    assert sorted(quick.items) == sorted(slow.items) == sorted(orders)
