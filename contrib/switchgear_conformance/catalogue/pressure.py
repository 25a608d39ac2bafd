"""Members and keys that stand still: what they hold stays theirs, and it does not grow."""

from __future__ import annotations

import asyncio

from switchgear import Retry, RetryAfter, Topic
from switchgear.driver import Order, Settling
from switchgear_conformance.case import case
from switchgear_conformance.context import Context, numbered
from switchgear_conformance.member import EXTEND, bodies, each_once, out
from switchgear_conformance.watching import Counts, held

from .handover import fenced, lease

FLOOD = 300  # messages behind a key that stands still
WINDOW = 100  # messages that a lane may hold
ROOM = 600  # messages that may be held beside a full window: one fetch and what is handled

keyed = Topic("orders", str, key=lambda order: order.partition(":")[0], partitions=4)


def long(c: Context) -> float:
    """Seconds for which a member is without room: ten minutes, or a few leases where time is real."""
    return 600.0 if c.virtual else 2 * c.lease


# ---- 83


@case(83, "order>=key", "individual")
async def hot_held_key(c: Context) -> None:
    """While one message of a key is held, a flood behind it is not fetched without end, and other keys go on."""
    m = await c.join(await c.open(), c.name(), order=Order.KEY, outstanding=FLOOD)
    t = await c.open()
    await c.stored(t, out(c.name(), "0", "hot"))
    first = await m.one()
    await c.stored(t, *(out(c.name(), str(n), "hot") for n in range(1, FLOOD)))
    await c.stored(t, *(out(c.name(), body, f"cold{n % 5}") for n, body in enumerate(numbered(30, "cold"))))
    behind = [first]
    cold: list[bytes | None] = []
    ends = c.time() + 10
    while len(cold) < 30:
        assert c.time() < ends, f"behind a held key {len(cold)} of 30 messages of other keys came"
        found = await m.receive(50)
        behind += [d for d in found if d.key == b"hot"]
        await m.settle(rest := [d for d in found if d.key != b"hot"])
        cold += bodies(rest)
    each_once(cold, numbered(30, "cold"))
    assert bodies(behind) == [str(n).encode() for n in range(len(behind))], "the held key came out of order"
    if not first.lane:  # where there are lanes, the core pauses the one that is full
        assert len(behind) <= FLOOD // 2, f"{len(behind)} messages of a key that stands still were handed out"
    await m.settle(behind)
    rest = await m.drain(FLOOD - len(behind))
    assert bodies(rest) == [str(n).encode() for n in range(len(behind), FLOOD)], "the key went on out of order"


@case(83, "order>=key", "nack", level="bus", bound=60)
async def hot_held_key_through_bus(c: Context) -> None:
    """A key that is held by retries, with a flood behind it, leaves other keys going up to the window, memory flat."""
    bus, log, standing = c.bus(), c.log(), True

    @bus.subscribe(keyed, group="group", window=WINDOW, retry=Retry(attempts=None), concurrency=4)
    async def handle(order: str) -> None:
        if order == "hot:0" and standing:
            raise RetryAfter(0.2)
        log.add(order)

    await c.serve(bus)
    cold = [[f"cold{k}:{run}{n:02}" for n in range(10) for k in range(6)] for run in range(2)]
    hot = [f"hot:{n}" for n in range(WINDOW + ROOM + 100)]
    await bus.publish_many(keyed, hot[: WINDOW // 2])
    await bus.publish_many(keyed, cold[0])
    await log.reach(60)
    assert not [order for order in log.items if order.startswith("hot")], "the held key was overtaken by its own"
    await bus.publish_many(keyed, hot[WINDOW // 2 :])
    await bus.publish_many(keyed, cold[1])
    await c.eventually(
        lambda: len(log) == 120 or "paused" in bus.health().detail["orders → group"],
        "the other keys go on, or health says that a lane is paused",
    )
    assert held(bus) <= WINDOW + ROOM, f"{held(bus)} messages are held, with window={WINDOW}"
    standing = False
    await log.reach(120 + len(hot), 30)
    for key in ("hot", *(f"cold{k}" for k in range(6))):
        found = [order for order in log.items if order.startswith(f"{key}:")]
        sent = hot if key == "hot" else [order for run in cold for order in run if order.startswith(f"{key}:")]
        assert found == sent, f"key {key} was handled out of order"
    assert "paused" not in bus.health().detail["orders → group"]


@case(83, "fences", part="lanes")
async def hot_held_key_lanes(c: Context) -> None:
    """Of a lane that the core holds nothing is fetched, while the others of the same source go on."""
    t, a, b = await c.open(), c.name("part0"), c.name("part1")
    fence = await lease(c, t, "one")
    m = await fenced(c, t, {a: fence, b: fence})
    await c.stored(t, out(a, "a0", "k"), out(b, "b0", "k"))
    first = {d.topic: d for d in await m.take(2)}
    lane = first[a].lane
    assert lane and lane != first[b].lane, f"two topics under leases have the lanes {lane!r} and {first[b].lane!r}"
    await c.stored(t, out(a, "a1", "k"), *(out(b, f"b{n}", "k") for n in range(1, 4)))
    found: list[bytes | None] = []
    ends = c.time() + 10
    while len(found) < 3:
        assert c.time() < ends, f"beside the lane that is held {found} came, of three"
        found += bodies(await m.receive(10, [lane]))
    found += bodies(await m.receive(10, [lane]))
    assert found == [b"b1", b"b2", b"b3"], f"with a lane held, {found} was handed out"
    assert bodies(await m.take(1)) == [b"a1"]


# ---- 86


@case(86, "groups", bound=660)
async def keep_alive_when_full(c: Context) -> None:
    """For ten minutes (scaled) without room: nothing is fetched, and what is held and the membership are kept."""
    m = await c.join(await c.open(), c.name(), lease=c.lease)
    t = await c.open()
    await c.stored(t, *(out(c.name(), body) for body in numbered(5)))
    mine = await m.take(5)
    other = None if m.cumulative else await c.join(t, c.name(), lease=c.lease)  # that would take lanes from it
    leased = c.capabilities.lease_cap > 0 and c.capabilities.settling is Settling.INDIVIDUAL
    pause = min(0.5, c.lease / 4)
    ends = c.time() + long(c)
    while c.time() < ends:
        asked = c.time()
        got = await m.source.receive(0)
        assert c.time() < asked + 1.5, f"receive(0) took {c.time() - asked:.1f} s"
        assert not list(got), f"receive(0) handed out {bodies(got)}"
        if leased:
            await m.settle(mine, EXTEND, c.lease)
        await (asyncio.sleep(pause) if other is None else other.nothing(pause))
    if other is not None:
        await other.close()
    await c.stored(t, *(out(c.name(), body) for body in numbered(8)[5:]))
    for _ in range(3):
        assert not list(await m.source.receive(0)), "receive(0) fetched what had just been stored"
    await m.settle(mine)
    each_once(bodies(await m.drain(3)), ["5", "6", "7"])
    await m.nothing()


@case(86, "groups", level="bus", bound=660)
async def keep_alive_when_full_through_bus(c: Context) -> None:
    """A member whose handlers stand still for ten minutes (scaled) keeps what it holds, and fetches no more."""
    counts = Counts()
    full, other = c.bus(observers=[counts], grace=1), c.bus(observers=[counts])
    topic, log, began, go_on = Topic("orders", str), c.log(), c.log(), asyncio.Event()

    @full.subscribe(topic, group="group", concurrency=1, lease=c.lease)
    async def wait(order: str) -> None:
        began.add(order)
        await go_on.wait()
        log.add(order)

    @other.subscribe(topic, group="group", lease=c.lease)
    async def handle(order: str) -> None:
        log.add(order)

    await c.serve(full)
    await full.publish_many(topic, numbered(100))
    await began.reach(1)
    if c.capabilities.settling is Settling.CUMULATIVE:  # another member would take lanes, and wait for their handlers
        await log.quiet()
        left = 100
    else:
        await c.serve(other)
        await c.eventually(lambda: len(log) + held(full) >= 100, "what the full member leaves is handled by the other")
        left = held(full)
    kept = held(full)
    await log.quiet(long(c))
    assert len(log) == 100 - left, "the other was handed what the full member held"
    assert held(full) == kept < 100, f"{kept} of 100 were held, then {held(full)}"
    go_on.set()
    await log.reach(100)
    each_once([order.encode() for order in log.items], numbered(100))
    await log.quiet()
    assert not counts["lease_lost"], f"{counts['lease_lost']} leases were lost"
    assert not counts["duplicate"], f"{counts['duplicate']} deliveries came again"
