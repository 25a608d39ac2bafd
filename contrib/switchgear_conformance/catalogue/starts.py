"""Capabilities: where a new group begins, moving one that is stopped, and reading without one."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

from switchgear import Bus, NotFound, Refused, Topic
from switchgear.driver import Browsable, Seekable, Transport
from switchgear_conformance.case import case
from switchgear_conformance.context import Context, Log, listen, numbered
from switchgear_conformance.member import Member, bodies, each_once, out

ORDERS = Topic("orders", str)
OLD, MID = numbered(5, "old"), numbered(5, "mid")


async def two_halves(c: Context, t: Transport) -> tuple[Member, float]:
    """A keeper (some brokers keep only what a group has not read) with the old and the middle messages, held, and an
    instant between the two on the broker's clock."""
    keeper = await c.join(t, c.name(), group="keeper")
    await c.stored(t, *(out(c.name(), body) for body in OLD))
    old = await keeper.take(5)
    await asyncio.sleep(0.05)  # so that an instant fits between
    await c.stored(t, *(out(c.name(), body) for body in MID))
    mid = await keeper.take(5)
    last, first = max(map(keeper.source.time, old)), min(map(keeper.source.time, mid))
    assert last < first, f"messages stored 50 ms apart have the times {last} and {first}"
    return keeper, (last + first) / 2


@case(44, "groups", "replay")
async def replay(c: Context) -> None:
    """A new group begins with what comes ("new") or with all that is there ("earliest"); an old one where it was."""
    t = await c.open()
    keeper, _ = await two_halves(c, t)
    new, earliest = await c.join(t, c.name(), group="new"), await c.join(t, c.name(), group="all", start="earliest")
    await c.stored(t, out(c.name(), "last"))
    assert bodies(await new.drain(1)) == [b"last"], "a group that starts at 'new' began with what was there before"
    taken = await earliest.take(11)
    each_once(bodies(taken), [*OLD, *MID, "last"])
    await earliest.settle(taken[:4])
    for m in (new, earliest):
        await m.close()
    again = await c.join(t, c.name(), group="all", start="earliest")  # known: its start means nothing any more
    each_once(bodies(await again.drain(7)), [d.body or b"" for d in taken[4:]])
    await again.nothing()
    await again.close()
    await keeper.close()


@case(44, "groups", "replay_time", part="time")
async def replay_time(c: Context) -> None:
    """A new group that begins at a time is handed what was stored from then on."""
    t = await c.open()
    keeper, between = await two_halves(c, t)
    m = await c.join(t, c.name(), group="time", start=between)
    await c.stored(t, out(c.name(), "last"))
    each_once(bodies(await m.drain(6)), [*MID, "last"])
    await m.nothing()
    await m.close()
    await keeper.close()


@case(44, "groups", "replay", "seekable", part="seek")
async def replay_seek(c: Context) -> None:
    """A stopped group is moved to the start, a time, a position, the end; one that is read is not, nor an unknown."""
    t = await c.open()
    assert isinstance(t, Seekable)
    group = c.namespace + "group"
    m = await c.join(t, c.name())
    keeper, between = await two_halves(c, t)
    seen = await m.drain(10)
    third = m.source.position(seen[2])
    try:
        await t.seek(c.name(), group, "earliest")
    except Refused:
        pass
    else:
        raise AssertionError("a group was moved while a member read it")
    await m.close()
    everything = [d.body or b"" for d in seen]
    behind = [d.body or b"" for d in seen[2:] if d.lane == seen[2].lane]  # a position is one of its lane
    targets: list[tuple[str | float, list[bytes]]] = [("earliest", everything), (third, behind), ("new", [])]
    if "time" in c.capabilities.starts:
        targets.append((between, [body for body in everything if body.startswith(b"mid")]))
    for to, expected in targets:
        await t.seek(c.name(), group, to)
        again = await c.join(t, c.name())
        assert sorted(bodies(await again.drain(len(expected))), key=str) == sorted(expected), f"after a seek to {to!r}"
        await again.nothing()
        await again.close()
    try:
        await t.seek(c.name(), c.namespace + "nobody", "earliest")
    except NotFound:
        pass
    else:
        raise AssertionError("a group that does not exist was moved")
    await keeper.close()


@case(44, "groups", "browsable", part="browse")
async def replay_browse(c: Context) -> None:
    """What is stored can be read without a group, whole and in stored order, between two times, leaving no trace."""
    t = await c.open()
    assert isinstance(t, Browsable)
    m = await c.join(t, c.name())
    sent = [(str(i).encode(), f"k{i}".encode(), [("n", str(i).encode())]) for i in range(250)]
    await c.stored(t, *(out(c.name(), body, key, headers=headers) for body, key, headers in sent))
    found = [(d, headers) async for d, headers in t.browse(c.name(), "earliest", None)]
    whole = [(d.body, d.key, headers) for d, headers in found]
    assert sorted(whole, key=str) == sorted(sent, key=str), f"{len(found)} of {len(sent)}, or not as they were sent"
    for lane in {d.lane for d, _ in found}:
        numbers = [int(d.body or b"") for d, _ in found if d.lane == lane]
        assert numbers == sorted(numbers), f"not in stored order: {numbers[:20]}…"
    assert [d async for d, _ in t.browse(c.name(), "earliest", c.now() - 60)] == [], "younger than the end"
    assert [d async for d, _ in t.browse(c.name(), c.now() + 60, None)] == [], "older than the start"
    assert [d async for d, _ in t.browse(c.name("unknown"), "earliest", None)] == []
    each_once(bodies(await m.drain(250)), [body for body, _, _ in sent])
    await m.close()


# ---- through Bus


async def kept(c: Context, bodies: list[str]) -> Bus:
    """A bus that has published these, and a group that has read none of them."""
    bus = await c.opened(c.bus())
    keeper = bus.consumer(ORDERS, group="keeper")
    await keeper.__aenter__()
    c.closed(lambda: keeper.__aexit__(None, None, None))
    await bus.publish_many(ORDERS, bodies)
    return bus


async def started(c: Context, start: object) -> Log:
    bus, log = c.bus(), c.log()
    listen(bus, ORDERS, log, start=start)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await c.serve(bus)
    return log


@case(44, "groups", "replay", level="bus")
async def replay_through_bus(c: Context) -> None:
    """A new group with `start="earliest"` handles what was published before it came, and goes on with what follows."""
    publisher = await kept(c, list(OLD))
    log = await started(c, "earliest")
    await publisher.publish_many(ORDERS, MID)
    await log.reach(10)
    assert sorted(log.items) == sorted([*OLD, *MID])
    await log.quiet()


@case(44, "groups", "replay_time", level="bus", part="time")
async def replay_time_through_bus(c: Context) -> None:
    """A new group whose `start` is a time handles what was published from then on."""
    publisher = await kept(c, list(OLD))
    await asyncio.sleep(0.05)
    start = datetime.fromtimestamp(c.now(), UTC)
    await asyncio.sleep(0.05)
    await publisher.publish_many(ORDERS, MID)
    log = await started(c, start)
    await log.reach(5)
    assert sorted(log.items) == sorted(MID)
    await log.quiet()
