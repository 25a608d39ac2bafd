"""Faults: the way to the broker breaks, hangs, is slow, or loses an answer."""

from __future__ import annotations

import asyncio
import itertools

from switchgear import Message, Topic
from switchgear.driver import Outgoing
from switchgear.errors import Lost, MaybeSent, NotSent, TransportError, Unavailable
from switchgear_conformance.case import case
from switchgear_conformance.context import Context, listen, numbered
from switchgear_conformance.member import each_once, out
from switchgear_conformance.steady import Reader, attempt, insist, reconnect

from .faults_broker import all_handled, at_work, bounded

ORDERS = Topic("orders", str)
NOT_CUT = "the answer was not cut: none came, or nothing of this size was sent"
LARGE = 20_000  # bytes: more than any heartbeat, less than any limit


@case(63, "groups", "ctl:proxy")
async def reconnect_publish(c: Context) -> None:
    """Resets and a line that is down: sends fail with typed errors that are true, and work again after connect()."""
    reader = await Reader(c, await c.open(), c.name()).join()
    t = await c.open(c.proxied_url)
    fate: dict[bytes, TransportError | None] = {}
    serial = itertools.count()

    async def send(within: float = 5.0) -> TransportError | None:
        body = str(next(serial)).encode()
        fate[body] = error = await attempt(c, t, out(c.name(), body), within)
        return error

    for _ in range(3):
        assert await send() is None
        await c.line.reset()
        if await send() is not None:
            await reconnect(c, t)
    await c.line.down()
    for _ in range(2):
        error = await send(1.0)
        assert isinstance(error, Unavailable | NotSent | MaybeSent), f"nobody listens, and send() says {error!r}"
    for _ in range(2):
        try:
            await bounded(t.connect(c.deadline(1.0)), 3.0, "connect() with a deadline of 1 s")
        except Unavailable:
            continue
        raise AssertionError("connect() succeeded, and nobody listens")
    await c.line.heal()
    await reconnect(c, t)
    assert await send() is None
    await judge(reader, fate)


@case(63, "groups", "order>=key", "ctl:proxy", level="bus")
async def reconnect_publish_through_bus(c: Context) -> None:
    """Publishing goes on over resets and a line that is down: all are stored, keys in order."""
    topic = Topic("orders", str, key=lambda body: body.partition(".")[0], partitions=2)
    reading, log = c.bus(), c.log()
    listen(reading, topic, log)
    await c.serve(reading)
    bus = await c.opened(c.bus(c.proxied_url))
    published: list[str] = []

    async def publish(key: str) -> None:
        for body in numbered(100_000, f"{key}."):
            await bus.publish(topic, body)
            published.append(body)

    async with at_work(*(publish(key) for key in "abc")):
        for n in range(3):
            await log.reach(len(log) + 30)
            if n < 2:
                await c.line.reset()
            else:
                async with c.line.broken():
                    await asyncio.sleep(0.2)
        await log.reach(len(log) + 30)
    await all_handled(c, log, published)
    for key in "abc":
        first = list(dict.fromkeys(int(b.partition(".")[2]) for b in log.items if b.startswith(f"{key}.")))
        assert first == sorted(first), f"key {key} is out of order over a reconnect"


@case(64, "groups", "ctl:proxy", bound=60)
async def reconnect_consume(c: Context) -> None:
    """Resets and a line that is down: a source says Unavailable or Lost, then goes on, and misses nothing."""
    t = await c.open()
    reader = await Reader(c, await c.open(c.proxied_url), c.name()).join()
    await c.stored(t, out(c.name(), "0"))
    await reader.until(["0"])
    for n in ("1", "2"):
        await c.line.reset()
        await c.stored(t, out(c.name(), n))
        await reader.until([n])
    async with c.line.broken():
        await c.stored(t, out(c.name(), "3"))
    await reader.until(["3"])
    await c.stored(t, out(c.name(), "4"))
    await reader.until(["4"])
    await reader.quiet()
    assert set(reader.read) == {b"0", b"1", b"2", b"3", b"4"}
    assert not reader.returned, f"settled, and handed out again after the line broke: {reader.returned}"
    await reader.leave()


@case(64, "groups", "ctl:proxy", bound=60, part="held")
async def reconnect_consume_held(c: Context) -> None:
    """What a source held unsettled when its line broke comes again, to it or to another; nothing is lost."""
    t = await c.open()
    m = await c.join(await c.open(c.proxied_url), c.name(), lease=c.lease)
    await c.stored(t, *(out(c.name(), body) for body in numbered(10)))
    await m.take(10)
    await c.line.reset()
    await m.close()
    reader = await Reader(c, t, c.name()).join()
    await reader.until(numbered(10))
    await reader.leave()


@case(64, "groups", "ctl:proxy", level="bus")
async def reconnect_consume_through_bus(c: Context) -> None:
    """A subscription resumes by itself after resets and a line that is down; what came meanwhile is handled."""
    bus, log = c.bus(c.proxied_url), c.log()
    listen(bus, ORDERS, log, lease=c.lease)
    await c.serve(bus)
    publisher = await c.opened(c.bus())
    await publisher.publish(ORDERS, "0")
    await log.reach(1)
    for n in ("1", "2"):
        await c.line.reset()
        await publisher.publish(ORDERS, n)
        await all_handled(c, log, [n])
    async with c.line.broken():
        await publisher.publish(ORDERS, "3")
    await publisher.publish(ORDERS, "4")
    await all_handled(c, log, ["3", "4"])
    await c.eventually(lambda: bus.health().ready, "the line is good again, and the bus says that it is ready")


@case(65, "groups", "ctl:proxy", bound=90)
async def half_open(c: Context) -> None:
    """Connections silently forward nothing any more: calls end by their deadlines, and new connections are made."""
    t = await c.open()
    through = await c.open(c.proxied_url)
    reader = await Reader(c, through, c.name()).join()
    await c.stored(through, out(c.name(), "before"))
    await reader.until(["before"])
    c.line.strand()
    began = c.time()
    outcome = await attempt(c, through, out(c.name(), "into the void"), 0.5)
    assert isinstance(outcome, MaybeSent | Unavailable), f"nobody can have answered, and send() says {outcome!r}"
    assert c.time() - began < 2.0, f"send() took {c.time() - began:.1f} s; its deadline was 0.5 s away"
    await insist(c, through, out(c.name(), "after"))
    await c.stored(t, out(c.name(), "also"))
    await reader.until(["after", "also"])
    assert set(reader.read) <= {b"before", b"after", b"also"}, "what went into the void was stored"
    await reader.leave()


@case(65, "groups", "ctl:proxy", part="black_hole")
async def half_open_black_hole(c: Context) -> None:
    """Nothing is forwarded at all: connect() ends by its deadline, close() soon, and later all is well again."""
    held = await c.open(c.proxied_url)
    m = await c.join(held, c.name())
    waiting = asyncio.create_task(m.receive())
    await asyncio.sleep(0.05)
    c.line.black_hole()
    fresh = c.transport(c.proxied_url)
    c.closed(fresh.close)
    try:
        await bounded(fresh.connect(c.deadline(0.5)), 2.0, "connect() with a deadline of 0.5 s")
    except Unavailable:
        pass
    else:
        raise AssertionError("connect() says that it reached a broker which cannot answer")
    await bounded(held.close(), 15, "close() while the broker cannot answer")
    ended, _ = await asyncio.wait([waiting], timeout=5)
    assert ended, "receive() goes on after close()"
    if not isinstance(waiting.exception(), TransportError | None):
        await waiting
    await c.line.heal()
    await reconnect(c, fresh)
    await c.stored(fresh, out(c.name(), "after"))


@case(65, "groups", "ctl:proxy", level="bus", bound=90)
async def half_open_through_bus(c: Context) -> None:
    """Publishing and handling go on by new connections when the old ones have silently died."""
    bus, log = c.bus(c.proxied_url), c.log()
    listen(bus, ORDERS, log, lease=c.lease)
    await c.serve(bus)
    publisher = await c.opened(c.bus())
    await bus.publish(ORDERS, "before")
    await log.reach(1)
    c.line.strand()
    began = c.time()
    try:
        await bus.publish(ORDERS, "into the void", timeout=0.5)
    except TransportError:
        assert c.time() - began < 2.0, "publish() went on after its timeout"
    await publisher.publish(ORDERS, "other")
    await bus.publish(ORDERS, "own")
    await all_handled(c, log, ["other", "own"])


@case(66, "groups", "ctl:proxy")
async def slow_link(c: Context) -> None:
    """Latency, little bandwidth and small segments: every message arrives as it was sent."""
    t = await c.open(c.proxied_url)
    m = await c.join(t, c.name())
    sizes = [0, 1, 100, 1500, 9000, 40_000]
    sent = [
        out(c.name(), c.random.randbytes(size), f"k{n}", headers=[("h", c.random.randbytes(20).hex().encode())])
        for n, size in enumerate(sizes)
    ]

    async def through(messages: list[Outgoing]) -> None:
        await c.stored(t, *messages)
        got = sorted(await m.drain(len(messages)), key=lambda d: d.key or b"")
        assert [(d.key, d.body) for d in got] == [(s.key, s.body) for s in messages], "it was changed on the way"
        assert [m.source.headers(d) for d in got] == [s.headers for s in messages], "headers were changed on the way"
        await c.line.heal()

    c.line.latency(0.02, jitter=0.02, seed=c.seed)
    await through(sent)
    c.line.bandwidth(200_000)
    await through(sent)
    c.line.slices(1000)
    await through(sent)
    c.line.slices(3)
    await through(sent[:3])
    await m.nothing()
    await m.close()


@case(66, "groups", "ctl:proxy", level="bus")
async def slow_link_through_bus(c: Context) -> None:
    """Publishing and handling over a slow line: all arrive unchanged, once."""
    bus, log = c.bus(c.proxied_url), c.log()
    listen(bus, ORDERS, log)
    await c.serve(bus)
    c.line.latency(0.01, jitter=0.02, seed=c.seed)
    c.line.bandwidth(500_000)
    texts = [f"{n}:" + c.random.randbytes(100 * n).hex() for n in range(30)]
    await bus.publish_many(ORDERS, texts)
    await log.reach(30)
    await c.line.heal()
    c.line.slices(3)
    texts += ["short", "shorter"]
    await bus.publish_many(ORDERS, texts[-2:], timeout=5)
    await log.reach(32)
    await c.line.heal()
    await log.quiet()
    each_once([text.encode() for text in log.items], texts)


@case(67, "groups", "ctl:proxy")
async def ack_lost(c: Context) -> None:
    """The answer to a send is lost: it says MaybeSent and never sends again; what the broker stored is there once."""
    reader = await Reader(c, await c.open(), c.name()).join()
    t = await c.open(c.proxied_url)
    await c.stored(t, out(c.name(), "before"))
    sent: dict[bytes, TransportError | None] = {}
    for n in range(3):
        body = f"{n}".encode() + c.random.randbytes(LARGE)
        cut = c.line.cut(request=LARGE, response=n)
        sent[body] = outcome = await attempt(c, t, out(c.name(), body, dedup=f"{c.namespace}{n}"))
        assert cut.happened.is_set(), NOT_CUT
        assert outcome is None or isinstance(outcome, MaybeSent), f"it may be stored, and send() says {outcome!r}"
        await reconnect(c, t)
    await c.stored(t, out(c.name(), "after"))
    await reader.until(["before", "after", *(body for body, outcome in sent.items() if outcome is None)])
    await reader.quiet()
    for body in sent:
        copies = reader.read.count(body)
        assert copies <= 1, f"the driver sent again what may have been stored: {copies} copies"
    for n, body in enumerate(sent):
        await insist(c, t, out(c.name(), body, dedup=f"{c.namespace}{n}"))
    await reader.until(sent)
    await reader.quiet()
    most = 2 if c.capabilities.dedup is None else 1
    for body in sent:
        copies = reader.read.count(body)
        assert copies <= most, f"sent twice with one token, and there {copies} times"
    await reader.leave()


@case(67, "groups", "individual", "ctl:proxy", part="settle")
async def ack_lost_settle(c: Context) -> None:
    """The answer to a settlement is lost: settle() says Unavailable or Lost, and settling again harms nothing."""
    t = await c.open()
    m = await c.join(await c.open(c.proxied_url), c.name(), lease=c.lease)
    await c.stored(t, *(out(c.name(), body) for body in numbered(200)))
    taken = await m.take(200)
    c.line.cut(request=1000, every=True)
    try:
        outcomes = await m.outcomes(taken)
    except Unavailable:
        outcomes = [None]
    assert all(o is None or isinstance(o, Lost | Unavailable | MaybeSent) for o in outcomes), outcomes
    await c.line.heal()
    await reconnect(c, m.transport)
    outcomes = await m.outcomes(taken)
    assert all(o is None or isinstance(o, Lost) for o in outcomes), f"settling again: {outcomes[:3]}"
    await m.close()
    reader = await Reader(c, t, c.name()).join()
    await c.stored(t, out(c.name(), "barrier"))
    await reader.until(["barrier"])
    await reader.quiet()
    lost = [d.body for d, o in zip(taken, outcomes, strict=True) if o is not None]
    again = set(reader.read) - {b"barrier", *lost}
    assert not again, f"settled the second time, and back: {sorted(again)[:5]}"
    await reader.leave()


@case(67, "groups", "ctl:proxy", level="bus")
async def ack_lost_through_bus(c: Context) -> None:
    """The answer is lost: publish() sends again under the same id, unless told not to; then it says MaybeSent."""
    reading, log = c.bus(), c.log()

    @reading.subscribe(ORDERS, group="group")
    async def handle(body: str, message: Message[str]) -> None:
        log.add((message.id, len(body)))

    await c.serve(reading)
    bus = await c.opened(c.bus(c.proxied_url))
    await bus.publish(ORDERS, "before")
    await log.reach(1)
    cut = c.line.cut(request=LARGE)
    id = await bus.publish(ORDERS, c.random.randbytes(LARGE).hex())
    assert cut.happened.is_set(), NOT_CUT
    await log.until(lambda: any(one == id for one, _ in log.items), "it is handled")
    cut = c.line.cut(request=LARGE)
    try:
        await bus.publish(ORDERS, c.random.randbytes(LARGE).hex(), retry_indeterminate=False)
        stored = True  # a client may send again what the broker takes once, and so know
    except MaybeSent:
        stored = False
    assert cut.happened.is_set(), NOT_CUT
    await bus.publish(ORDERS, "last")
    await log.until(lambda: log.items[-1][1] == 4, "the last is handled")
    await log.quiet()
    ids = [one for one, _ in log.items]
    assert ids.count(id) in ((1,) if c.capabilities.dedup else (1, 2)), f"{ids.count(id)} copies of one publish"
    beside = len(ids) - ids.count(id)
    assert beside in ((3,) if stored else (2, 3)), f"beside it there are {beside} messages, and 3 were published"


# ---- what they share


async def judge(reader: Reader, fate: dict[bytes, TransportError | None]) -> None:
    """What was said to be stored is there, what was said not to be is not, nothing is there twice."""
    stored = [body for body, error in fate.items() if error is None]
    await reader.until(stored)
    await reader.quiet()
    for body, error in fate.items():
        copies = reader.read.count(body)
        assert copies <= 1, f"{copies} copies of one send: {error!r}"
        assert copies == 0 or error is None or isinstance(error, MaybeSent), f"send() said {error!r}, and it is stored"
    await reader.leave()
