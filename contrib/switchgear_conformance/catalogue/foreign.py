"""What others put on a topic: odd bytes, many headers, return addresses."""

from __future__ import annotations

import msgspec

from switchgear import Message, Topic
from switchgear.driver import HeaderLimits, Headers, Outgoing
from switchgear.errors import Refused
from switchgear.names import dead_letter_topic, physical, reply_topic
from switchgear_conformance.case import case
from switchgear_conformance.context import Context
from switchgear_conformance.member import bodies, each_once, out
from switchgear_conformance.watching import place

JSON = b"application/json"
ODD = b"\xff\xfe\x00\x80"


class Order(msgspec.Struct):
    n: int


# ---- 85


def foreign(c: Context, topic: str, body: bytes) -> list[Outgoing]:
    """The same body with keys, headers and content types that are no text, as far as the broker carries them."""
    header = ODD if not c.capabilities.headers.text else "ž".encode()
    return [
        out(topic, body, ODD, media=JSON, marked=True),
        out(topic, body, b"", media=JSON, marked=True),
        out(topic, body, "k", media=JSON, headers=[("odd", header), ("odd", b"")], marked=True),
        out(topic, body, media=JSON, headers=[("traceparent", header), ("ce", header)], marked=True),
        out(topic, body, marked=True),
    ]


@case(85)
async def foreign_bytes(c: Context) -> None:
    """Keys, headers, content types and bodies that are no text are handed out, and the source goes on."""
    t = await c.open()
    m = await c.join(t, c.name())
    sent = [
        *foreign(c, c.name(), b"plain"), *foreign(c, c.name(), ODD), *foreign(c, c.name(), b""),
        out(c.name(), ODD, media=ODD, marked=True),
    ]  # fmt: skip
    stored = [out(c.name(), "before")]
    await c.stored(t, *stored)
    for message in sent:
        (outcome,) = await c.send(t, message)
        if outcome is None:
            stored.append(message)
        else:  # not every broker carries everything: then it says so, and keeps nothing of it
            assert isinstance(outcome, Refused), f"neither stored nor Refused: {outcome!r}"
    await c.stored(t, last := out(c.name(), "after"))
    found = await m.drain(len(stored) + 1)
    each_once(bodies(found), [message.body or b"" for message in [*stored, last]])
    for d in found:
        m.source.headers(d)
        assert m.source.position(d)
        assert m.source.time(d) > 0
    wanted = sorted((message.body or b"", message.key or b"") for message in [*stored, last])
    assert sorted((d.body or b"", d.key or b"") for d in found) == wanted, "keys were changed"
    await m.nothing()
    await m.close()


@case(85, "dead_letter", level="bus")
async def foreign_bytes_through_bus(c: Context) -> None:
    """Odd keys and headers reach the handler, odd bodies are dead letters, and the subscription goes on."""
    t = await c.open()
    bus, log = c.bus(), c.log()
    orders = Topic("orders", Order)
    letters = await c.join(
        t, physical(c.capabilities.names, c.namespace, dead_letter_topic("orders", "billing")), group="graveyard"
    )

    @bus.subscribe(orders, group="billing")
    async def bill(order: Order, message: Message[Order]) -> None:
        said = (message.id, message.key, message.headers, message.time, message.correlation_id, message.source)
        log.add((order.n, len(said)))

    await c.serve(bus)
    good, bad = foreign(c, place(bus, "orders"), b'{"n": 1}'), foreign(c, place(bus, "orders"), ODD)
    for message in [m for pair in zip(good, bad, strict=True) for m in pair]:
        await c.stored(t, message)
    await bus.publish(orders, Order(2))
    await log.reach(len(good) + 1)
    each_once(bodies(await letters.drain(len(bad))), [ODD] * len(bad))
    await letters.nothing()
    assert sorted(n for n, _ in log.items) == [1] * len(good) + [2]
    assert bus.health().ready, f"the subscription does not go on: {bus.health().detail}"
    await letters.close()


# ---- 91


def lots(limits: HeaderLimits, count: int, *, besides: int = 0) -> Headers:
    """As many headers as the broker keeps beside so many others, at the most `count`."""
    found: Headers = []
    room = limits.total - 100 * besides
    for i in range(min(count, limits.count - besides)):
        name, value = f"header-{i}", f"value {i}".encode()
        room -= len(name) + len(value)
        if room < 0:
            break
        found.append((name, value))
    assert found, "no header fits into the declared limits"
    return found


@case(91)
async def many_headers(c: Context) -> None:
    """Headers survive in number, length and sum up to the declared limits, in their order."""
    t = await c.open()
    m = await c.join(t, c.name())
    limits = c.capabilities.headers
    name = "n" * min(limits.name, 200)
    long: Headers = [(name, b"v" * min(limits.value, 10_000, limits.total - len(name)))]
    each = min(limits.value, 1000)
    count = min(limits.count, 50, limits.total // (each + 2))
    wide: Headers = [(f"{i:02}", b"w" * each) for i in range(count)]
    sent = {b"many": lots(limits, 100), b"long": long, b"wide": wide, b"none": Headers()}
    await c.stored(t, *(out(c.name(), body, "k", headers=headers) for body, headers in sent.items()))
    found = await m.drain(len(sent))
    each_once(bodies(found), sent)
    for d in found:
        assert d.body is not None
        had, has = sent[d.body], m.source.headers(d)
        assert has == had, f"{len(had)} headers were sent and {len(has)} came, the first of {has[:2]!r:.200}"
    await m.close()


@case(91, "groups", level="bus")
async def many_headers_through_bus(c: Context) -> None:
    """As many headers as the broker keeps reach the handler; one more than it keeps is refused before sending."""
    bus, log = c.bus(), c.log()
    orders = Topic("orders", str)

    @bus.subscribe(orders, group="billing")
    async def bill(order: str, message: Message[str]) -> None:
        log.add((order, dict(message.headers)))

    await c.serve(bus)
    limits = c.capabilities.headers
    headers = {name: value.decode() for name, value in lots(limits, 60, besides=10)}
    await bus.publish(orders, "many", headers=headers, key="k")
    await log.reach(1)
    if limits.count < 1000:
        try:
            await bus.publish(orders, "too many", headers={f"header-{i}": "" for i in range(limits.count + 1)})
        except Refused:
            pass
        else:
            raise AssertionError(f"{limits.count + 1} headers were sent; declared are {limits.count}")
    await log.quiet()
    ((order, came),) = log.items
    missing = headers.keys() - came.keys()
    assert not missing, f"of {len(headers)} headers {len(missing)} are missing: {sorted(missing)[:3]}"
    assert (order, {name: came[name] for name in headers}) == ("many", headers)


# ---- 93


@case(93, "groups", level="bus")
async def foreign_reply_to_through_bus(c: Context) -> None:
    """An answer goes to a reserved reply name and nowhere else, whatever address a request carries."""
    bus, asked = c.bus(), c.log()

    @bus.subscribe("questions", group="answering")
    async def answer(question: str) -> str:
        asked.add(question)
        return "secret"

    t = await c.open()
    await c.serve(bus)
    reserved = reply_topic("other")
    dead = dead_letter_topic("questions", "answering")
    listening = {name: await c.join(t, place(bus, name), group="eve") for name in ("victim", dead, reserved)}
    addresses = ["victim", "victim/abc", f"{dead}/abc", reserved, f"{reserved}/", f"{reserved}/../abc", "/abc", ""]
    for n, address in enumerate([*addresses, f"{reserved}/abc"]):
        attributes = {"specversion": "1.0", "id": f"q{n}", "source": "/eve", "type": "questions", "replyto": address}
        headers = [(c.capabilities.binding + name, value.encode()) for name, value in attributes.items()]
        await c.stored(t, out(place(bus, "questions"), f'"{n}"', media=JSON, headers=headers, marked=True))
    await asked.reach(len(addresses) + 1)
    (d,) = await listening[reserved].drain(1)
    cause = dict(listening[reserved].source.headers(d)).get(f"{c.capabilities.binding}causationid")
    assert cause == f"q{len(addresses)}".encode(), f"answered was {cause!r}, whose reply address names no instance"
    for m in listening.values():
        await m.nothing()
        await m.close()
