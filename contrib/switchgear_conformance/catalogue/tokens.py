"""What tells one delivery from another."""

from __future__ import annotations

from switchgear import Topic
from switchgear_conformance.case import case
from switchgear_conformance.context import Context
from switchgear_conformance.member import bodies, each_once, out
from switchgear_conformance.watching import Counts


@case(94)
async def token_scope(c: Context) -> None:
    """Messages of several topics have different tokens, though the broker's own ids may be equal, and settle apart."""
    topics = [c.name(f"part{n}") for n in range(3)]
    t = await c.open()
    m = await c.join(t, *topics)
    for n in range(6):
        await c.stored(t, *(out(topic, f"{topic}/{n}") for topic in topics))
    batch = await m.take(18)
    assert {d.topic for d in batch} == set(topics)
    assert len({d.token for d in batch}) == 18, "messages of different topics have equal tokens"
    assert all(m.source.headers(d) == [] for d in batch)
    await m.settle([d for d in batch if d.topic == topics[1]])
    await m.close()
    rest = [d.body or b"" for d in batch if d.topic != topics[1]]
    m = await c.join(t, *topics)
    again = await m.drain(len(rest))
    each_once(bodies(again), rest)
    await m.nothing()


@case(94, "order>=key", level="bus")
async def token_scope_through_bus(c: Context) -> None:
    """Of partitions whose positions are equal every message is handled, and none is taken for a duplicate."""
    counts = Counts()
    keyed = Topic("orders", str, key=lambda order: order.partition(":")[0], partitions=4)
    bus, log = c.bus(observers=[counts]), c.log()

    @bus.subscribe(keyed, group="group", concurrency=4)
    async def handle(order: str) -> None:
        log.add(order)

    await c.serve(bus)
    sent = [f"key{k}:{n}" for n in range(12) for k in range(12)]
    await bus.publish_many(keyed, sent)
    await log.reach(len(sent))
    assert sorted(log.items) == sorted(sent)
    await log.quiet()
    assert counts["duplicate"] == 0, f"{counts['duplicate']} messages were taken for duplicates"
