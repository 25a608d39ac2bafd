"""Core: what is sent is what arrives."""

from __future__ import annotations

from collections import Counter

from switchgear import Message, Topic
from switchgear.driver import HeaderLimits, Headers, Outgoing
from switchgear.errors import TransportError
from switchgear_conformance.case import case
from switchgear_conformance.context import Context
from switchgear_conformance.harness import NotRun
from switchgear_conformance.member import RETRY, bodies, out

BODIES = [
    b"", b"\0", b"a\0b", b"\xff\xfe\xfd", bytes(range(256)), "žluťoučký".encode(), b'{"a": 1}', b"x" * 10_000,
]  # fmt: skip
KINDS: list[tuple[bytes | None, bytes | None]] = [
    (None, None), (b"k", b"text/plain"), (b"\0\xff", b'a/b; c="d e"'),
]  # fmt: skip
HEADERS: list[Headers] = [
    [("ce-id", b"1"), ("empty", b"")],
    [("x", b"first"), ("y", b"between"), ("x", b"second"), ("x", b"first")],
    [("!#$%&'*+.^_`|~-09", b" spaces before and behind  "), ("Mixed-Case", b"1"), ("mixed-case", b"2")],
    [("quoted", b'"\\,;=%20\t'), ("text", "žluťoučký \U0001f40e".encode()), ("n" * 60, b"v" * 1000)],
]
BYTES: Headers = [("bytes", b"\0\xff\xfe"), ("lines", b"a\r\nb: c\r\n\r\n")]


@case(2)
async def bytes_roundtrip(c: Context) -> None:
    """Bodies, keys and content types arrive byte for byte: empty, NUL, not UTF-8."""
    t = await c.open()
    m = await c.join(t, c.name())
    sent = [out(c.name(), body, key, media=media) for body in BODIES for key, media in KINDS]
    began = c.now()
    await c.stored(t, *sent)
    found = await m.drain(len(sent))
    same = Counter((o.body, o.key, o.media) for o in sent)
    assert Counter((d.body, d.key, d.media) for d in found) == same, "what arrived is not what was sent"
    for d in found:
        assert d.topic == c.name(), f"Delivery.topic is {d.topic!r}, it was sent to {c.name()!r}"
        assert began - 5 <= m.source.time(d) <= c.now() + 5, f"Source.time is {m.source.time(d)}, it is {c.now()} now"
        assert m.source.position(d), "Source.position is empty"
    await m.close()


@case(2, level="bus")
async def bytes_roundtrip_through_bus(c: Context) -> None:
    """A topic of raw bytes hands over the bytes that were published."""
    blobs = Topic("blobs", bytes, codec="application/octet-stream")
    bus, log = c.bus(), c.log()

    @bus.subscribe(blobs, group="group")
    async def handle(body: bytes, message: Message[bytes]) -> None:
        log.add((body, message.data))

    await c.serve(bus)
    await bus.publish_many(blobs, BODIES)
    await log.reach(len(BODIES))
    assert Counter(log.items) == Counter((body, body) for body in BODIES), "what was handled is not what was published"


def within(headers: Headers, limits: HeaderLimits) -> bool:
    """Whether a broker with these limits keeps such headers."""
    return (
        len(headers) <= limits.count
        and all(len(name) <= limits.name and len(value) <= limits.value for name, value in headers)
        and sum(len(name) + len(value) for name, value in headers) <= limits.total
    )


@case(3)
async def headers(c: Context) -> None:
    """Headers arrive as sent: order, repeated names, odd names and values, and the sender's list is left alone."""
    t = await c.open()
    m = await c.join(t, c.name())
    limits = t.capabilities.headers
    given = [h for h in (HEADERS if limits.text else [*HEADERS, BYTES]) if within(h, limits)]
    before = [list(h) for h in given]
    sent = {f"{n}/{twin}": out(c.name(), f"{n}/{twin}", headers=h) for n, h in enumerate(given) for twin in "ab"}
    await c.stored(t, *sent.values(), out(c.name(), "none"))
    assert given == before, "send changed the headers that it was given; messages may share them"
    for d in await m.drain(len(sent) + 1):
        wanted = sent[d.body.decode()].headers if d.body and d.body != b"none" else []
        assert m.source.headers(d) == wanted, f"headers {m.source.headers(d)!r} arrived, {wanted!r} were sent"
    await m.close()


@case(3, part="marked")
async def headers_marked(c: Context) -> None:
    """What was sent as `marked` arrives as marked; a driver may say True of what was not, never False of what was."""
    t = await c.open()
    m = await c.join(t, c.name())
    acted_on: Headers = [(f"{t.capabilities.binding}sgattempt", b"1")]  # a driver may go by the headers' names
    await c.stored(t, *(out(c.name(), str(n), marked=n != 1, headers=[] if n == 1 else acted_on) for n in range(3)))
    unmarked = [d.body for d in await m.drain(3) if not d.marked and d.body != b"1"]
    assert not unmarked, f"Delivery.marked is False of {unmarked}: the core would not look at their headers"
    await m.close()


@case(3, part="unfit")
async def headers_unfit(c: Context) -> None:
    """A header that can't be carried fails its own message; it never arrives changed, and others arrive."""
    t = await c.open()
    m = await c.join(t, c.name())
    odd: Headers = [("\ud800", b"a name that is no text")]
    outcomes = await c.send(t, out(c.name(), "1"), out(c.name(), "odd", headers=odd), out(c.name(), "2"))
    assert (outcomes[0], outcomes[2]) == (None, None), f"one bad message took others along: {outcomes}"
    found = await m.drain(2 if outcomes[1] else 3)
    await m.nothing()
    assert sorted(map(repr, bodies(found))) == ["b'1'", "b'2'", *([] if outcomes[1] else ["b'odd'"])]
    kept = [m.source.headers(d) for d in found if d.body == b"odd"]
    assert kept in ([], [odd]), f"it was stored with other headers: {kept}"
    await m.close()


@case(3, level="bus")
async def headers_through_bus(c: Context) -> None:
    """Users' headers arrive; reserved names, control characters and what is beyond the limits are refused unsent."""
    orders = Topic("orders", str)
    bus, log = c.bus(), c.log()

    @bus.subscribe(orders, group="group")
    async def handle(body: str, message: Message[str]) -> None:
        log.add((body, dict(message.headers)))

    await c.serve(bus)
    good = {"tenant": "acme", "X-Mixed": " žluť \U0001f40e ", "quoted": '"\\,;=', "empty": "", "!#$%&'*+.^_`|~-9": "1"}
    bad = [
        {"a b": "x"}, {"ünï": "x"}, {"": "x"}, {"ce-id": "x"}, {"CE_ID": "x"}, {"Content-Type": "x"},
        {"sgattempt": "x"}, {"x": "a\nb"}, {"x": "a\r\nb: c"}, {"x": "a\0b"}, *beyond(c.capabilities.headers),
    ]  # fmt: skip
    for given in bad:
        try:
            await bus.publish(orders, "bad", headers=given)
        except TransportError:
            continue
        raise AssertionError(f"published with {str(given)[:60]!r}, which was to be refused")
    await bus.publish(orders, "good", headers=good)
    await log.reach(1)
    await log.quiet()
    assert log.items == [("good", good)], f"handled: {log.items}"


def beyond(limits: HeaderLimits) -> list[dict[str, str]]:
    """Headers that are one more than a broker keeps, where it says how many that is."""
    sane = 1 << 20
    found: list[dict[str, str]] = []
    if limits.count < 10_000:
        found.append({f"h{n}": "x" for n in range(limits.count + 1)})
    if limits.name < sane:
        found.append({"n" * (limits.name + 1): "x"})
    if limits.value < sane:
        found.append({"x": "v" * (limits.value + 1)})
    if limits.total < sane:
        found.append({"x": "v" * limits.total})
    return found


@case(15)
async def identity(c: Context) -> None:
    """Tokens tell stored messages apart over all topics; token and position stay when one is handed out again."""
    t = await c.open()
    topics = [c.name(f"orders.{n}") for n in range(3)]
    m = await c.join(t, *topics)
    for n in range(4):
        await c.stored(t, *(out(topic, f"{topic} {n}", headers=[("n", b"%d" % n)]) for topic in topics))
    first = await m.take(12)
    assert len({d.token for d in first}) == 12, "two stored messages have one token"
    assert len({(d.topic, m.source.position(d)) for d in first}) == 12, "two messages of a topic have one position"
    known = {d.body: (d.topic, m.source.position(d), m.source.headers(d)) for d in first}
    if not m.cumulative and t.capabilities.retry_delay is not None:
        tokens = {d.body: d.token for d in first}
        await m.settle(first[:6], RETRY)
        for d in await m.take(6):
            assert d.token == tokens[d.body], "handed out again, the message has another token"
            assert (d.topic, m.source.position(d), m.source.headers(d)) == known[d.body], "it became another one"
    await m.close()
    later = await c.join(await c.open(), *topics)
    for d in await later.drain(12):
        assert (d.topic, later.source.position(d), later.source.headers(d)) == known[d.body], "it became another one"
    await later.close()


@case(15, "nack", level="bus")
async def identity_through_bus(c: Context) -> None:
    """`message.id` is what `publish` returned, unique, and the same at every attempt; so of plain messages."""
    orders, plain = Topic("orders", str), Topic("plain", str, envelope="none")
    bus, log = c.bus(), c.log()

    @bus.subscribe(orders, group="group")
    @bus.subscribe(plain, group="group")
    async def handle(body: str, message: Message[str]) -> None:
        log.add((body, message.id))
        if message.attempt == 1:
            raise ValueError("once more")

    await c.serve(bus)
    published = {f"order {n}": await bus.publish(orders, f"order {n}") for n in range(5)}
    await bus.publish_many(plain, [f"plain {n}" for n in range(5)])
    await log.reach(20)
    ids = {body: {i for b, i in log.items if b == body} for body, _ in log.items}
    changed = {body: found for body, found in ids.items() if len(found) != 1}
    assert not changed, f"the id differs from attempt to attempt: {changed}"
    told = {body: ids[body].pop() for body in ids}
    assert {b: told[b] for b in published} == published, "message.id is not what publish returned"
    assert len(set(told.values())) == 10, f"two messages have one id: {told}"


@case(17)
async def native_handle(c: Context) -> None:
    """`Delivery.native` is of the type that the transport documents."""
    wanted = _documented(c)
    t = await c.open()
    m = await c.join(t, c.name())
    await c.stored(t, Outgoing(c.name(), b"1"))
    d = await m.one()
    assert _type(d.native) == wanted, f"Delivery.native is {_type(d.native)}, documented is {wanted}"
    await m.settle([d])
    await m.close()


@case(17, level="bus")
async def native_handle_through_bus(c: Context) -> None:
    """`message.native` is of the type that the transport documents."""
    wanted = _documented(c)
    bus, log = c.bus(), c.log()

    @bus.subscribe(Topic("orders", str), group="group")
    async def handle(_: str, message: Message[str]) -> None:
        log.add(_type(message.native))

    await c.serve(bus)
    await bus.publish(Topic("orders", str), "1")
    assert await log.reach(1) == [wanted], f"message.native is {log.items[0]}, documented is {wanted}"


def _documented(c: Context) -> str:
    if not c.harness.native:
        raise NotRun("the harness does not say what message.native is documented to be: Harness(native='module.Class')")
    return c.harness.native


def _type(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
