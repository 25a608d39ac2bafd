"""Core: names and keys in every script, and what the broker's limits are."""

from __future__ import annotations

from collections import Counter

from switchgear import Message, Topic, names
from switchgear.driver import NameRules
from switchgear.errors import ConfigurationError, Refused, TransportError
from switchgear_conformance.case import case
from switchgear_conformance.context import Context, listen, numbered
from switchgear_conformance.member import bodies, each_once, out

KEYS = [
    "a", "A", "klíč", "kli\u0301c\u030c", "日本", "\U0001f40e", "a b", "a/b:c,d", "%2F", "k" * 200,
]  # fmt: skip
"""The third and the fourth look the same and are two keys."""
MOST = 64 << 20  # bytes: longer bodies are not tried, whatever is declared


def longest(rules: NameRules, start: str, last: str) -> str:
    """As long a name as the broker admits, with every character that it admits."""
    alphabet = f"aZ09{rules.extra}"
    length = min(rules.length, 1000)
    return (start + alphabet * (length // len(alphabet)))[: length - 1] + last


@case(4)
async def unicode_names(c: Context) -> None:
    """Topics of every admitted character and length are told apart; keys come back character for character."""
    t = await c.open()
    rules = t.capabilities.names
    topics = [
        c.name("orders"), c.name("Orders"), longest(rules, c.namespace, "x"), longest(rules, c.namespace, "y"),
        names.physical(rules, c.namespace, "žluť/€"), names.physical(rules, c.namespace, "žluť_€"),
    ]  # fmt: skip
    members = {topic: await c.join(t, topic) for topic in topics}
    await c.stored(t, *(out(topic, f"{topic} {key}", key) for key in KEYS for topic in topics))
    for topic, m in members.items():
        found = await m.drain(len(KEYS))
        each_once(bodies(found), [f"{topic} {key}" for key in KEYS])
        assert Counter(d.key for d in found) == Counter(key.encode() for key in KEYS), "keys came back changed"
        await m.close()


@case(4, level="bus")
async def unicode_names_through_bus(c: Context) -> None:
    """Namespaces and keys may hold any text; topics and groups outside the grammar are refused."""
    await _all_told_apart(c, Topic("orders", str), Topic("Orders", str))
    for wrong in ("žluť", "a/b", "", "ab", "*", "orders__1", "sg.orders", "o" * 81):
        _must_be_refused(lambda name=wrong: Topic(name), f"the topic {wrong!r}")
    for wrong in ("größe", "a.b", "", "a b"):
        _must_be_refused(lambda group=wrong: listen(c.bus(), Topic("orders", str), c.log(), group=group), f"{wrong!r}")


@case(4, "order>=key", level="bus", part="keys")
async def unicode_names_keys_through_bus(c: Context) -> None:
    """With keys whose order is kept, too, whatever script they are in."""
    await _all_told_apart(c, *(Topic(name, str, key=lambda body: body, partitions=2) for name in ("orders", "Orders")))


async def _all_told_apart(c: Context, *topics: Topic[str]) -> None:
    """Every topic of two namespaces that look alike gets its own messages, with their keys."""
    found, wanted = c.log(), list[tuple[str, str, str]]()
    for namespace in (f"{c.namespace}žluť/€ ", f"{c.namespace}žluť_€ "):
        for topic in topics:
            bus, here = c.bus(namespace=namespace), namespace + topic.name

            @bus.subscribe(topic, group="group")
            async def handle(body: str, message: Message[str], here: str = here) -> None:
                found.add((here, body, message.key))

            await c.serve(bus)
            for key in KEYS:
                await bus.publish(topic, key, key=key)
            wanted += [(here, key, key) for key in KEYS]
    await found.reach(len(wanted))
    await found.quiet()
    assert Counter(found.items) == Counter(wanted), "what was handled is not what was published to each"


def _must_be_refused(make: object, what: str) -> None:
    assert callable(make)
    try:
        make()
    except ConfigurationError:
        return
    raise AssertionError(f"{what} is outside the grammar and was not refused")


@case(5)
async def payload_limits(c: Context) -> None:
    """A body of the declared length passes; a driver that is given one byte more stores it whole or refuses it."""
    t = await c.open()
    m = await c.join(t, c.name())
    limit = t.capabilities.body
    if limit > MOST:
        c.remark(f"bodies up to {limit} bytes are declared, up to {MOST} were tried")
    longest = bytes(min(limit, MOST))
    await c.stored(t, out(c.name(), longest))
    (d,) = await m.drain(1)
    assert d.body == longest, f"{len(longest)} bytes were sent and {len(d.body or b'')} arrived"
    if limit <= MOST:
        (outcome,) = await c.send(t, out(c.name(), bytes(limit + 1), "secret key"))
        await c.stored(t, out(c.name(), "after"))
        found = await m.drain(1 if outcome else 2)
        await m.nothing()
        if outcome is None:
            c.remark(f"it takes bodies longer than the {limit} bytes that it declares")
        assert sorted(len(b or b"") for b in bodies(found)) == [5, *([] if outcome else [limit + 1])], (
            "one byte too many: a part of it was stored, or it was refused and stored"
        )
        assert outcome is None or (isinstance(outcome, Refused) and c.name() in str(outcome)), (
            f"{outcome!r}: what is too long is Refused, with the topic's name"
        )
    await m.close()


@case(5, level="bus")
async def payload_limits_through_bus(c: Context) -> None:
    """A value of the declared length passes; one byte more is Refused, and nothing of it is published."""
    blobs = Topic("blobs", bytes, codec="application/octet-stream")
    bus, log = c.bus(), c.log()

    @bus.subscribe(blobs, group="group")
    async def handle(body: bytes) -> None:
        log.add(len(body))

    await c.serve(bus)
    limit = c.capabilities.body
    await bus.publish(blobs, bytes(min(limit, MOST)))
    wanted = [min(limit, MOST), 5]
    if limit <= 4 * MOST:
        try:
            await bus.publish(blobs, bytes(limit + 1))
        except TransportError as error:
            assert isinstance(error, Refused), f"{error!r}: what is too long is Refused"
            assert "blobs" in str(error), f"it does not name the topic: {error}"
        else:
            raise AssertionError(f"a body of {limit + 1} bytes was published; {limit} are declared")
    await bus.publish(blobs, b"after")
    await log.reach(2)
    await log.quiet()
    assert sorted(log.items) == sorted(wanted), f"bodies of {log.items} bytes were handled, {wanted} were published"


@case(6)
async def topic_isolation(c: Context) -> None:
    """Nothing sent to one topic reaches another, however alike their names."""
    t = await c.open()
    topics = [c.name(word) for word in ("orders", "orders.two", "orders-2", "order", "orders.", "two")]
    members = {topic: await c.join(t, topic) for topic in topics}
    await c.stored(t, *(out(topic, f"{topic} {n}", f"k{n}") for n in range(5) for topic in topics))
    for topic, m in members.items():
        each_once(bodies(await m.drain(5)), numbered(5, f"{topic} "))
    for m in members.values():
        await m.nothing(c.quiet / 3)
        await m.close()


@case(6, level="bus")
async def topic_isolation_through_bus(c: Context) -> None:
    """Topics and namespaces keep to themselves, with one group name for all."""
    log = c.log()
    words = ("orders", "orders.two", "orders-2", "order")
    buses = [c.bus(), c.bus(namespace=c.namespace + "other."), c.bus(namespace=c.namespace + "orders.")]
    for number, bus in enumerate(buses):
        for word in words:

            @bus.subscribe(Topic(word, str), group="group")
            async def handle(body: str, here: str = f"{number} {word}") -> None:
                log.add((here, body))

        await c.serve(bus)
    sent = [f"{number} {word}" for number in range(len(buses)) for word in words]
    for number, bus in enumerate(buses):
        for word in words:
            await bus.publish(word, f"{number} {word}")
    await log.reach(len(sent))
    await log.quiet()
    assert sorted(log.items) == sorted((one, one) for one in sent), "a message went astray"
