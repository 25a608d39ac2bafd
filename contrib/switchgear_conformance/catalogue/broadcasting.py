"""Capabilities: subscribers without a group."""

from __future__ import annotations

from switchgear import Topic
from switchgear_conformance.case import case
from switchgear_conformance.context import Context, listen, numbered
from switchgear_conformance.member import RETRY, bodies, each_once, out

ORDERS = Topic("orders", str)


@case(32, "broadcast")
async def broadcast(c: Context) -> None:
    """Every subscriber without a group sees everything from then on, and nothing of before."""
    t = await c.open()
    await c.stored(t, out(c.name(), "before"))
    members = [await c.join(await c.open(), c.name(), group=None) for _ in range(2)]
    await c.stored(t, *(out(c.name(), body) for body in numbered(60)))
    for m in members:
        each_once(bodies(await m.drain(60)), numbered(60))
        await m.nothing()
        await m.close()


@case(32, "broadcast", part="retry")
async def broadcast_retry(c: Context) -> None:
    """Where a broadcast takes RETRY, it returns when its time has come, to the same subscriber alone."""
    t = await c.open()
    one, other = await c.join(t, c.name(), group=None), await c.join(t, c.name(), group=None)
    longest = one.source.capabilities.retry_delay
    await c.stored(t, out(c.name(), "a"))
    first = await one.one()
    await other.drain(1)
    if longest is not None:  # else the core keeps the retries
        delay = min(longest, 0.3)
        began = c.time()
        await one.settle([first], RETRY, delay)
        first = await one.one()
        assert first.body == b"a"
        assert c.time() - began >= delay - 0.01, f"it returned after {c.time() - began:.3f} s, not {delay:g} s"
    await one.settle([first])
    await one.nothing()
    await other.nothing()
    await one.close()
    await other.close()


@case(32, "broadcast", level="bus")
async def broadcast_through_bus(c: Context) -> None:
    """Every bus that subscribes without a group handles everything that is published from then on."""
    logs = [c.log(), c.log(), c.log()]
    buses = [c.bus() for _ in logs]
    for bus, log in zip(buses, logs, strict=True):
        listen(bus, ORDERS, log, group=None)
    for bus in buses[:2]:
        await c.serve(bus)
    await buses[0].publish_many(ORDERS, numbered(30, "a"))
    for log in logs[:2]:
        await log.reach(30)
    await c.serve(buses[2])
    await buses[0].publish_many(ORDERS, numbered(30, "b"))
    for log, expected in zip(logs, (60, 60, 30), strict=True):
        await log.reach(expected)
        each_once((str(item).encode() for item in log.items), [*numbered(30, "a"), *numbered(30, "b")][-expected:])
        await log.quiet()
