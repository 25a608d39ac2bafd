"""Capabilities: a message that is sent twice."""

from __future__ import annotations

from switchgear import Topic
from switchgear_conformance.case import case
from switchgear_conformance.context import Context, listen
from switchgear_conformance.member import bodies, each_once, out

ORDERS = Topic("orders", str)


@case(52, "groups", "dedup")
async def dedup_publish(c: Context) -> None:
    """Within the window a second message of one token is answered as stored and dropped, delivered before or not."""
    t = await c.open()
    dedup = t.capabilities.dedup
    assert dedup is not None
    assert dedup.window > 5, f"a window of {dedup.window:g} s is of no use: a publisher tries again for longer"
    m = await c.join(t, c.name())
    await c.stored(t, out(c.name(), "a", dedup="one"), out(c.name(), "b", dedup="two"), out(c.name(), "c"))
    await c.stored(t, out(c.name(), "a again", dedup="one"))
    found = await m.drain(3)
    await c.stored(await c.open(), out(c.name(), "b again", dedup="two"), out(c.name(), "c"))
    found += await m.drain(1)
    each_once(bodies(found), ["a", "b", "c", "c"])
    await m.nothing()
    await m.close()


@case(52, "groups", "dedup", part="batch")
async def dedup_publish_batch(c: Context) -> None:
    """One token twice in a batch is one message; where the scope is the topic, another topic's token is another one."""
    t = await c.open()
    dedup = t.capabilities.dedup
    assert dedup is not None
    m = await c.join(t, c.name(), c.name("returns"))
    again = out(c.name("returns"), "2", dedup="one" if dedup.scope == "topic" else "two")
    await c.stored(t, out(c.name(), "1", dedup="one"), out(c.name(), "1", dedup="one"), again)
    each_once(bodies(await m.drain(2)), ["1", "2"])
    await m.nothing()
    await m.close()


@case(52, "groups", "dedup", level="bus")
async def dedup_publish_through_bus(c: Context) -> None:
    """Publishing twice with one id gives one message, even from two buses; without an id it gives two."""
    bus, other, log = c.bus(), await c.opened(c.bus()), c.log()
    listen(bus, ORDERS, log)
    await c.serve(bus)
    for publisher in (bus, bus, other):
        assert await publisher.publish(ORDERS, "a", id="order-1") == "order-1"
        await publisher.publish(ORDERS, "b")
    await log.reach(4)
    await log.quiet()
    assert sorted(log.items) == ["a", "b", "b", "b"]
