"""Capabilities: what is acknowledged out of order, and how long a member may keep what it was handed."""

from __future__ import annotations

import asyncio

from switchgear import Bus, Message, Topic
from switchgear_conformance.case import case
from switchgear_conformance.context import Context, listen
from switchgear_conformance.member import EXTEND, bodies, each_once, out

ORDERS = Topic("orders", str)


@case(39, "groups", "persistent")
async def out_of_order_ack(c: Context) -> None:
    """The third of three is acknowledged, the second dropped with its consumer: the second returns, not the others."""
    t = await c.open()
    m = await c.join(t, c.name())
    await c.stored(t, *(out(c.name(), body, "k") for body in ("1", "2", "3")))
    first, second, third = await m.take(3)
    await m.settle([first])
    await m.settle([third])
    await m.close()
    await t.close()
    again = await c.join(await c.open(), c.name())
    returned = await again.take(1 if not again.cumulative else 2)  # one position a lane: what is ahead of it returns
    expected = [second] if not again.cumulative else [second, third]
    each_once(bodies(returned), [d.body or b"" for d in expected])
    await again.settle(returned)
    await again.nothing()
    await again.close()


@case(39, "groups", "persistent", level="bus")
async def out_of_order_ack_through_bus(c: Context) -> None:
    """A bus ends while it handles the second of three: the next bus handles the second alone."""
    bus, log, begun = c.bus(grace=0.3), c.log(), asyncio.Event()

    @bus.subscribe(ORDERS, group="group")
    async def handle(order: str) -> None:
        if order == "2":
            begun.set()
            await asyncio.Event().wait()
        log.add(order)

    async with bus.serving():
        await bus.publish_many(ORDERS, ["1", "2", "3"])
        await log.reach(2)
        await asyncio.wait_for(begun.wait(), 5)
    assert sorted(log.items) == ["1", "3"]
    after, more = c.bus(), c.log()
    listen(after, ORDERS, more)
    await c.serve(after)
    await more.reach(1)
    await more.quiet()
    assert more.items == ["2"], f"after a stop that left '2' unhandled, {more.items} were handled"


# ---- leases


@case(40, "groups", "individual", "lease", bound=60.0)
async def lease_extension(c: Context) -> None:
    """EXTEND keeps what was handed out from other members, for as long as it is repeated."""
    one, two = [await c.join(await c.open(), c.name(), lease=c.lease) for _ in range(2)]
    await c.stored(one.transport, out(c.name(), "a"))
    held = await one.one()
    ends = c.time() + 1.6 * c.lease
    while c.time() < ends:
        await one.settle([held], EXTEND, c.lease)
        await two.nothing(c.lease / 4)
    await one.settle([held])
    await two.nothing()
    await one.close()
    await two.close()


@case(40, "groups", "individual", "lease", part="ended", bound=60.0)
async def lease_extension_ended(c: Context) -> None:
    """What is neither settled nor extended goes to another member when its lease ends, not before, and uncounted."""
    one, two = [await c.join(await c.open(), c.name(), lease=c.lease) for _ in range(2)]
    await c.stored(one.transport, out(c.name(), "a"), out(c.name(), "b"))
    held = await one.take(2)
    taken = c.time()
    assert all(0 < d.until - taken <= c.lease + 0.01 for d in held), f"leases of {c.lease:g} s end at other times"
    again = await two.take(2, within=2 * c.lease + 5)
    assert c.time() - taken >= c.lease / 2, f"a lease of {c.lease:g} s ended after {c.time() - taken:.2f} s"
    each_once(bodies(again), ["a", "b"])
    if c.capabilities.counting == "exact":
        assert [d.deliveries for d in again] == [1, 1], "the end of a lease was counted as a failed delivery"
    await two.settle(again)
    await one.close()
    await two.nothing()
    await two.close()


@case(40, "groups", "lease", level="bus", bound=60.0)
async def lease_extension_through_bus(c: Context) -> None:
    """A handler that takes longer than the lease keeps its message: no other member handles it meanwhile."""
    log = c.log()

    def member() -> Bus:
        bus = c.bus()

        @bus.subscribe(ORDERS, group="group", lease=c.lease)
        async def handle(message: Message[str]) -> None:
            log.add(("begins", message.body, message.attempt))
            await asyncio.sleep(1.6 * c.lease)
            log.add(("ends", message.body, message.attempt))

        return bus

    buses = [await c.serve(member()) for _ in range(2)]
    await buses[0].publish(ORDERS, "slow")
    await log.reach(2, within=1.6 * c.lease + 10)
    await log.quiet()
    assert log.items == [("begins", "slow", 1), ("ends", "slow", 1)], f"while its handler was at work: {log.items}"
