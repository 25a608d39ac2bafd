"""Capabilities: groups and broadcast."""

from __future__ import annotations

from switchgear import Topic
from switchgear_conformance.case import case
from switchgear_conformance.context import Context, numbered
from switchgear_conformance.member import bodies, each_once, out


@case(29, "groups")
async def groups_each_get_all(c: Context) -> None:
    """Every group of a topic is handed every message."""
    t = await c.open()
    members = [await c.join(t, c.name(), group=f"group{i}") for i in range(3)]
    await c.stored(t, *(out(c.name(), body) for body in numbered(60)))
    for m in members:
        each_once(bodies(await m.drain(60)), numbered(60))
        await m.nothing()
        await m.close()


@case(29, "groups", level="bus")
async def groups_each_get_all_through_bus(c: Context) -> None:
    """Every group of a topic handles every message."""
    bus = c.bus()
    logs = {f"group{i}": c.log() for i in range(3)}
    orders = Topic("orders", str)
    for group, log in logs.items():

        @bus.subscribe(orders, group=group)
        async def handle(order: str, log=log) -> None:  # type: ignore[no-untyped-def]
            log.add(order)

    await c.serve(bus)
    await bus.publish_many(orders, numbered(60))
    for log in logs.values():
        await log.reach(60)
        assert sorted(log.items) == sorted(numbered(60))
        await log.quiet()
