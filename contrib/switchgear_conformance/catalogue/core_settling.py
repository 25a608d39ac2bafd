"""Core: what is acknowledged stays so."""

from __future__ import annotations

from switchgear import Topic
from switchgear.driver import Capabilities, Delivery, Settlement, Verdict
from switchgear.errors import Lost
from switchgear_conformance.case import case
from switchgear_conformance.context import Context, listen, numbered
from switchgear_conformance.member import ACK, EXTEND, RELEASE, RETRY, Member, bodies, each_once, out

ORDERS = Topic("orders", str)
MANY = 200  # messages, so that many are acknowledged together


def lease(c: Context) -> float:
    """Seconds, as short as the harness bears and as long as the broker gives."""
    return min(c.lease, c.capabilities.lease_cap or c.lease)


@case(11)
async def ack_final(c: Context) -> None:
    """What was acknowledged never comes again: not when its lease would have ended, nor to who joins later."""
    t = await c.open()
    one, two = [await c.join(other, c.name(), lease=lease(c)) for other in (t, await c.open())]
    await c.stored(t, *(out(c.name(), body) for body in numbered(MANY)))
    found: list[bytes | None] = []
    while len(found) < MANY:
        for m in (one, two):  # which of them a lane is with is not said
            some = await m.receive(MANY - len(found))
            await m.settle(some)
            found += bodies(some)
    each_once(found, numbered(MANY))
    await two.nothing(1.5 * lease(c) if t.capabilities.lease_cap else None)
    await one.nothing()
    await one.close()
    await two.close()
    later = await c.join(await c.open(), c.name())
    await later.nothing()
    await later.close()


@case(11, level="bus")
async def ack_final_through_bus(c: Context) -> None:
    """What a handler returned from is never handled again: not after its lease, nor after a restart."""
    log = c.log()
    for life in range(2):
        bus = c.bus()
        listen(bus, ORDERS, log, lease=lease(c))
        async with bus.serving():
            if not life:
                await bus.publish_many(ORDERS, numbered(MANY))
                await log.reach(MANY)
            await log.quiet(1.5 * lease(c) if not life else None)
    each_once((body.encode() for body in log.items), numbered(MANY))


@case(12)
async def double_settle(c: Context) -> None:
    """A second verdict on one delivery changes nothing, for it or for another message."""
    t = await c.open()
    m = await c.join(t, c.name())
    await c.stored(t, *(out(c.name(), body) for body in numbered(6)))
    a, b, *rest = await m.take(6)
    open_ = [d.body or b"" for d in (rest if m.cumulative else rest[1:])]
    await m.settle([a])
    for verdict in (ACK,) if m.cumulative else verdicts(t.capabilities):
        await again(m, verdict, a)
    if m.cumulative:
        await m.settle([b])
        await again(m, ACK, b)
    else:
        outcomes = await m.source.settle([Settlement(b, ACK), Settlement(rest[0], ACK), Settlement(b, ACK)])
        assert [type(o) for o in outcomes[:2]] == [type(None)] * 2, f"acknowledged twice in one call: {outcomes}"
    await m.nothing()
    await m.close()
    later = await c.join(await c.open(), c.name())
    each_once(bodies(await later.drain(len(open_))), open_)
    await later.nothing()
    await later.close()


def verdicts(capabilities: Capabilities) -> list[Verdict]:
    """Those that a broker takes one by one."""
    retry, extend = capabilities.retry_delay is not None, capabilities.lease_cap > 0
    return [ACK, *[RETRY][:retry], RELEASE, *[EXTEND][:extend], ACK]


async def again(m: Member, verdict: Verdict, d: Delivery) -> None:
    (outcome,) = await m.source.settle([Settlement(d, verdict, 0.0 if verdict is not EXTEND else 30.0)])
    assert outcome is None or isinstance(outcome, Lost), f"{verdict.name} of what is acknowledged: {outcome!r}"


@case(12, "nack", level="bus")
async def double_settle_through_bus(c: Context) -> None:
    """Of a pulled message the first verdict counts: it is neither handled again nor returned by a second one."""
    bus = await c.opened(c.bus())
    async with bus.consumer(ORDERS, group="group", idle=2 * c.quiet) as messages:
        await bus.publish_many(ORDERS, numbered(3))
        first, second, third = [await anext(messages) for _ in range(3)]
        await first.ack()
        await first.ack()
        await first.retry(0)
        await first.reject("no more")
        await second.retry(0)
        await second.ack()
        back = await anext(messages)
        assert (back.body, back.attempt) == (second.body, 2), f"{back.body} came again, attempt {back.attempt}"
        await back.ack()
        await third.ack()
        more = [message.body async for message in messages]
    assert not more, f"after their acknowledgement {more} came again"
    async with bus.consumer(ORDERS, group="group", idle=c.quiet) as messages:
        assert not [message.body async for message in messages]
