"""Churn: members come and go all at once."""

from __future__ import annotations

import asyncio

from switchgear import Bus, Router
from switchgear_conformance.case import case
from switchgear_conformance.context import Context, numbered
from switchgear_conformance.member import PATIENCE, bodies, each_once, out

from .shutdown import ORDERS, exactly, log_to


@case(27, bound=60)
async def churn(c: Context) -> None:
    """Members of a group come and go all at once, leaving half of what they took: the last is handed all the rest."""
    t = await c.open()
    await (await c.join(t, c.name())).close()  # the group begins
    orders = numbered(200)
    settled: list[bytes | None] = []

    async def publish() -> None:
        for begin in range(0, 200, 10):
            await c.stored(t, *(out(c.name(), order) for order in orders[begin : begin + 10]))
            await asyncio.sleep(0.002)

    async def come_and_go() -> None:
        for _ in range(3):
            m = await c.join(t, c.name())
            found = await m.receive(6)
            half = found[: len(found) // 2]
            await m.settle(half)
            settled.extend(bodies(half))
            await m.close()

    await asyncio.gather(publish(), *(come_and_go() for _ in range(6)))
    last = await c.join(t, c.name())
    ends = c.time() + PATIENCE
    while set(map(str.encode, orders)) - set(settled) and c.time() < ends:
        found = await last.receive()
        await last.settle(found)
        settled += bodies(found)
    await last.nothing()
    await last.close()
    # what is acknowledged behind a gap is not stored where a position is acknowledged
    each_once(set(settled) if last.cumulative else settled, orders)


@case(27, "groups", level="bus", bound=60)
async def churn_through_bus(c: Context) -> None:
    """Subscriptions are opened and closed all at once, of several buses and within one; then everything is handled."""
    publisher = await c.opened(c.bus())
    log = c.log()
    orders = numbered(300)

    async def publish() -> None:
        for begin in range(0, 300, 10):
            await publisher.publish_many(ORDERS, orders[begin : begin + 10])
            await asyncio.sleep(0.002)

    async def come_and_go(bus: Bus, *routers: Router) -> None:
        for _ in range(4):
            async with bus.serving(*routers):
                await asyncio.sleep(c.random.uniform(0, 0.03))

    buses = [c.bus() for _ in range(3)]
    routers = [Router() for _ in range(3)]
    for one in (*buses, *routers):
        log_to(one, log, pause=0.001)
    first = c.bus()
    log_to(first, log)
    async with first.serving():
        pass  # the group begins
    await asyncio.gather(
        publish(), *map(come_and_go, buses), *(come_and_go(publisher, router) for router in routers)
    )  # fmt: skip
    await c.serve(first)
    await log.reach(300)
    await log.quiet()
    exactly(log, orders)
