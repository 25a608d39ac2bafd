"""Processes that are killed: what they had not acknowledged returns, what they had does not, what they sent is there.

Between what a process does and what it says of it it may be killed: only what it said is held against the broker.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from functools import partial

from switchgear import Retry, Topic
from switchgear.driver import Lagged, Settling, Transport
from switchgear_conformance.case import case
from switchgear_conformance.child import Child
from switchgear_conformance.child import numbered as body_of
from switchgear_conformance.context import Context, numbered
from switchgear_conformance.member import bodies, each_once, out
from switchgear_conformance.watching import place

from .failures import graveyard
from .handover import keyed, within

COUNT = 20
SIZE = 20_000  # bytes of a body that might be torn
orders = Topic("orders", str)


async def serving(c: Context, settle: str) -> Child:
    """Another process with a bus that serves."""
    child = await c.child("serve", c.namespace, "orders", "group", settle, str(c.lease))
    assert await child.line() == "ready"
    return child


async def consuming(c: Context, settle: str) -> Child:
    """Another process with a bare source."""
    child = await c.child("consume", c.name(), c.name("group"), settle, "7" if settle == "ack" else "100", str(c.lease))
    assert await child.line() == "ready"
    return child


def numbers(lines: Iterable[str], mark: str) -> set[int]:
    return {int(line[2:]) for line in lines if line[:2] == f"{mark} "}


async def committed(c: Context, t: Transport, topic: str) -> bool:
    """Whether the broker knows that the group is done with all of a topic."""
    assert isinstance(t, Lagged), "acknowledging positions, it has to tell them"
    return not any((await t.lag([topic], c.name("group"))).values())


# ---- 42


@case(42, "dead_letter", "persistent", level="bus", part="crash")
async def dead_letter_crash_through_bus(c: Context) -> None:
    """Though a process is killed while it gives up messages, each ends as a dead letter, at least once."""
    t = await c.open()
    letters, bus = await graveyard(c, t), c.bus()

    @bus.subscribe(orders, group="group", lease=c.lease, retry=Retry(attempts=3, base=0.3))
    async def handle(order: str) -> None:
        raise ValueError("no such customer")

    await c.opened(bus)
    await bus.publish(orders, "before the group is there")
    child = await serving(c, "fail")
    await bus.publish_many(orders, numbered(COUNT))
    buried = 0
    while buried < COUNT // 2:
        word, _, n = (await child.line()).partition(" ")
        buried += int(n) if word == "dead_lettered" else 0
    await child.kill()
    await c.serve(bus)
    missing = {f'"{n}"'.encode() for n in range(COUNT)}
    ends = c.time() + within(c)
    while missing:
        assert c.time() < ends, f"given up, and no dead letter: {sorted(missing)}"
        found = await letters.receive()
        missing -= set(bodies(found))
        await letters.settle(found)


# ---- 69


@case(69, "persistent", "groups")
async def consumer_sigkill(c: Context) -> None:
    """What a process had received and not acknowledged when it was killed goes to another, all of it and once."""
    t = await c.open()
    child = await consuming(c, "hold")
    await c.stored(t, *(out(c.name(), body) for body in numbered(COUNT)))
    got = await child.lines(COUNT)
    each_once([line.removeprefix("got ").encode() for line in got], numbered(COUNT))
    await child.kill()
    heir = await c.join(t, c.name())
    each_once(bodies(await heir.drain(COUNT, within(c))), numbered(COUNT))
    await heir.nothing()


@case(69, "persistent", "groups", level="bus")
async def consumer_sigkill_through_bus(c: Context) -> None:
    """What a process was handling, or had fetched, when it was killed is handled by another."""
    await taken_over(c, orders, numbered(COUNT))


@case(69, "persistent", "groups", "order>=key", level="bus", part="keys")
async def consumer_sigkill_keys_through_bus(c: Context) -> None:
    """With an order to keep, too; each key goes on where the killed process was in it, in order."""
    found = await taken_over(c, keyed, [f"{key}:{n}" for n in range(COUNT // 4) for key in "abcd"])
    for key in "abcd":
        mine = [order for order in found if order[0] == key]
        assert mine == [f"{key}:{n}" for n in range(COUNT // 4)], f"key {key} was handled as {mine}"


async def taken_over(c: Context, topic: Topic[str], sent: Sequence[str]) -> list[str]:
    """Kill a process in its handlers; what the next one handles, in order."""
    bus, log = c.bus(), c.log()

    @bus.subscribe(topic, group="group", lease=c.lease)
    async def handle(order: str) -> None:
        log.add(order)

    async with bus.serving():
        pass  # it makes the topic with its order, and the group; or it is refused
    await c.opened(bus)
    child = await serving(c, "hold")
    await bus.publish_many(topic, sent)
    await child.line()
    await child.kill()
    await c.serve(bus)
    await log.reach(len(sent), within(c))
    each_once([order.encode() for order in log.items], sent)
    await log.quiet()
    found: list[str] = log.items
    return found


# ---- 70


@case(70, "persistent", "groups", "individual")
async def consumer_sigkill_after_ack(c: Context) -> None:
    """What a process had acknowledged, and the broker confirmed, before it was killed never returns."""
    t = await c.open()
    child = await consuming(c, "ack")
    await c.stored(t, *(out(c.name(), body) for body in numbered(COUNT)))
    settled = set[str]()
    while len(settled) < COUNT:
        word, _, body = (await child.line()).partition(" ")
        if word == "settled":
            settled.add(body)
    await child.kill()
    heir = await c.join(t, c.name())
    if not c.capabilities.ack_durable:
        c.remark("ack_durable is not declared: what was acknowledged may return")
        return
    await heir.nothing(c.lease + 1)
    await c.stored(t, out(c.name(), "barrier"))
    assert bodies(await heir.drain(1)) == [b"barrier"]


@case(70, "persistent", "groups", level="bus")
async def consumer_sigkill_after_ack_through_bus(c: Context) -> None:
    """What a process had handled, and its bus counted as handled, before it was killed is handled by nobody again."""
    bus, log = c.bus(), c.log()

    @bus.subscribe(orders, group="group", lease=c.lease)
    async def handle(order: str) -> None:
        log.add(order)

    await c.opened(bus)
    await bus.publish(orders, "before the group is there")
    child = await serving(c, "ack")
    await bus.publish_many(orders, numbered(COUNT))
    vouched = 0
    while vouched < COUNT:
        word, _, n = (await child.line()).partition(" ")
        vouched += int(n) if word == "handled" else 0
    if c.capabilities.settling is Settling.CUMULATIVE:  # then positions are acknowledged, and now and then
        done = partial(committed, c, await c.open(), place(bus, "orders"))
        await c.eventually(done, "the group's position is stored")
    await child.kill()
    await c.serve(bus)
    if not c.capabilities.ack_durable:
        c.remark("ack_durable is not declared: what was acknowledged may return")
        return
    await log.quiet(c.lease + 1)
    await bus.publish(orders, "barrier")
    assert await log.reach(1) == ["barrier"]


# ---- 71


async def killed_in_the_middle(c: Context, child: Child) -> tuple[set[int], set[int]]:
    """Kill a publisher after some of its messages; the numbers that it said were stored, and those that it tried."""
    lines = await child.lines(c.random.randint(40, 160))
    lines += await child.kill()
    return numbers(lines, "+"), numbers(lines, "?")


def whole(found: Iterable[str], stored: set[int], tried: set[int]) -> None:
    """All that was stored is there, nothing that was not sent, nothing twice, and nothing torn."""
    items = list(found)
    torn = [item[:20] for item in items if item != body_of(int(item.rstrip(".") or -1), SIZE)]
    assert not torn, f"torn messages: {torn[:5]}"
    there = [int(item.rstrip(".")) for item in items]
    lost, unexpected = stored - set(there), set(there) - tried
    assert not lost, f"acknowledged to a publisher that was killed, and not there: {sorted(lost)[:10]}"
    assert not unexpected, f"there, and never sent: {sorted(unexpected)[:10]}"
    assert len(there) == len(set(there)), "messages are there twice"


@case(71, "persistent", "groups")
async def publisher_sigkill(c: Context) -> None:
    """What was acknowledged to a process that was killed while it sent is there, whole and once."""
    m = await c.join(await c.open(), c.name())
    stored, tried = await killed_in_the_middle(c, await c.child("publish", c.name(), "0", str(SIZE)))
    assert stored, "the publisher stored nothing"
    found = await m.drain(len(stored))
    ends = c.time() + c.quiet
    while c.time() < ends:  # more may have been stored than was said
        more = await m.receive()
        found += more
        ends = c.time() + c.quiet if more else ends
    whole([(d.body or b"").decode(errors="replace") for d in found], stored, tried)


@case(71, "persistent", "groups", level="bus")
async def publisher_sigkill_through_bus(c: Context) -> None:
    """What `publish` returned for, in a process that was killed while it published, is handled, whole and once."""
    bus, log = c.bus(), c.log()

    @bus.subscribe(orders, group="group")
    async def handle(order: str) -> None:
        log.add(order)

    await c.serve(bus)
    stored, tried = await killed_in_the_middle(c, await c.child("produce", c.namespace, "orders", str(SIZE), "8"))
    assert stored, "the publisher stored nothing"
    await log.reach(len(stored))
    before = -1
    while len(log) > before:  # more may have been stored than was said
        before = len(log)
        await asyncio.sleep(c.quiet)
    whole(log.items, stored, tried)
