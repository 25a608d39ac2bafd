"""Several at once: each item of a send, a settlement or a handled batch has its own outcome."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from switchgear import Batch, Message, Retry, Topic
from switchgear.driver import Outgoing, Settlement, Settling, Verdict
from switchgear.errors import NotSent, Refused, TransportError
from switchgear_conformance.case import case
from switchgear_conformance.context import Context, numbered
from switchgear_conformance.harness import NotRun
from switchgear_conformance.member import RELEASE, RETRY, bodies, each_once, out
from switchgear_conformance.watching import place

LONGEST = 64 << 20  # bytes of a body that a case makes

orders = Topic("orders", str)
keyed = Topic("orders", str, key=lambda order: order.partition(":")[0], partitions=4)


def unstorable(c: Context, topic: str, key: str | None = None) -> Outgoing:
    """A message that the broker itself refuses: a tombstone where it has none, else one that is too long."""
    if not c.capabilities.tombstones:
        return out(topic, None, key)
    if c.capabilities.body > LONGEST:
        raise NotRun("nothing is known that this broker refuses: it has tombstones, and no limit that fits in memory")
    return out(topic, bytes(c.capabilities.body + 1), key)


# ---- 50


@case(50)
async def batch_publish(c: Context) -> None:
    """A send has an outcome for each item, in order: what is refused is refused alone, and the rest is stored."""
    t = await c.open()
    m = await c.join(t, c.name("a"), c.name("b"))
    batch = [out(c.name("ab"[n % 2]), str(n)) for n in range(10)]
    bad = {1, 6, 9}
    for n in bad:
        batch[n] = unstorable(c, batch[n].topic)
    outcomes = await c.send(t, *batch)
    assert len(outcomes) == 10, f"{len(outcomes)} outcomes for 10 messages"
    wrong = [n for n, outcome in enumerate(outcomes) if isinstance(outcome, Refused) != (n in bad)]
    assert not wrong, f"items {sorted(bad)} are to be refused and no others: {outcomes}"
    assert all(outcome is None for n, outcome in enumerate(outcomes) if n not in bad)
    each_once(bodies(await m.drain(7)), [str(n) for n in range(10) if n not in bad])
    await m.nothing()


@case(50, "groups", level="bus")
async def batch_publish_through_bus(c: Context) -> None:
    """`publish_many` gives an id or an error for each value, in order, and stores all but what is refused."""
    log, bus = c.log(), c.bus()

    @bus.subscribe(orders, group="group")
    async def handle(order: str, message: Message[str]) -> None:
        log.add((message.id, order))

    await c.serve(bus)
    values = numbered(20)

    def id_of(value: str) -> str:
        return f"{c.namespace}{value}" if value not in ("3", "7") else "line\nbreak"

    results = await bus.publish_many(orders, values, id=id_of, return_exceptions=True)
    assert len(results) == 20
    for value, result in zip(values, results, strict=True):
        if value in ("3", "7"):
            assert isinstance(result, Refused), f"an id that breaks the line was not refused: {result!r}"
        else:
            assert result == id_of(value), f"the outcome of {value} is {result!r}"
    await log.reach(18)
    try:
        await bus.publish_many(orders, ["20", "3", "21"], id=id_of)
    except* Refused as group:
        assert len(group.exceptions) == 1
    else:
        raise AssertionError("one of three values was refused, and publish_many returned")
    await log.reach(20)
    expected = {(id_of(value), value) for value in numbered(22) if value not in ("3", "7")}
    assert set(log.items) == expected, "what was refused was stored, or something else was not"
    assert len(log) == 20


# ---- 51


@case(51)
async def batch_consume(c: Context) -> None:
    """Of a batch that is settled in part, the rest returns and what was acknowledged does not."""
    t = await c.open()
    m = await c.join(t, c.name())
    await c.stored(t, *(out(c.name(), body) for body in numbered(20)))
    batch = await m.take(20)
    if m.source.capabilities.settling is Settling.CUMULATIVE:
        done = batch[:9]
        await m.settle(done)
        await m.close()
        m = await c.join(t, c.name())
    else:
        done = batch[::2]
        await m.settle([d for d in batch if d not in done], RELEASE)
        await m.settle(done)
    rest = [d.body or b"" for d in batch if d not in done]
    each_once(bodies(await m.drain(len(rest))), rest)
    await m.nothing()


@case(51, "nack", "individual", part="topics")
async def batch_consume_topics(c: Context) -> None:
    """A batch from several topics, given back at once and mixed with other verdicts, returns every record."""
    topics = [c.name(f"part{n}") for n in range(3)]
    t = await c.open()
    m = await c.join(t, *topics)
    await c.stored(t, *(out(topic, f"{topic}/{n}") for topic in topics for n in range(8)))
    batch = await m.take(24)
    await m.settle(batch, RETRY)
    again = await m.take(24)
    each_once(bodies(again), [d.body or b"" for d in batch])
    verdicts = [Verdict.ACK, Verdict.RETRY, Verdict.RELEASE]
    mixed = [Settlement(d, verdicts[n % 3]) for n, d in enumerate(again)]
    outcomes = list(await m.source.settle(mixed))
    assert outcomes == [None] * 24, f"a batch of mixed verdicts: {outcomes}"
    back = [one.delivery.body or b"" for one in mixed if one.verdict is not Verdict.ACK]
    each_once(bodies(await m.drain(16)), back)
    await m.nothing()


@case(51, "groups", level="bus")
async def batch_consume_through_bus(c: Context) -> None:
    """A batch handler says of each message whether it is done; only what failed is handed over again."""
    log, bus = c.log(), c.bus()

    @bus.subscribe(orders, group="group", batch=Batch(10, wait=0.1), retry=Retry(base=0.01), concurrency=1)
    async def handle(batch: list[str]) -> Sequence[Exception | None]:
        first = [order not in log.items for order in batch]
        for order in batch:
            log.add(order)
        return [ValueError("not yet") if new and int(order) % 3 == 0 else None
                for order, new in zip(batch, first, strict=True)]  # fmt: skip

    await c.serve(bus)
    await bus.publish_many(orders, numbered(30))
    await log.reach(40)
    assert sorted(log.items, key=int) == sorted([*numbered(30), *numbered(30)[::3]], key=int)
    await log.quiet()


@case(51, "order>=key", level="bus", part="keys")
async def batch_consume_keys_through_bus(c: Context) -> None:
    """A batch over several keys (and partitions) that fails as a whole comes again as a whole, each key in order."""
    log, bus, failed = c.log(), c.bus(), set[str]()

    @bus.subscribe(keyed, group="group", batch=Batch(12, wait=0.1), retry=Retry(base=0.01), concurrency=1)
    async def handle(batch: list[str]) -> None:
        if not failed and len(batch) > 4:
            failed.update(batch)
            raise ValueError("all of it")
        for order in batch:
            log.add(order)

    await c.serve(bus)
    sent = [f"{key}:{n}" for n in range(5) for key in "abcdef"]
    await bus.publish_many(keyed, sent)
    await log.reach(30)
    assert len({order[0] for order in failed}) > 1, "the batch that failed was of one key"
    assert sorted(log.items) == sorted(sent), "records of the batch that failed did not return, or returned twice"
    for key in "abcdef":
        assert [order for order in log.items if order[0] == key] == [f"{key}:{n}" for n in range(5)]
    await log.quiet()


# ---- 84


@case(84, "send_order")
async def same_key_in_batch(c: Context) -> None:
    """After an item that failed no later item of its key is stored; other keys and topics are."""
    t = await c.open()
    m = await c.join(t, c.name("a"), c.name("b"))
    a, b = c.name("a"), c.name("b")
    bad = unstorable(c, a, "k")
    batch = [out(a, "0", "k"), bad, out(a, "2", "k"), out(a, "3", "other"), out(b, "4", "k"), out(a, "5"),
             out(a, "6", "k")]  # fmt: skip
    outcomes = await c.send(t, *batch)
    kinds = [type(outcome).__name__ for outcome in outcomes]
    assert isinstance(outcomes[1], Refused), f"the broker was to refuse item 1: {kinds}"
    for n in (2, 6):
        assert isinstance(outcomes[n], NotSent), f"item {n} is of the key whose earlier item failed: {kinds}"
    assert [outcomes[n] for n in (0, 3, 4, 5)] == [None] * 4, f"items of other keys and topics: {kinds}"
    each_once(bodies(await m.drain(4)), ["0", "3", "4", "5"])
    await m.nothing()
    await c.stored(t, out(a, "7", "k"))
    assert bodies(await m.drain(1)) == [b"7"], "the key stays closed after the send that failed"


@case(84, "order>=key", level="bus")
async def same_key_in_batch_through_bus(c: Context) -> None:
    """A publish that fails at first and is tried again is not overtaken by later ones of its key."""
    log, bus = c.log(), c.bus()

    @bus.subscribe(keyed, group="group")
    async def handle(order: str) -> None:
        log.add(order)

    await c.serve(bus)
    await bus.publish(keyed, "k:warm")  # what is known of a topic before its first batch leaves
    fail_once(bus.transport, '"k:0"', unstorable(c, place(bus, "orders")))
    sent = [f"{key}:{n}" for n in range(20) for key in "kab"]
    results = await bus.publish_many(keyed, sent, return_exceptions=True)
    stored = [value for value, result in zip(sent, results, strict=True) if isinstance(result, str)]
    assert set(sent) - set(stored) <= {"k:0"}, f"not stored: {sorted(set(sent) - set(stored))}"
    await log.reach(1 + len(stored))
    for key in "kab":
        found = [order for order in log.items if order[0] == key and order != "k:warm"]
        assert found == [order for order in stored if order[0] == key], f"the order of key {key}: {found[:5]}…"
    await log.quiet()


def fail_once(transport: Any, body: str, bad: Outgoing) -> None:
    """Let the next send of this body meet a broker that stores all but it: a fault of passing nature."""
    right = transport.send

    async def send(batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        at = next((n for n, m in enumerate(batch) if m.body == body.encode()), None)
        if at is None:
            outcomes: list[TransportError | None] = await right(batch, deadline)
            return outcomes
        transport.send = right
        key = batch[at].key
        worse = [*batch[:at], out(batch[at].topic, bad.body, key), *batch[at + 1 :]]
        outcomes = list(await right(worse, deadline))
        assert isinstance(outcomes[at], Refused), f"the broker was to refuse it: {outcomes[at]!r}"
        outcomes[at] = NotSent("a fault of passing nature")
        return outcomes

    transport.send = send
