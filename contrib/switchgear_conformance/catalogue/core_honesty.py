"""Core: what is declared is what is done; what is not is refused, and never left out in silence.

The core is the one that enforces capabilities (18.bus). A driver is asked here for what it does not declare all the
same (18.driver): it may refuse, or do it in full, which the report then says; to do something else is a failure.
"""

from __future__ import annotations

from switchgear import Bus, Topic
from switchgear.driver import Delivery, Order, Outgoing, Settlement, Start, Subscription, Transport
from switchgear.errors import TransportError, Unsupported
from switchgear_conformance.case import case
from switchgear_conformance.context import Context, ignore, listen
from switchgear_conformance.member import RETRY, Member, bodies, out, raised

BEYOND = 5.0  # seconds more than is declared
FAR = 60.0  # seconds: nobody waits longer to see whether it is done
DAY = 86_400.0  # seconds: what is declared to reach further is not tried


async def sent(t: Transport, c: Context, message: Outgoing) -> bool:
    """Send what the transport does not declare; whether it was accepted."""
    try:
        (outcome,) = await c.send(t, message)
    except (TransportError, Unsupported):
        return False
    return outcome is None


async def joined(
    t: Transport, c: Context, group: str | None, start: Start = "new", order: Order = Order.NONE
) -> Member:
    """Subscribe in a way that the transport does not declare. Raises what it refuses with."""
    name = None if group is None else c.name(group)
    subscription = Subscription(
        topics={c.name(): None}, group=name, consumer=f"c{c.random.getrandbits(40):x}", start=start, order=order
    )
    await c.provide(c.name(), order=order)
    return Member(c, t, await t.subscribe(subscription, ignore))


@case(18, bound=120)
async def capability_honesty(c: Context) -> None:
    """A delay, a tombstone or an expiry that is not declared is refused, or it is kept: it is never left out."""
    t = await c.open()
    m = await c.join(t, c.name())
    caps = t.capabilities
    if not caps.tombstones and await sent(t, c, out(c.name(), None, "k")):
        assert bodies(await m.drain(1)) == [None], "a tombstone was accepted, and something else arrived"
        c.remark("it has tombstones and does not declare them")
    if caps.delay < DAY:
        longer = caps.delay + BEYOND
        due = c.now() + longer
        if await sent(t, c, out(c.name(), "delayed", due=due)):
            await not_before(c, m, due, f"a delay of {longer:g} s was accepted, {caps.delay:g} s are declared")
            c.remark(f"it delays messages for longer than the {caps.delay:g} s that it declares")
    if caps.dedup is None:
        for body in ("first", "second"):
            await c.stored(t, out(c.name(), body, dedup="one token"))
        found = await m.drain(1)
        found += (more := await m.receive())
        await m.settle(more)
        assert b"first" in bodies(found)
        if not more:
            c.remark("it stores a token once, and declares no deduplication")
    await m.nothing()
    await m.close()


async def not_before(c: Context, m: Member, due: float, what: str) -> None:
    """It comes, and not before its time; a time that is far away is not waited for."""
    if due - c.now() > FAR:
        await m.nothing()
        return
    while not (found := await m.receive()):
        assert c.now() < due + FAR, f"{what}, and it never came"
    early = due - c.now()
    assert early < 0.05, f"{what}, and it came {early:.1f} s early"
    await m.settle(found)


@case(18, "individual", part="retry", bound=120)
async def capability_honesty_retry(c: Context) -> None:
    """A RETRY that is not declared, or waits longer than declared, is refused, or it is carried out in full."""
    t = await c.open()
    m = await c.join(t, c.name())
    longest = m.source.capabilities.retry_delay
    await c.stored(t, out(c.name(), "1"))
    d: Delivery = await m.one()
    if t.capabilities.counting == "none" and d.deliveries is not None:
        c.remark("it counts deliveries, and declares that it does not")
    if (longest is not None and longest >= DAY) or not await retried(c, m, d, longest or 0.0):
        await m.settle([d])
    await m.close()


async def retried(c: Context, m: Member, d: Delivery, longest: float) -> bool:
    """Ask for a RETRY after more seconds than are declared; whether that was accepted, and then done."""
    due = c.now() + longest + BEYOND
    try:
        (outcome,) = await m.source.settle([Settlement(d, RETRY, longest + BEYOND)])
    except (TransportError, Unsupported):
        return False
    if outcome is not None:
        return False
    await not_before(c, m, due, f"RETRY after {longest + BEYOND:g} s was accepted, {longest:g} s are declared")
    c.remark(f"RETRY may wait for longer than the {longest:g} s that it declares")
    return True


@case(18, part="subscribe")
async def capability_honesty_subscribe(c: Context) -> None:
    """A start, an order, a group or a broadcast that is not declared is refused at `subscribe`, or it is kept."""
    t, caps = await c.open(), (await c.open()).capabilities
    first = await c.join(t, c.name(), group="first") if caps.groups else await joined(t, c, None)
    await c.stored(t, out(c.name(), "before"))
    for n, start in enumerate(("earliest", "time")):
        if start not in caps.starts:
            await start_kept(c, t, f"start{n}", start)
    if not caps.broadcast:
        await all_get_all(c, t, None, "broadcast")
    if not caps.groups:
        await all_get_all(c, t, "group", "groups")
    if caps.order < Order.TOTAL and caps.groups:
        more = Order.KEY if caps.order is Order.NONE else Order.TOTAL
        try:
            m = await joined(t, c, "ordered", order=more)
        except (TransportError, Unsupported):
            pass
        else:
            await m.close()
            raise AssertionError(
                f"a group was joined with order {more.name}, {caps.order.name} is declared: nobody would keep it"
            )
    await first.close()


async def start_kept(c: Context, t: Transport, group: str, start: str) -> None:
    try:
        m = await joined(t, c, group, "earliest" if start == "earliest" else c.now() - 3600)
    except (TransportError, Unsupported):
        return
    found = await m.receive()
    assert bodies(found) == [b"before"], f"start={start} was accepted, and {bodies(found)} came, not what was there"
    c.remark(f"a new group may start at {start!r}, which is not declared")
    await m.close()


async def all_get_all(c: Context, t: Transport, group: str | None, what: str) -> None:
    """Two who read all (or two groups): each gets it."""
    names = [group and f"{group}{n}" for n in range(2)]
    members: list[Member] = []
    try:
        members = [await joined(t, c, name) for name in names]
    except (TransportError, Unsupported):
        for m in members:
            await m.close()
        return
    await c.stored(t, out(c.name(), "to all"))
    for m in members:
        assert bodies(await m.drain(1)) == [b"to all"]
        await m.close()
    c.remark(f"it has {what}, and does not declare it")


@case(18, level="bus")
async def capability_honesty_through_bus(c: Context) -> None:
    """What the broker does not give and the core does not add is Unsupported, at start or when it is published."""
    caps, log = c.capabilities, c.log()
    orders = Topic("orders", str | None)
    bus = c.bus()

    @bus.subscribe(orders, group="group")
    async def handle(body: str | None) -> None:
        log.add(body)

    await c.serve(bus)
    await raised(bus.publish(orders, "priority", key="k", priority="high"), Unsupported)
    await raised(bus.publish(Topic("levels", str, priorities=("high", "low")), "priorities"), Unsupported)
    if not caps.tombstones:
        await raised(bus.publish(orders, None, key="k"), Unsupported)
    if caps.delay < DAY and not caps.groups:
        await raised(bus.publish(orders, "delayed", delay=caps.delay + BEYOND), Unsupported)
    await bus.publish(orders, "after")
    await log.reach(1)
    await log.quiet()
    assert log.items == ["after"], f"refused, and handled all the same: {log.items}"
    await starts_refused(c)


async def starts_refused(c: Context) -> None:
    """Subscriptions that negotiation has to refuse."""
    caps, orders = c.capabilities, Topic("orders", str)
    wrong: list[Bus] = []
    if "earliest" not in caps.starts:
        wrong.append(c.bus())
        listen(wrong[-1], orders, c.log(), group="late", start="earliest")
    if 0 < caps.lease_cap < 86_400:
        wrong.append(c.bus())
        listen(wrong[-1], orders, c.log(), group="leased", lease=caps.lease_cap + 1)
    for bus in wrong:
        error = await raised(c.serve(bus), Unsupported)
        assert "orders" in str(error), f"it does not name the subscription: {error}"
