"""Durability: what a group collects while nobody reads it, and what is known of it."""

from __future__ import annotations

import asyncio

from switchgear import Topic
from switchgear.driver import Lagged, Provisioner, Resource, Trimming
from switchgear_conformance.case import case
from switchgear_conformance.context import Context, listen, numbered
from switchgear_conformance.member import PATIENCE, bodies, each_once, out

ORDERS = Topic("orders", str)


@case(45, "groups", "persistent")
async def backlog(c: Context) -> None:
    """A group that nobody reads collects what is sent meanwhile, and what it held when its member left."""
    t = await c.open()
    m = await c.join(t, c.name())
    await c.stored(t, out(c.name(), "held"))
    await m.one()
    await m.close()
    await t.close()
    publisher = await c.open()
    await c.stored(publisher, *(out(c.name(), body) for body in numbered(60)))
    await publisher.close()
    later = await c.join(await c.open(), c.name())
    each_once(bodies(await later.drain(61)), ["held", *numbered(60)])
    await later.nothing()
    await later.close()


@case(45, "groups", "persistent", level="bus")
async def backlog_through_bus(c: Context) -> None:
    """What is published while no member of a group is there waits for the next one."""
    bus, log = c.bus(), c.log()
    listen(bus, ORDERS, log)
    async with bus.serving():
        await bus.publish(ORDERS, "first")
        await log.reach(1)
    publisher = c.bus()
    async with publisher:
        await publisher.publish_many(ORDERS, numbered(40))
    later, more = c.bus(), c.log()
    listen(later, ORDERS, more)
    await c.serve(later)
    await more.reach(40)
    await more.quiet()
    each_once((str(item).encode() for item in more.items), numbered(40))


@case(45, "groups", "lagged", part="lag")
async def backlog_lag(c: Context) -> None:
    """Lag counts what a group has not settled: what waits and what is in flight."""
    t = await c.open()
    assert isinstance(t, Lagged)
    m = await c.join(t, c.name())
    lagged: Lagged = t

    async def lag() -> int:
        return sum((await lagged.lag([c.name()], c.namespace + "group")).values())

    counts = [await lag()]
    await c.stored(t, *(out(c.name(), body) for body in numbered(20)))
    counts.append(await lag())
    taken = await m.take(8)
    counts.append(await lag())
    await m.settle(taken[:5])
    counts.append(await lag())
    await m.settle(taken[5:])
    await m.drain(12)
    counts.append(await lag())
    expected = [0, 20, 20, 15, 0]
    assert counts == expected, f"lag before, of 20, 8 in flight, 5 settled, all settled: {counts}, not {expected}"
    await m.close()


@case(45, "groups", "provisioner", part="provision")
async def backlog_provision(c: Context) -> None:
    """Provisioning says what is missing, makes it when told to and not before; the group collects from then on."""
    t = await c.open()
    assert isinstance(t, Provisioner)
    group = c.namespace + "group"
    wanted = [
        Resource(kind="topic", name=c.name(), retention=3600.0),
        Resource(kind="group", name=group, topic=c.name()),
    ]
    for _ in range(2):
        drifts = await t.provision(wanted, False)
        assert [(d.resource.kind, d.field, d.applied) for d in drifts] == [
            ("topic", "exists", False), ("group", "exists", False),
        ], f"of a topic and a group that are missing, with apply=False: {drifts}"  # fmt: skip
    assert list(await t.topics(c.name())) == [], "provision(apply=False) made something"
    assert all(drift.applied for drift in await t.provision(wanted, True))
    assert list(await t.provision(wanted, False)) == [], "what was provisioned is reported as missing"
    await c.stored(t, out(c.name(), "a"), out(c.name(), "b"))
    (info,) = await t.topics(c.name())
    assert (info.name, info.groups) == (c.name(), (group,))
    assert info.messages in (2, None), f"{info.messages} messages are said to be stored, and two are"
    m = await c.join(t, c.name())
    each_once(bodies(await m.drain(2)), ["a", "b"])
    await m.close()


@case(45, "groups", "provisioner", part="retention")
async def backlog_retention(c: Context) -> None:
    """Another retention is shown and mended; it takes nothing younger, and what a source says was taken is right."""
    t = await c.open()
    assert isinstance(t, Provisioner)
    m = await c.join(t, c.name())
    await t.provision([Resource(kind="topic", name=c.name(), retention=3600.0)], True)
    changed = Resource(kind="topic", name=c.name(), retention=0.6)
    (drift,) = await t.provision([changed], False)
    assert (drift.field, drift.wanted, drift.found) == ("retention", 0.6, 3600.0)
    await t.provision([changed], True)
    assert list(await t.provision([changed], False)) == []
    await c.stored(t, out(c.name(), "old"))
    await asyncio.sleep(0.8)
    await c.stored(t, out(c.name(), "young"))
    found: list[bytes | None] = []
    ends = c.time() + PATIENCE
    while b"young" not in found:
        assert c.time() < ends, "what is younger than the topic's retention does not come"
        some = await m.receive(10)
        await m.settle(some)
        found += bodies(some)
    if isinstance(m.source, Trimming):
        if not m.cumulative:  # else the broker takes it from its log when it pleases
            came = f"of a message older than its topic's retention and one that is not, came {found}"
            assert found == [b"young"], came
        taken = 2 - len(found)
        told = m.source.trimmed.get(c.name(), 0)
        assert told == taken, f"{taken} messages were taken unread, and trimmed is {m.source.trimmed}"
    await m.close()
