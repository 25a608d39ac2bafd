"""What becomes of messages that cannot be handled: attempts, dead letters, and nobody else is held up."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from switchgear import Bus, DeadLetter, Message, Reject, Retry, RetryAfter, Topic
from switchgear.driver import Delivery, Transport
from switchgear.names import dead_letter_topic, physical
from switchgear_conformance.case import case
from switchgear_conformance.context import Context, Log, numbered
from switchgear_conformance.member import RETRY, Member, bodies, each_once, out
from switchgear_conformance.watching import place

PAUSE = 0.25  # seconds between tries of what never succeeds
EARLY = 0.02  # seconds by which clocks of broker and client may differ

orders = Topic("orders", str)
keyed = Topic("orders", str, key=lambda order: order.partition(":")[0], partitions=4)


async def graveyard(c: Context, t: Transport) -> Member:
    """Reads the dead letters of the group, from now on."""
    name = dead_letter_topic("orders", "group")
    return await c.join(t, physical(c.capabilities.names, c.namespace, name), group="graveyard")


def said(c: Context, letters: Member, letter: Delivery) -> dict[str, bytes]:
    """The headers of a dead letter, attributes without their prefix."""
    return {name.removeprefix(c.capabilities.binding): value for name, value in letters.source.headers(letter)}


# ---- 41


@case(41, "nack_delay")
async def poison(c: Context) -> None:
    """A message that is given back again and again holds up no other and comes no more often than was asked."""
    t = await c.open()
    m = await c.join(t, c.name())
    await c.stored(t, out(c.name(), "bad"), *(out(c.name(), body) for body in numbered(40)))
    good: list[bytes | None] = []
    tried: list[float] = []
    ends = c.time() + 10
    while len(good) < 40 or len(tried) < 5:
        assert c.time() < ends, f"{len(good)} of 40 other messages came, and the bad one {len(tried)} times"
        for d in await m.receive(7):
            if d.body == b"bad":
                tried.append(c.time())
                await m.settle([d], RETRY, PAUSE)
            else:
                good.append(d.body)
                await m.settle([d])
    each_once(good, numbered(40))
    gaps = [b - a for a, b in pairwise(tried)]
    assert min(gaps) >= PAUSE - EARLY, f"asked for in {PAUSE} s it came again after {min(gaps):.3f} s: it spins"
    await m.drain(1)


@case(41, "nack", level="bus")
async def poison_through_bus(c: Context) -> None:
    """A message whose handler always fails holds up no other and is tried no more often than the policy says."""
    bus, good, tried = c.bus(), c.log(), c.log()

    @bus.subscribe(orders, group="group", retry=Retry(attempts=None), concurrency=2)
    async def handle(order: str) -> None:
        if order == "bad":
            tried.add(c.time())
            raise RetryAfter(PAUSE)
        good.add(order)

    await c.serve(bus)
    await bus.publish(orders, "bad")
    await bus.publish_many(orders, numbered(40))
    await good.reach(40)
    times = await tried.reach(5)
    assert sorted(good.items) == sorted(numbered(40))
    gaps = [b - a for a, b in pairwise(times)]
    assert min(gaps) >= PAUSE - EARLY, f"asked for in {PAUSE} s it was tried again after {min(gaps):.3f} s: it spins"


@case(41, "order>=key", level="bus", part="keys")
async def poison_keys_through_bus(c: Context) -> None:
    """A key that stands still behind a bad message is overtaken by every other key, and by nothing of its own."""
    bus, log, bad = c.bus(), c.log(), True

    @bus.subscribe(keyed, group="group", retry=Retry(attempts=None), concurrency=2)
    async def handle(order: str) -> None:
        if order == "a:0" and bad:
            raise RetryAfter(PAUSE)
        log.add(order)

    await c.serve(bus)
    await bus.publish_many(keyed, [f"{key}:{n}" for n in range(10) for key in "abcd"])
    await log.reach(30)
    assert not [order for order in log.items if order.startswith("a:")], "something overtook the bad one of its key"
    bad = False
    await log.reach(40)
    for key in "abcd":
        assert [order for order in log.items if order[0] == key] == [f"{key}:{n}" for n in range(10)]


# ---- 42


@case(42, "dead_letter", level="bus")
async def dead_letter_through_bus(c: Context) -> None:
    """After exactly N attempts there is one dead letter: body, headers, why, and where from; the message is gone."""
    t = await c.open()
    letters = await graveyard(c, t)
    tried, bus = c.log(), c.bus()

    @bus.subscribe(orders, group="group", retry=Retry(attempts=3, base=0.05))
    async def handle(order: str, message: Message[str]) -> None:
        tried.add(message.attempt)
        raise ValueError("no such\ncustomer")

    async with bus.serving():
        witness = await c.join(t, place(bus, "orders"), group="witness")
        id_ = await bus.publish(orders, "žluť 1", headers={"x": "y", "tenant": "ž"})
        letter, original = await letters.one(), await witness.one()
        await letters.settle([letter])
        await letters.nothing()
    assert tried.items == [1, 2, 3], f"the handler was called with attempts {tried.items}"
    assert (letter.body, letter.media, letter.key) == (original.body, original.media, original.key)
    headers, before = said(c, letters, letter), said(c, witness, original)
    lost = {name: value for name, value in before.items() if headers.get(name) != value}
    assert not lost, f"headers of the message that its dead letter has not: {lost}"
    assert (headers["id"], headers["x"]) == (id_.encode(), b"y")
    assert headers["sgreason"] == b"ValueError: no such customer"
    assert (headers["sgattempt"], headers["sgtopic"], headers["sggroup"]) == (b"3", b"orders", b"group")
    assert headers["sgposition"], "the dead letter does not say where the message was"
    assert headers["sgtime"], "the dead letter does not say when the message was stored"
    again = await c.join(t, original.topic, group="group")
    await again.nothing()


@case(42, "dead_letter", level="bus", part="reject")
async def dead_letter_reject_through_bus(c: Context) -> None:
    """What a handler rejects is a dead letter at the first attempt, with the handler's reason; the rest goes on."""
    t = await c.open()
    letters = await graveyard(c, t)
    tried, bus = c.log(), c.bus()

    @bus.subscribe(orders, group="group")
    async def handle(order: str) -> None:
        tried.add(order)
        if order in ("3", "7"):
            raise Reject(f"not {order}")

    await c.serve(bus)
    await bus.publish_many(orders, numbered(20))
    found = await letters.take(2)
    await tried.reach(20)
    assert sorted(tried.items) == sorted(numbered(20)), "a rejected message was tried again"
    each_once(bodies(found), [b'"3"', b'"7"'])
    for letter in found:
        headers = said(c, letters, letter)
        assert headers["sgreason"] == b"not " + (letter.body or b"").strip(b'"')
        assert headers["sgattempt"] == b"1"
    await letters.settle(found)
    await letters.nothing()


def poisoned(c: Context, log: Log, after: Literal["continue", "park", "stop"]) -> Bus:
    """A member of the group that rejects the first message of key a."""
    bus = c.bus()

    @bus.subscribe(keyed, group="group", dead_letter=DeadLetter(after=after))
    async def handle(order: str) -> None:
        if order == "a:0":
            raise Reject("poison")
        log.add(order)

    return bus


@case(42, "dead_letter", "order>=key", level="bus", part="continue")
async def dead_letter_continue_through_bus(c: Context) -> None:
    """`after="continue"`: behind a dead letter its key goes on, in order."""
    t = await c.open()
    letters, log = await graveyard(c, t), c.log()
    bus = await c.serve(poisoned(c, log, "continue"))
    await bus.publish_many(keyed, [f"{key}:{n}" for n in range(6) for key in "ab"])
    await log.reach(11)
    for key in "ab":
        expected = [f"{key}:{n}" for n in range(key == "a", 6)]
        assert [order for order in log.items if order[0] == key] == expected
    letter = await letters.one()
    headers = said(c, letters, letter)
    assert (letter.body, letter.key, headers["sgkey"], headers["sgreason"]) == (b'"a:0"', b"a", b"a", b"poison")
    await letters.settle([letter])
    await letters.nothing()


@case(42, "dead_letter", "order>=key", "registry", level="bus", part="park")
async def dead_letter_park_through_bus(c: Context) -> None:
    """`after="park"`: what follows of the key goes unhandled and in order to the dead letters, also after a restart."""
    t = await c.open()
    letters, log = await graveyard(c, t), c.log()
    bus = poisoned(c, log, "park")
    async with bus.serving():
        await bus.publish_many(keyed, [f"{key}:{n}" for n in range(6) for key in "ab"])
        found = await letters.drain(6)
        await log.reach(6)
    assert bodies(found) == [f'"a:{n}"'.encode() for n in range(6)]
    reasons = [said(c, letters, letter)["sgreason"] for letter in found]
    assert reasons == [b"poison", *[b"parked"] * 5], f"reasons: {reasons}"
    assert [said(c, letters, letter)["sgattempt"] for letter in found] == [b"1", *[b"0"] * 5]
    bus = await c.serve(poisoned(c, log, "park"))
    await bus.publish_many(keyed, ["a:6", "b:6"])
    assert bodies(await letters.drain(1)) == [b'"a:6"']
    assert await log.reach(7) == [f"b:{n}" for n in range(7)]


@case(42, "dead_letter", "order>=key", level="bus", part="stop")
async def dead_letter_stop_through_bus(c: Context) -> None:
    """`after="stop"`: the lane stands still and `health` says where, until a restart goes on behind the dead letter."""
    t = await c.open()
    letters, log = await graveyard(c, t), c.log()
    bus = poisoned(c, log, "stop")
    async with bus.serving():
        await bus.publish_many(keyed, [f"a:{n}" for n in range(6)])
        letter = await letters.one()
        await c.eventually(lambda: not bus.health().ready, "health says not ready")
        detail = bus.health().detail["orders → group"]
        position = said(c, letters, letter)["sgposition"].decode()
        assert all(word in detail for word in ("orders", "'a'", position)), f"health says no more than {detail!r}"
        await log.quiet()
        assert not log.items, "the key went on behind its dead letter"
    await letters.settle([letter])
    bus = await c.serve(poisoned(c, log, "stop"))
    assert await log.reach(5) == [f"a:{n}" for n in range(1, 6)]
    assert bus.health().ready
    await letters.nothing()
