"""What members see when others come and go before anything is settled."""

from __future__ import annotations

import asyncio

from switchgear import Topic
from switchgear_conformance.case import case
from switchgear_conformance.context import Context, numbered
from switchgear_conformance.member import bodies, each_once, out

from .handover import fenced, keyed, lease, within


@case(87, "groups")
async def first_rebalance_at_new(c: Context) -> None:
    """A new group that changes its members before anything is settled skips nothing."""
    t = await c.open()
    one = await c.join(await c.open(), c.name())
    await c.stored(t, *(out(c.name(), body) for body in numbered(20)))
    assert await one.take(5)
    two = await c.join(await c.open(), c.name())
    await c.stored(t, *(out(c.name(), body) for body in numbered(30)[20:]))
    await one.close()
    three = await c.join(await c.open(), c.name())
    await two.close()
    await c.stored(t, out(c.name(), "30"))
    each_once(bodies(await three.drain(31)), numbered(31))


@case(87, "fences", part="lanes")
async def first_rebalance_at_new_lanes(c: Context) -> None:
    """A topic that is assigned to another member before anything of it is settled is handed to it as a whole."""
    a, b = c.name("part0"), c.name("part1")
    t = await c.open()
    old = await lease(c, t, "one")
    one = await fenced(c, await c.open(), {a: old, b: old})
    await c.stored(t, *(out(topic, f"{topic}/{n}", "k") for n in range(8) for topic in (a, b)))
    taken = await one.take(10)
    await one.source.assign({a: old})
    new = await lease(c, t, "two")
    two = await fenced(c, await c.open(), {b: new})
    await one.source.assign({a: new})
    found = await two.drain(8)
    assert bodies(found) == [f"{b}/{n}".encode() for n in range(8)], f"the new owner got {bodies(found)}"
    kept = await one.drain(8)
    assert bodies(kept) == [f"{a}/{n}".encode() for n in range(8)], f"the old owner kept {bodies(kept)}"
    assert taken


@case(87, "groups", level="bus")
async def first_rebalance_at_new_through_bus(c: Context) -> None:
    """Members that come and go before a new group has settled anything leave nothing unhandled."""
    await changing(c, Topic("orders", str))


@case(87, "order>=key", level="bus", part="keys")
async def first_rebalance_at_new_keys_through_bus(c: Context) -> None:
    """The same with an order to keep: nothing is skipped, and each key is in order."""
    log = await changing(c, keyed)
    for key in "abc":
        found = [order for order in log if order[0] == key]
        assert found == [f"{key}:{n}" for n in range(20)], f"key {key} came as {found}"


async def changing(c: Context, topic: Topic[str]) -> list[str]:
    """A member that finishes nothing, a second that comes, and the first that goes; what was handled, in order."""
    first, second = c.bus(grace=0.5), c.bus()
    began, log = c.log(), c.log()

    @first.subscribe(topic, group="group", concurrency=4)
    async def wait(order: str) -> None:
        began.add(order)
        await asyncio.Event().wait()

    @second.subscribe(topic, group="group")
    async def handle(order: str) -> None:
        log.add(order)

    sent = [f"{key}:{n}" for n in range(20) for key in "abc"]
    async with first.serving():
        await first.publish_many(topic, sent[:30])
        await began.reach(1)
        await c.serve(second)
        await first.publish_many(topic, sent[30:])
    await log.reach(60, within(c))
    each_once([order.encode() for order in log.items], sent)
    found: list[str] = log.items
    return found
