"""Capabilities: messages that are due later, and messages that are worthless after a time."""

from __future__ import annotations

import asyncio

from switchgear import Bus, Message, Topic
from switchgear.driver import Order, Scheduling
from switchgear_conformance.case import case
from switchgear_conformance.context import Context, numbered
from switchgear_conformance.harness import Restartable
from switchgear_conformance.member import bodies, each_once, out

ORDERS = Topic("orders", str)
LATE = 2.5  # seconds after its time that a message may come


def in_time(c: Context, due: float) -> None:
    late = c.now() - due
    assert late >= -0.01, f"it came {-late:.3f} s before its time"
    assert late < LATE, f"it came {late:.1f} s after its time"


@case(46, "groups", "delay")
async def delayed(c: Context) -> None:
    """A message with a time comes not before it, soon after, and whole; others pass it."""
    t = await c.open()
    m = await c.join(t, c.name())
    due = c.now() + 0.6
    later = out(c.name(), "later", "k", due=due, headers=[("x", b"1"), ("x", b"2")], media=b"a/b", dedup="d")
    await c.stored(t, later, out(c.name(), "now"))
    assert bodies(await m.drain(1)) == [b"now"]
    (found,) = await m.drain(1)
    in_time(c, due)
    assert (found.body, found.key, found.media) == (b"later", b"k", b"a/b")
    assert m.source.headers(found) == [("x", b"1"), ("x", b"2")]
    await m.nothing()
    await m.close()


@case(46, "groups", "delay", part="past")
async def delayed_past(c: Context) -> None:
    """A time that is past is now."""
    t = await c.open()
    m = await c.join(t, c.name())
    await c.stored(t, out(c.name(), "a", due=c.now() - 5))
    assert bodies(await m.drain(1, within=LATE)) == [b"a"]
    await m.nothing()
    await m.close()


@case(46, "groups", "order>=key", "delay", part="order")
async def delayed_order(c: Context) -> None:
    """A delayed message takes its place in its key when it is due; equal times keep the order of sending."""
    t = await c.open()
    m = await c.join(t, c.name(), order=Order.KEY)
    if m.source.capabilities.delay:
        due = c.now() + 0.4
        late = [out(c.name(), body, "k", dedup=f"d{body}", due=due) for body in numbered(20)]
        await c.stored(t, *late, out(c.name(), "first", "k"))
        assert bodies(await m.drain(1)) == [b"first"], "what is delayed holds back what is not"
        await c.eventually(lambda: c.now() > due, "the time comes")
        assert bodies(await m.drain(20)) == [body.encode() for body in numbered(20)]
    await m.close()


@case(46, "groups", "scheduling", "delay", part="cancel")
async def delayed_cancel(c: Context) -> None:
    """What is not yet due can be taken back, once, and that alone."""
    t = await c.open()
    assert isinstance(t, Scheduling)
    m = await c.join(t, c.name())
    due = c.now() + 0.5
    await c.stored(t, out(c.name(), "a", dedup="a", due=due), out(c.name(), "b", dedup="b", due=due))
    assert await t.cancel(c.name(), "a") is True
    assert await t.cancel(c.name(), "a") is False, "cancelled twice"
    assert await t.cancel(c.name(), "unknown") is False
    assert await t.cancel(c.name("other"), "b") is False, "cancelled by the same token of another topic"
    assert bodies(await m.drain(1)) == [b"b"]
    assert await t.cancel(c.name(), "b") is False, "cancelled after it was delivered"
    await m.nothing()
    await m.close()


@case(46, "groups", "scheduling", "delay", part="promote")
async def delayed_promote(c: Context) -> None:
    """`promote` moves each due message once, whoever calls it and how often, and says when the next is due."""
    t, second = await c.open(), await c.open()
    assert isinstance(t, Scheduling)
    assert isinstance(second, Scheduling)
    m = await c.join(t, c.name())
    due = c.now() + 0.3
    await c.stored(t, *(out(c.name(), body, dedup=f"d{body}", due=due) for body in numbered(60)))
    await c.stored(t, out(c.name(), "much later", dedup="much later", due=c.now() + 60))
    wait = await t.promote(100)
    assert wait is not None, "promote says that nothing waits"
    assert 0 <= wait <= 0.3, f"promote says that the next is due in {wait:g} s"
    await c.eventually(lambda: c.now() > due, "the time comes")
    for _ in range(20):
        await asyncio.gather(t.promote(10), second.promote(10), t.promote(7))
    wait = await t.promote(100)
    assert wait is not None, "promote says that nothing waits"
    assert wait <= 60, f"promote says that the next is due in {wait:g} s"
    each_once(bodies(await m.drain(60)), numbered(60))
    assert await t.cancel(c.name(), "much later")
    await m.nothing()
    await m.close()


@case(46, "groups", "delay", level="bus")
async def delayed_through_bus(c: Context) -> None:
    """`publish(delay=)` is kept by the message; others pass it."""
    bus, log = c.bus(), c.log()

    @bus.subscribe(ORDERS, group="group")
    async def handle(message: Message[str]) -> None:
        log.add(message.body)
        if message.body == "later":
            in_time(c, due)

    await c.serve(bus)
    due = c.now() + 0.5
    await bus.publish(ORDERS, "later", delay=0.5)
    await bus.publish(ORDERS, "now")
    await log.reach(2)
    await log.quiet()
    assert log.items == ["now", "later"], f"'later' is delayed by 0.5 s: {log.items}"


@case(46, "groups", "delay", "scheduling", level="bus", part="cancel")
async def delayed_cancel_through_bus(c: Context) -> None:
    """`cancel` takes back a message that is not yet due, once, and that alone."""
    bus, log = c.bus(), c.log()

    @bus.subscribe(ORDERS, group="group")
    async def handle(order: str) -> None:
        log.add(order)

    await c.serve(bus)
    taken_back = await bus.publish(ORDERS, "never", delay=0.5)
    await bus.publish(ORDERS, "later", delay=0.5)
    assert await bus.cancel(ORDERS, taken_back) is True
    assert await bus.cancel(ORDERS, taken_back) is False, "cancelled twice"
    await log.reach(1)
    await log.quiet()
    assert log.items == ["later"], f"'never' was cancelled: {log.items}"


# ---- over a restart


async def restarted(c: Context) -> None:
    """Of a server, or where there is none all that was open is closed already."""
    if isinstance(c.broker, Restartable) and not c.harness.embedded:
        await c.restart()


@case(47, "groups", "delay", "persistent", "ctl:restart", embedded=True, bound=60.0)
async def delayed_survives_restart(c: Context) -> None:
    """A delayed message is stored: after a restart of the broker it comes at its time, whole, and once."""
    t = await c.open()
    m = await c.join(t, c.name())
    due = c.now() + 1.5
    await c.stored(t, out(c.name(), "later", "k", due=due, dedup="d", headers=[("x", b"1")], media=b"a/b"))
    await m.close()
    await t.close()
    await restarted(c)
    m = await c.join(await c.open(), c.name())
    (found,) = await m.drain(1)
    assert c.now() >= due - 0.01, f"it came {due - c.now():.3f} s before its time"
    assert (found.body, found.key, found.media) == (b"later", b"k", b"a/b")
    assert m.source.headers(found) == [("x", b"1")]
    await m.nothing()
    await m.close()


@case(47, "groups", "delay", "persistent", "ctl:restart", level="bus", embedded=True, bound=60.0)
async def delayed_survives_restart_through_bus(c: Context) -> None:
    """`publish(delay=)` outlives the publisher, the group's members and a restart of the broker."""

    def member() -> tuple[Bus, list[float]]:
        bus, times = c.bus(), list[float]()

        @bus.subscribe(ORDERS, group="group")
        async def handle(order: str) -> None:
            times.append(c.now())

        return bus, times

    bus, early = member()
    async with bus.serving():
        due = c.now() + 1.5
        await bus.publish(ORDERS, "later", delay=1.5)
    await restarted(c)
    bus, times = member()
    await c.serve(bus)
    await c.eventually(lambda: bool(times), "the delayed message comes")
    await asyncio.sleep(c.quiet)
    assert not early
    assert len(times) == 1, f"it was handled {len(times)} times"
    assert times[0] >= due - 0.01, f"it was handled {due - times[0]:.3f} s before its time"


# ---- expiry


@case(48, "groups", "ttl")
async def ttl(c: Context) -> None:
    """What has expired before it was fetched is not delivered; what has not is."""
    t = await c.open()
    m = await c.join(t, c.name())
    soon = c.now() + 0.5
    await c.stored(t, out(c.name(), "short", expires=soon), out(c.name(), "long", expires=c.now() + 60))
    await c.stored(t, out(c.name(), "for good"))
    await c.eventually(lambda: c.now() > soon + 0.1, "the time comes")
    each_once(bodies(await m.drain(2)), ["long", "for good"])
    await m.nothing()
    await m.close()


class Counted:
    """An observer that counts one event."""

    def __init__(self, event: str) -> None:
        self.event, self.counted = event, 0

    def count(self, event: str, topic: str, group: str | None, n: int) -> None:
        if event == self.event:
            self.counted += n


@case(48, "groups", level="bus")
async def ttl_through_bus(c: Context) -> None:
    """What expires while it waits is not handled but counted; what has not expired is handled."""
    expired, log = Counted("expired"), c.log()
    bus = c.bus(observers=[expired])

    @bus.subscribe(ORDERS, group="group", concurrency=1)
    async def handle(order: str) -> None:
        log.add(order)
        if order == "slow":
            await asyncio.sleep(0.5)

    await c.serve(bus)
    await bus.publish(ORDERS, "slow")
    await log.reach(1)
    await bus.publish(ORDERS, "short", expires=0.25)
    await bus.publish(ORDERS, "long", expires=60)
    await bus.publish(ORDERS, "for good")
    await log.reach(3)
    await log.quiet()
    assert sorted(log.items) == ["for good", "long", "slow"], f"'short' expired before its turn: {log.items}"
    if not c.capabilities.ttl:  # else the broker may have dropped it itself
        assert expired.counted == 1, f"one message expired, and {expired.counted} are counted"
