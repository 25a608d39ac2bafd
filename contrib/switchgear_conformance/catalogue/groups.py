"""Capabilities: groups share, each gets all, while members come and go."""

from __future__ import annotations

import asyncio

from switchgear import Bus, Message, Topic
from switchgear.driver import Delivery, Settlement
from switchgear.errors import Lost
from switchgear_conformance.case import case
from switchgear_conformance.context import Context, listen, numbered
from switchgear_conformance.member import ACK, PATIENCE, Member, bodies, each_once, out

ORDERS = Topic("orders", str)


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
    for group, log in logs.items():
        listen(bus, ORDERS, log, group=group)
    await c.serve(bus)
    await bus.publish_many(ORDERS, numbered(60))
    for log in logs.values():
        await log.reach(60)
        assert sorted(log.items) == sorted(numbered(60))
        await log.quiet()


# ---- members of one group


@case(30, "groups")
async def group_shares_work(c: Context) -> None:
    """Members of a group are handed disjoint parts, whose union is everything."""
    members = [await c.join(await c.open(), c.name()) for _ in range(3)]
    t = members[0].transport
    await c.stored(t, *(out(c.name(), body) for body in numbered(90)))
    held = [] if members[0].cumulative else await members[0].take(10)  # what one holds must not keep others from work
    found = held.copy()
    ends = c.time() + PATIENCE

    async def work(m: Member) -> None:
        while len(found) < 90 and c.time() < ends:
            some = await m.receive(7)
            await m.settle(some)
            found.extend(some)

    await asyncio.gather(*(work(m) for m in (members[1:] if held else members)))
    each_once(bodies(found), numbered(90))
    await members[0].settle(held)
    for m in members:
        await m.nothing()
        await m.close()


@case(30, "groups", level="bus")
async def group_shares_work_through_bus(c: Context) -> None:
    """Three buses in one group handle everything once, and each takes its part."""
    log, working, all_work = c.log(), set[int](), asyncio.Event()

    def member(i: int) -> Bus:
        bus = c.bus()

        @bus.subscribe(ORDERS, group="group", concurrency=2)
        async def handle(order: str) -> None:
            working.add(i)
            if len(working) == 3:
                all_work.set()
            async with asyncio.timeout(PATIENCE):
                await all_work.wait()  # so that nobody can be quick enough to leave nothing to others
            log.add(order)

        return bus

    buses = [await c.serve(member(i)) for i in range(3)]
    for n in range(12):  # a broker may keep together what is sent together
        await buses[0].publish_many(ORDERS, numbered(10, f"{n}."))
    await log.until(lambda: all_work.is_set() and len(log) >= 120, "all three members work, and 120 messages")
    each_once((str(item).encode() for item in log.items), [i for n in range(12) for i in numbered(10, f"{n}.")])
    await log.quiet()


# ---- joining and leaving


@case(31, "groups")
async def rebalance_no_loss(c: Context) -> None:
    """Members join and leave while messages flow: each message is acknowledged, and by one member."""
    t = await c.open()
    working: list[asyncio.Task[None]] = []
    members: list[Member] = []
    settled: list[bytes | None] = []
    leaving: set[Member] = set()

    async def work(m: Member) -> None:
        while m not in leaving:
            some = await m.receive(5)
            await asyncio.sleep(0.001)  # others get their turn
            outcomes = await m.outcomes(some)
            if m.cumulative:
                settled.extend(bodies(some))
            else:
                settled.extend(d.body for d, outcome in zip(some, outcomes, strict=True) if outcome is None)
        await m.receive(3)  # leaves with these unsettled
        await m.close()

    async def join() -> None:
        members.append(await c.join(await c.open(), c.name()))
        working.append(asyncio.create_task(work(members[-1])))

    await join()
    for i in range(6):
        await c.eventually(lambda: len(settled) >= 25 * i - 5, "the members keep up")  # noqa: B023 (called at once)
        if i in (1, 2, 4):
            await join()
        await c.stored(t, *(out(c.name(), body) for body in numbered(25, f"{i}.")))
        if i in (3, 4):
            leaving.add(members[i - 3])
    expected = {body.encode() for i in range(6) for body in numbered(25, f"{i}.")}
    await c.eventually(lambda: expected <= set(settled), "every message is acknowledged")
    leaving.update(members)
    await asyncio.gather(*working)
    if not members[0].cumulative:
        each_once(settled, [body or b"" for body in expected])


@case(31, "groups", part="leave")
async def rebalance_no_loss_leave(c: Context) -> None:
    """What a member that leaves has not settled returns to the group; what it has settled does not."""
    one, two = await c.join(await c.open(), c.name()), await c.join(await c.open(), c.name())
    if two.cumulative:  # lanes are shared out: the one that is to read must be alone
        await two.close()
    await c.stored(one.transport, *(out(c.name(), body) for body in numbered(10)))
    taken = await one.take(10)
    await one.settle(taken[:4])
    await one.close()
    await one.close()
    if two.cumulative:
        two = await c.join(await c.open(), c.name())
    returned = await two.drain(6)
    each_once(bodies(returned), [d.body or b"" for d in taken[4:]])
    if c.capabilities.counting == "exact":
        assert {d.deliveries for d in returned} == {1}, "leaving was counted as a failed delivery"
    await two.nothing()
    await two.close()


@case(31, "groups", "individual", part="assign")
async def rebalance_no_loss_assign(c: Context) -> None:
    """A source reads the topics that it is assigned, from then on and no others; the rest is kept for the group."""
    t = await c.open()
    m = await c.join(t, c.name())
    await m.source.assign({c.name(): None, c.name("two"): None})
    await c.stored(t, out(c.name(), "1"), out(c.name("two"), "2"))
    each_once(bodies(await m.drain(2)), ["1", "2"])
    await c.stored(t, out(c.name(), "kept"))
    held: Delivery = await m.one()
    await m.source.assign({c.name("two"): None})
    (outcome,) = await m.source.settle([Settlement(held, ACK)])
    assert outcome is None or isinstance(outcome, Lost), f"settling what was held when its topic went: {outcome!r}"
    await c.stored(t, out(c.name(), "3"), out(c.name("two"), "4"))
    assert bodies(await m.drain(1)) == [b"4"], "a topic is read that is assigned no more"
    await m.nothing()
    other = await c.join(await c.open(), c.name())
    left = ["3"] if outcome is None else ["kept", "3"]
    each_once(bodies(await other.drain(len(left))), left)
    await other.close()
    await m.close()


@case(31, "groups", level="bus")
async def rebalance_no_loss_through_bus(c: Context) -> None:
    """Buses join and leave a group under load: nothing is lost, and nothing is handled twice."""
    log = c.log()

    def member() -> Bus:
        bus = c.bus()

        @bus.subscribe(ORDERS, group="group", concurrency=4)
        async def handle(message: Message[str]) -> None:
            await asyncio.sleep(0.002)
            log.add(message.body)

        return bus

    publisher = await c.opened(c.bus())
    first, second, third = member(), member(), member()
    async with third.serving():
        async with first.serving():
            await publisher.publish_many(ORDERS, numbered(100, "a"))
            async with second.serving():
                await publisher.publish_many(ORDERS, numbered(100, "b"))
                await log.reach(60)
        await publisher.publish_many(ORDERS, numbered(50, "c"))
        await log.reach(250)
        await log.quiet()
    expected = [*numbered(100, "a"), *numbered(100, "b"), *numbered(50, "c")]
    if c.capabilities.settling.value == "individual":
        each_once((str(item).encode() for item in log.items), expected)
    assert set(log.items) == set(expected)
