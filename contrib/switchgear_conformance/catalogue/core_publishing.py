"""Core: what is published arrives, all of it, and publishing tells the truth."""

from __future__ import annotations

import asyncio
from typing import Unpack

from switchgear import PublishOptions, Topic
from switchgear.driver import Lagged, Outgoing, Transport
from switchgear.errors import MaybeSent, SwitchgearError, TransportError
from switchgear_conformance.case import case
from switchgear_conformance.context import Context, listen, numbered
from switchgear_conformance.member import Member, bodies, each_once, out

TOPICS = 20
TASKS, EACH = 50, 6
LONG = 1 << 25  # bytes
ROUNDS = 24  # subscriptions that are published to at once


@case(7)
async def ready_means_ready(c: Context) -> None:
    """What another process sends at once after `subscribe` returned arrives, every time."""
    t, publisher = await c.open(), await c.open()
    for n in range(ROUNDS):
        everyone = n % 3 == 2 and t.capabilities.broadcast
        m = await c.join(t, c.name(f"orders{n % 2}"), group=None if everyone else f"group{n}")
        if t.capabilities.ready:
            await asyncio.sleep(t.capabilities.ready)
        await c.stored(publisher, out(c.name(f"orders{n % 2}"), str(n)))
        assert bodies(await m.drain(1)) == [str(n).encode()]
        await m.close()


@case(7, part="waiting")
async def ready_means_ready_waiting(c: Context) -> None:
    """A `receive` that waits is told of what another process sends; with nothing to tell it ends in about a second."""
    t, publisher = await c.open(), await c.open()
    m = await c.join(t, c.name())
    began = c.time()
    assert not await m.source.receive(10), "nothing was sent, and something came"
    assert c.time() - began < 3, f"receive waited {c.time() - began:.1f} s for the first message"
    took: list[float] = []
    for _ in range(3):
        waits = asyncio.create_task(m.take(1))
        await asyncio.sleep(0.15)
        sent = c.time()
        await c.stored(publisher, out(c.name(), "1"))
        await m.settle(await waits)
        took.append(c.time() - sent)
    assert min(took) < 0.6, f"what was sent while receive waited came only after {min(took):.2f} s"
    await m.close()


@case(7, level="bus")
async def ready_means_ready_through_bus(c: Context) -> None:
    """What another bus publishes at once after `serving()` was entered is handled."""
    bus, publisher, log = c.bus(), await c.opened(c.bus(name="other")), c.log()
    topics = [Topic(f"orders{n:02}", str) for n in range(ROUNDS)]
    for topic in topics:
        listen(bus, topic, log)
    await c.serve(bus)
    if c.capabilities.ready:
        await asyncio.sleep(c.capabilities.ready)
    await asyncio.gather(*(publisher.publish(topic, topic.name) for topic in topics))
    await log.reach(ROUNDS)
    assert sorted(log.items) == [topic.name for topic in topics]


@case(8)
async def concurrent_publishers(c: Context) -> None:
    """Of 50 tasks that send, as many at once as the transport takes, nothing is lost and nothing doubled."""
    t = await c.open()
    m = await c.join(t, c.name())
    turns = asyncio.Semaphore(t.capabilities.sends)

    async def publish(task: int) -> None:
        for n in range(EACH):
            async with turns:
                await c.stored(t, out(c.name(), f"{task}-{n}", f"k{task}"))

    await asyncio.gather(*(publish(task) for task in range(TASKS)))
    each_once(bodies(await m.drain(TASKS * EACH)), [f"{task}-{n}" for task in range(TASKS) for n in range(EACH)])
    await m.nothing()
    await m.close()


@case(8, level="bus")
async def concurrent_publishers_through_bus(c: Context) -> None:
    """Of 50 tasks that publish on one bus, nothing is lost, nothing doubled, and every id is another."""
    orders = Topic("orders", str)
    bus, log = c.bus(), c.log()
    listen(bus, orders, log)
    await c.serve(bus)

    async def publish(task: int) -> list[str]:
        return [await bus.publish(orders, f"{task}-{n}") for n in range(EACH)]

    ids = {id for some in await asyncio.gather(*(publish(task) for task in range(TASKS))) for id in some}
    await log.reach(TASKS * EACH)
    await log.quiet()
    each_once((body.encode() for body in log.items), [f"{task}-{n}" for task in range(TASKS) for n in range(EACH)])
    assert len(ids) == TASKS * EACH, "two publishes returned one id"


@case(9)
async def concurrent_topics(c: Context) -> None:
    """A source of 20 topics is handed exactly what was sent to each, sent apart or in one batch."""
    t = await c.open()
    topics = [c.name(f"orders.{n:02}") for n in range(TOPICS)]
    m = await c.join(t, *topics)
    turns = asyncio.Semaphore(t.capabilities.sends)

    async def publish(topic: str) -> None:
        async with turns:
            await c.stored(t, *(out(topic, f"{topic} {n}") for n in range(5)))

    await asyncio.gather(*(publish(topic) for topic in topics))
    await c.stored(t, *(out(topic, f"{topic} {n}") for n in range(5, 8) for topic in topics))
    found = await m.drain(TOPICS * 8)
    each_once(bodies(found), [f"{topic} {n}" for topic in topics for n in range(8)])
    strays = [d for d in found if not (d.body or b"").decode().startswith(d.topic + " ")]
    assert not strays, f"{strays[0].body!r} came from topic {strays[0].topic}"
    await m.nothing()
    await m.close()


@case(9, part="fair")
async def concurrent_topics_fair(c: Context) -> None:
    """Of two topics in one source, the one with a backlog does not starve the other."""
    t = await c.open()
    topics = c.name("busy"), c.name("rare")
    await (await c.join(t, *topics)).close()  # the group begins; who reads next finds the backlog as a whole
    await c.stored(t, *(out(c.name("busy"), str(n)) for n in range(100)), out(c.name("rare"), "rare"))
    m = await c.join(t, *topics)
    seen: list[bytes | None] = []
    while len(seen) < 60:
        some = await m.receive(10)
        await m.settle(some)
        seen += bodies(some)
    assert b"rare" in seen, "60 messages of one topic came, and not the only one of the other"
    each_once(seen + bodies(await m.drain(101 - len(seen))), [*numbered(100), "rare"])
    await m.close()


@case(9, level="bus")
async def concurrent_topics_through_bus(c: Context) -> None:
    """Of 20 topics published to at once, each handler gets exactly its own."""
    bus, logs = c.bus(), {Topic(f"orders.{n:02}", str): c.log() for n in range(TOPICS)}
    for topic, log in logs.items():
        listen(bus, topic, log)
    await c.serve(bus)
    for n in range(8):
        await asyncio.gather(*(bus.publish(topic, f"{topic.name} {n}") for topic in logs))
    for topic, log in logs.items():
        await log.reach(8)
        assert sorted(log.items) == numbered(8, f"{topic.name} "), f"handled of {topic.name}: {log.items}"


Said = dict[bytes, BaseException | None]
"""By body, what became of a message as its sender was told."""


@case(10)
async def publish_truth(c: Context) -> None:
    """What `send` says is stored is there when it returns; what it says is not never appears."""
    t, other = await c.open(), await c.open()
    topic, said = c.name(), Said()
    m = await c.join(other, topic)

    async def send(*batch: Outgoing, within: float = 10.0) -> None:
        try:
            outcomes = list(await t.send(batch, c.deadline(within)))
        except TransportError as error:
            outcomes = [error] * len(batch)
        assert len(outcomes) == len(batch), f"{len(outcomes)} outcomes for {len(batch)} messages"
        said.update((o.body or b"", outcome) for o, outcome in zip(batch, outcomes, strict=True))

    for n in range(5):
        await send(out(topic, f"alone {n}"))
        await there(c, other, said)
    await send(*(out(topic, f"together {n}", f"k{n}") for n in range(5)))
    await there(c, other, said)
    fine(said)
    if t.capabilities.body < LONG:
        long = out(topic, bytes(t.capabilities.body + 1), "long")
        await send(out(topic, "before", "a"), long, out(topic, "beside", "b"), out(topic, "after", "c"))
        fine({body: outcome for body, outcome in said.items() if body != long.body})
    for n, within in enumerate((-1.0, 0.0, 0.001)):
        await send(out(topic, f"late {n}"), within=within)
    await t.close()
    await send(out(topic, "closed"))
    assert said[b"closed"] is not None, "send on a closed transport says that it stored"
    await true(c, m, said)


@case(10, level="bus")
async def publish_truth_through_bus(c: Context) -> None:
    """A publish that returned is stored; of one that raised, all but MaybeSent never appears."""
    orders = Topic("orders", bytes, codec="application/octet-stream")
    other, said = await c.open(), Said()
    m = await c.join(other, c.name())
    bus = await c.opened(c.bus())

    async def publish(body: bytes, **options: Unpack[PublishOptions]) -> None:
        try:
            await bus.publish(orders, body, **options)
        except SwitchgearError as error:
            said[body] = error
        else:
            said[body] = None

    for n in range(5):
        await publish(b"alone %d" % n)
        await there(c, other, said)
    await asyncio.gather(*(publish(b"together %d" % n) for n in range(20)))
    await there(c, other, said)
    fine(said)
    for n, within in enumerate((0.0, 0.001)):
        await asyncio.gather(*(publish(b"late %d/%d" % (n, i), timeout=within) for i in range(5)))
    await publish(b"bad header", headers={"x": "a\nb"})
    assert said[b"bad header"] is not None
    if c.capabilities.body < LONG:
        long = bytes(c.capabilities.body + 1)
        given = [b"first", long, b"last"]
        outcomes = await bus.publish_many(orders, given, return_exceptions=True)
        said.update((b, o if isinstance(o, Exception) else None) for b, o in zip(given, outcomes, strict=True))
        fine({body: outcome for body, outcome in said.items() if body in (b"first", b"last")})
    await true(c, m, said)


def fine(said: Said) -> None:
    """These have nothing that could be refused, and the broker is well."""
    failed = [(body[:20], outcome) for body, outcome in said.items() if outcome is not None]
    assert not failed, f"nothing is wrong with {failed[0][0]!r}, and it was not stored: {failed[0][1]!r}"


async def there(c: Context, t: Transport, said: Said) -> None:
    """All that is said to be stored waits for the group, as another connection sees it (if it can)."""
    wanted = sum(outcome is None for outcome in said.values())
    if isinstance(t, Lagged):
        found = sum((await t.lag([c.name()], c.name("group"))).values())
        assert found == wanted, f"{wanted} messages were stored when send returned, and {found} were there"


async def true(c: Context, m: Member, said: Said) -> None:
    """Read everything: what was stored is there once, what was definitely not is not."""
    stored = {body for body, outcome in said.items() if outcome is None}
    found: list[bytes | None] = []
    while stored - set(found):
        found += bodies(await m.drain(1))
    ends = c.time() + c.quiet
    while c.time() < ends:  # what nobody knows of may be there too
        some = await m.receive()
        await m.settle(some)
        found += bodies(some)
    each_once([body for body in found if body in stored], stored)
    denied = [body for body in found if body is not None and body not in stored]
    for body in denied:
        assert isinstance(said.get(body), MaybeSent), f"{body[:20]!r} is there; its sender was told {said.get(body)!r}"
    await m.close()
