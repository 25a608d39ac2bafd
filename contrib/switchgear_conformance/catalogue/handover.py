"""What belongs to a member goes to another: who lost it can do no harm, and who gets it keeps the order."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping

from switchgear import Message, Topic
from switchgear.driver import Fence, Order, Registry, Settlement, Subscription, Transport, Verdict
from switchgear.errors import Lost, TransportError
from switchgear_conformance.case import case
from switchgear_conformance.context import Context, ignore
from switchgear_conformance.member import RELEASE, RETRY, Member, bodies, each_once, out

VERDICTS = tuple(Verdict)
keyed = Topic("orders", str, key=lambda order: order.partition(":")[0], partitions=4)


def within(c: Context) -> float:
    """Seconds until what a dead member held must have come to another."""
    return 2 * c.lease + 5


async def lease(c: Context, t: Transport, owner: str) -> Fence:
    """Take the lease of a topic, as the core does for a partition, whoever has it."""
    assert isinstance(t, Registry)
    revision = await t.write(c.name("lease"), owner.encode(), expect=None, ttl=None)
    assert revision
    return Fence(c.name("lease"), revision)


async def fenced(
    c: Context, t: Transport, topics: Mapping[str, Fence | None], lost: list[tuple[str, bool]] | None = None
) -> Member:
    """A member that reads topics under leases; `lost` is told of lanes that are revoked."""

    async def revoked(lanes: Collection[str], gone: bool) -> None:
        if lost is not None:
            lost.extend((lane, gone) for lane in lanes)

    subscription = Subscription(
        topics=topics, group=c.name("group"), consumer=f"c{c.random.getrandbits(48):x}", lease=c.lease
    )
    await c.provide(*topics)
    return Member(c, t, await t.subscribe(subscription, ignore if lost is None else revoked))


def must_be_lost(c: Context, outcomes: Mapping[Verdict, TransportError | None]) -> None:
    """Of a member that lost its lease; where `fencing` is not declared it is enough that nothing came of it."""
    if c.capabilities.fencing:
        accepted = [f"{verdict.name}: {outcome!r}" for verdict, outcome in outcomes.items()
                    if not isinstance(outcome, Lost)]  # fmt: skip
        assert not accepted, f"fencing is declared, and an old owner's verdicts were not refused as Lost: {accepted}"


# ---- 81


@case(81, "groups", "lease", "individual")
async def zombie_settle(c: Context) -> None:
    """After its lease has moved, no verdict of the old owner has any effect on the new one."""
    zombie = await c.join(await c.open(), c.name(), lease=c.lease)
    t = await c.open()
    await c.stored(t, *(out(c.name(), verdict.name) for verdict in VERDICTS))
    late = {d.body: d for d in await zombie.take(len(VERDICTS))}
    heir = await c.join(t, c.name())
    mine = await heir.take(len(VERDICTS), within(c))
    each_once(bodies(mine), [verdict.name for verdict in VERDICTS])
    batch = [
        Settlement(late[verdict.name.encode()], verdict, 0.0 if verdict is RETRY else 60.0) for verdict in VERDICTS
    ]
    must_be_lost(c, dict(zip(VERDICTS, await zombie.source.settle(batch), strict=True)))
    third = await c.join(await c.open(), c.name())
    await third.nothing()
    await heir.settle(mine)
    await heir.close()
    await third.nothing()


@case(81, "order>=key", "lease", "individual", part="keys")
async def zombie_settle_keys(c: Context) -> None:
    """After its keys have moved, no verdict of the old owner lets a third member in between."""
    zombie = await c.join(await c.open(), c.name(), order=Order.KEY, lease=c.lease)
    t = await c.open()
    for n in range(2):
        await c.stored(t, *(out(c.name(), f"{verdict.name}{n}", verdict.name) for verdict in VERDICTS))
    late = {d.key: d for d in await zombie.take(len(VERDICTS))}
    heir = await c.join(t, c.name(), order=Order.KEY)
    mine = await heir.take(2 * len(VERDICTS), within(c))
    batch = [Settlement(late[verdict.name.encode()], verdict, 0.0) for verdict in VERDICTS]
    must_be_lost(c, dict(zip(VERDICTS, await zombie.source.settle(batch), strict=True)))
    third = await c.join(await c.open(), c.name(), order=Order.KEY)
    await heir.settle(mine[: len(VERDICTS)])
    await third.nothing()
    await heir.settle(mine[len(VERDICTS) :])
    await c.stored(t, *(out(c.name(), f"{verdict.name}2", verdict.name) for verdict in VERDICTS))
    await heir.close()
    each_once(bodies(await third.drain(len(VERDICTS))), [f"{verdict.name}2" for verdict in VERDICTS])
    await third.nothing()


@case(81, "fences", part="lanes")
async def zombie_settle_lanes(c: Context) -> None:
    """Under an older lease of a topic nothing is settled and nothing handed out, and the loss is told."""
    t = await c.open()
    lost: list[tuple[str, bool]] = []
    old = await lease(c, t, "zombie")
    zombie = await fenced(c, await c.open(), {c.name(): old}, lost)
    await c.stored(t, *(out(c.name(), verdict.name, "k") for verdict in VERDICTS))
    late = await zombie.take(len(VERDICTS))
    assert {d.fence for d in late} == {old.revision}, "deliveries do not carry the revision of the lease"
    new = await lease(c, t, "heir")
    heir = await fenced(c, t, {c.name(): new})
    mine = await heir.take(len(VERDICTS))
    assert bodies(mine) == [verdict.name.encode() for verdict in VERDICTS]
    assert {d.fence for d in mine} == {new.revision}
    batch = [Settlement(d, verdict, 0.0) for d, verdict in zip(late, VERDICTS, strict=True)]
    must_be_lost(c, dict(zip(VERDICTS, await zombie.source.settle(batch), strict=True)))
    await c.stored(t, out(c.name(), "next", "k"))
    lanes = {d.lane for d in late}
    ends = c.time() + within(c)
    while not lost:
        assert c.time() < ends, "the old owner goes on receiving and is not told that its lane is lost"
        found = bodies(await zombie.receive(10))
        assert found == [], f"without the lease {found} was handed out"
    assert lost == [(lane, True) for lane in lanes]
    assert bodies(await heir.take(1)) == [b"next"]
    await heir.settle(mine)


# ---- 82


@case(82, "order>=key", "lease", "individual")
async def handover_order(c: Context) -> None:
    """Who takes over a dead member's keys gets what was unsettled first, in order, under a higher fence."""
    dead = await c.join(await c.open(), c.name(), order=Order.KEY, lease=c.lease)
    t = await c.open()
    await c.stored(t, *(out(c.name(), f"{k}{i}", k) for i in range(6) for k in "ab"))
    before = await dead.take(6)
    assert all(d.fence > 0 for d in before), "with order by key a delivery has a fence"
    heir = await c.join(t, c.name(), order=Order.KEY)
    await c.stored(t, *(out(c.name(), f"{k}6", k) for k in "ab"))
    after = await heir.drain(14, within(c))
    for key in "ab":
        found = bodies(d for d in after if d.key == key.encode())
        assert found == [f"{key}{i}".encode() for i in range(7)], f"key {key} came as {found}"
    highest = max(d.fence for d in before)
    assert all(d.fence > highest for d in after), "the fence did not rise when the keys changed hands"


@case(82, "order>=key", "individual", part="return")
async def handover_order_return(c: Context) -> None:
    """What is given back, by a verdict or by leaving, goes before what is newer in its key."""
    one = await c.join(await c.open(), c.name(), order=Order.KEY)
    t = await c.open()
    await c.stored(t, *(out(c.name(), str(i), "k") for i in range(8)))
    taken = await one.take(5)
    await one.settle(taken[:2])
    await one.settle(taken[2:], RELEASE)
    again = await one.take(6)
    assert bodies(again) == [b"2", b"3", b"4", b"5", b"6", b"7"], f"given back, they came as {bodies(again)}"
    if c.capabilities.retry_delay is not None:
        await one.settle(again[:1], RETRY)  # the rest of its key is held, and it is behind none of it
        await one.settle(again[1:], RELEASE)
    await one.close()
    two = await c.join(await c.open(), c.name(), order=Order.KEY)
    await c.stored(t, out(c.name(), "8", "k"))
    found = bodies(await two.drain(7))
    assert found == [b"2", b"3", b"4", b"5", b"6", b"7", b"8"], f"the next member got {found}"


@case(82, "fences", part="lanes")
async def handover_order_lanes(c: Context) -> None:
    """Who holds a new lease of a topic first gets all that was unsettled in it, in order, retries too, then the new."""
    t = await c.open()
    old = await lease(c, t, "old")
    one = await fenced(c, await c.open(), {c.name(): old})
    await c.stored(t, *(out(c.name(), str(i), "k") for i in range(6)))
    taken = await one.take(4)
    await one.settle(taken[:1])
    if (c.capabilities.retry_delay or 0) >= 60:
        await one.settle(taken[2:3], RETRY, 60)
    await one.settle(taken[3:], RELEASE)
    new = await lease(c, t, "new")
    assert new.revision > old.revision, "revisions do not rise"
    two = await fenced(c, await c.open(), {c.name(): new})
    await c.stored(t, out(c.name(), "6", "k"))
    found = await two.drain(6)
    assert bodies(found) == [str(i).encode() for i in range(1, 7)], f"the new owner got {bodies(found)}"
    assert {d.fence for d in found} == {new.revision}


@case(82, "order>=key", level="bus")
async def handover_order_through_bus(c: Context) -> None:
    """When a member leaves in the middle of a key, the next handles what was begun or waited, then what is new."""
    first, heir = c.bus(grace=0.5), c.bus()
    began, log = c.log(), c.log()

    @first.subscribe(keyed, group="group")
    async def wait(order: str, message: Message[str]) -> None:
        began.add((order, message.fence))
        await asyncio.Event().wait()

    @heir.subscribe(keyed, group="group")
    async def handle(order: str, message: Message[str]) -> None:
        log.add((order, message.fence))

    async with first.serving():
        await first.publish_many(keyed, [f"a:{n}" for n in range(6)])
        await began.reach(1)
        await c.serve(heir)
        await first.publish_many(keyed, [f"a:{n}" for n in range(6, 10)])
    found = await log.reach(10, within(c))
    assert [order for order, _ in found] == [f"a:{n}" for n in range(10)]
    assert began.items[0][0] == "a:0"
    fence = began.items[0][1]
    assert 0 < fence < min(f for _, f in found), "message.fence did not rise with the handover"
    assert len(began) == 1, "a second handler of the key was started beside the first"
