"""Exactly once: what a message led to is stored with its acknowledgement, or neither is."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

from switchgear import Bus, Reject, Retry, Topic
from switchgear.errors import Lost, Refused
from switchgear_conformance.case import case
from switchgear_conformance.context import Context, Log, listen, numbered
from switchgear_conformance.member import Member, bodies, each_once, out, raised

from .failures import graveyard
from .handover import within

COUNT = 60
KILLS = 3
orders = Topic("orders", str)
keyed = Topic("orders", str, key=lambda order: order[0], order="key")
shipped = Topic("shipped", str, key=lambda order: order[0])


# ---- 53


@case(53, "groups", "transactions", level="bus", bound=60)
async def exactly_once_through_bus(c: Context) -> None:
    """Though most transactions fail, in any way, each message has its output once, or its dead letter."""
    await chain(c, "stumbles", orders)


@case(53, "groups", "transactions", "order>=key", level="bus", part="keys", bound=60)
async def exactly_once_keys_through_bus(c: Context) -> None:
    """The outputs of a key come in the order of what they are the outputs of."""
    found = await chain(c, "stumbles", keyed)
    for key in "abcde":
        mine = [order for order in found if order[0] == key]
        assert mine == sorted(mine), f"of key {key} came {mine}"


@case(53, "groups", "transactions", "individual", level="bus", part="log", bound=60)
async def exactly_once_log_through_bus(c: Context) -> None:
    """So it is by positions, though a note has no room for all that is finished ahead of the slowest message."""
    await chain(c, "stumbling-log", orders)


async def chain(c: Context, kind: str, topic: Topic[str]) -> list[str]:
    """Handle numbered messages over a broker that stumbles; what they led to, in order."""
    letters = await graveyard(c, await c.open())
    source, bus, log = c.bus(), c.bus(c.weak_url(kind)), c.log()
    failed = set[str]()

    @bus.subscribe(
        topic, group="group", to=shipped, delivery="exactly_once", concurrency=40, retry=Retry(attempts=20, base=0.5)
    )
    async def ship(order: str) -> str:
        n = int(order[1:])
        if n % 10 == 7:
            raise Reject("no such customer")
        if n % 3 == 0:
            await asyncio.sleep(0.3)
        if n % 7 == 3 and order not in failed:
            failed.add(order)
            raise ValueError("not yet")
        return order

    listen(source, shipped, log, group="reader", concurrency=1)
    await c.serve(source)
    await c.serve(bus)
    sent = [f"{'abcde'[n % 5]}{n:03}" for n in range(COUNT)]
    step = COUNT if kind == "stumbling-log" else 12
    for some in range(0, COUNT, step):
        await source.publish_many(topic, sent[some : some + step])
        await log.reach(some // 2)
    rejected = [order for order in sent if int(order[1:]) % 10 == 7]
    await log.reach(COUNT - len(rejected), 40)
    buried = await letters.drain(len(rejected), 20)
    await log.quiet()
    each_once([order.encode() for order in log.items], [order for order in sent if order not in rejected])
    each_once(bodies(buried), [f'"{order}"' for order in rejected])
    await letters.nothing()
    found: list[str] = log.items
    return found


@case(53, "groups", "transactions", "persistent", level="bus", part="crash", bound=60)
async def exactly_once_crash_through_bus(c: Context) -> None:
    """Though processes are killed between a handler and its acknowledgement, each output is there once."""
    bus, log = c.bus(), c.log()
    listen(bus, shipped, log, group="reader")
    last = c.bus()
    relaying(last, c)
    async with last.serving():
        pass  # so that there is the group
    await c.serve(bus)
    sent = numbered(COUNT)
    for kill in range(KILLS):
        child = await c.child("relay", c.namespace, "orders", "group", "shipped", str(c.lease))
        assert await child.line() == "ready"
        share = COUNT // KILLS
        await bus.publish_many(orders, sent[kill * share : (kill + 1) * share])
        await child.lines(c.random.randint(1, share // 2))
        await asyncio.sleep(c.random.uniform(0.0, 0.08))
        await child.kill()
    await c.serve(last)
    await all_once(c, log, sent)


def relaying(bus: Bus, c: Context) -> None:
    @bus.subscribe(orders, group="group", to=shipped, delivery="exactly_once", lease=c.lease)
    async def ship(order: str) -> str:
        return order


async def all_once(c: Context, log: Log, sent: Sequence[str]) -> None:
    await log.until(lambda: set(log.items) >= set(sent), "an output of each message", within(c) + 10)
    await log.quiet(c.lease + c.quiet)
    twice = [order for order, times in Counter(log.items).items() if times > 1]
    assert not twice, f"stored more than once: {twice[:10]}"


# ---- 54


@case(54, "groups", "transactions")
async def transaction(c: Context) -> None:
    """What is committed is there, in order, and what was settled with it never returns."""
    t, to = await c.open(), c.name("shipped")
    m, reader = await c.join(t, c.name()), await c.join(await c.open(), to, group="reader")
    await c.stored(t, *(out(c.name(), body) for body in numbered(4)))
    got = await m.take(4)
    await m.commit(got[:2], out(to, "a", "k"), out(to, "b", "k"))
    await m.commit(got[2:], out(to, "c", "k"))
    assert bodies(await reader.drain(3)) == [b"a", b"b", b"c"]
    await m.close()
    heir = await c.join(await c.open(), c.name())
    await c.stored(t, out(c.name(), "barrier"))
    assert bodies(await heir.drain(1)) == [b"barrier"], "what was settled by a transaction came again"
    await heir.nothing()
    await reader.nothing()


@case(54, "groups", "transactions", part="refused")
async def transaction_refused(c: Context) -> None:
    """Where one message of it cannot be stored, nothing of it is, and nothing is settled."""
    t, to = await c.open(), c.name("shipped")
    m, reader = await c.join(t, c.name()), await c.join(await c.open(), to, group="reader")
    await c.stored(t, out(c.name(), "order"))
    got = await m.take(1)
    await raised(m.commit(got, out(to, "a"), out(to, b"." * (t.capabilities.body + 1)), out(to, "b")), Refused)
    await nothing_happened(c, m, reader)


@case(54, "groups", "transactions", part="closed")
async def transaction_closed(c: Context) -> None:
    """By a source that has left the group nothing is committed."""
    t, to = await c.open(), c.name("shipped")
    m, reader = await c.join(t, c.name()), await c.join(await c.open(), to, group="reader")
    await c.stored(t, out(c.name(), "order"))
    got = await m.take(1)
    await m.close()
    await raised(m.commit(got, out(to, "a")), Lost)
    await nothing_happened(c, m, reader)


@case(54, "groups", "transactions", "lease", "fencing", part="fenced", bound=60)
async def transaction_fenced(c: Context) -> None:
    """Where one of its messages has gone to another member, nothing of it happens; the rest is still ours."""
    t, to = await c.open(), c.name("shipped")
    late, reader = await c.join(t, c.name(), lease=c.lease), await c.join(await c.open(), to, group="reader")
    await c.stored(t, out(c.name(), "lost"))
    lost = await late.take(1)
    heir = await c.join(await c.open(), c.name())
    taken = await heir.take(1, within(c))
    await c.stored(t, out(c.name(), "kept"))
    kept = await late.take(1)
    await raised(late.commit([*lost, *kept], out(to, "a"), out(to, "b")), Lost)
    await silent(c, reader)
    await late.commit(kept, out(to, "c"))
    await heir.commit(taken, out(to, "d"))
    each_once(bodies(await reader.drain(2)), ["c", "d"])
    await reader.nothing()


async def nothing_happened(c: Context, m: Member, reader: Member) -> None:
    """What was to be settled comes again, and there is nothing to read."""
    await m.close()
    heir = await c.join(await c.open(), c.name())
    assert bodies(await heir.drain(1, within(c))) == [b"order"]
    await silent(c, reader)


async def silent(c: Context, reader: Member) -> None:
    """The reader of what is produced sees nothing but what is sent now."""
    await c.stored(reader.transport, out(c.name("shipped"), "barrier"))
    assert bodies(await reader.drain(1)) == [b"barrier"], "something of a transaction that failed is visible"


@case(54, "groups", "transactions", "persistent", part="crash", bound=60)
async def transaction_crash(c: Context) -> None:
    """Of a process that is killed while it commits, each message is settled and has its output, or neither."""
    t, to = await c.open(), c.name("shipped")
    reader = await c.join(await c.open(), to, group="reader")
    sent = numbered(COUNT)
    share = COUNT // KILLS
    for kill in range(KILLS):
        child = await c.child("commit", c.name(), c.namespace + "group", to, str(c.lease))
        assert await child.line() == "ready"
        await c.stored(t, *(out(c.name(), body) for body in sent[kill * share : (kill + 1) * share]))
        await child.lines(c.random.randint(1, share // 2))
        await asyncio.sleep(c.random.uniform(0.0, 0.05))
        await child.kill()
    heir = await c.join(t, c.name())
    found = list[bytes | None]()
    ends = c.time() + within(c) + 10
    while len(found) < COUNT:
        assert c.time() < ends, f"{COUNT - len(found)} messages are settled and have no output"
        if got := await heir.receive():
            await heir.commit(got, *(out(to, d.body) for d in got))
        more = await reader.receive()
        await reader.settle(more)
        found += bodies(more)
    await reader.nothing(c.lease + c.quiet)
    each_once(found, sent)
