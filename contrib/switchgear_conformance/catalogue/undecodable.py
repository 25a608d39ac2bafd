"""What nobody can read: malformed envelopes and bodies."""

from __future__ import annotations

import msgspec

from switchgear import Topic
from switchgear.driver import Outgoing
from switchgear_conformance.case import case
from switchgear_conformance.context import Context
from switchgear_conformance.member import bodies, each_once, out
from switchgear_conformance.watching import place

from .failures import graveyard, said


class Order(msgspec.Struct):
    n: int


JSON, STRUCTURED = b"application/json", b"application/cloudevents+json"


def malformed(c: Context, topic: str) -> list[Outgoing]:
    """Messages that no handler can be given, all of different bodies."""
    b = c.capabilities.binding
    return [
        out(topic, b"{no json", media=JSON),
        out(topic, b"\xff\xfe\x00", media=JSON),
        out(topic, b'{"n": "word"}', media=JSON),
        out(topic, b'{"n": 1, "case": 1}', media=b"text/x-unknown"),
        out(topic, b'{"n": 1, "case": 2}', media=JSON, headers=[(f"{b}specversion", b"9")], marked=True),
        out(topic, b'{"n": 1, "case": 3}', media=JSON, headers=[(f"{b}expirytime", b"tomorrow")], marked=True),
        out(
            topic, b'{"n": 1, "case": 4}', media=JSON, headers=[(f"{b}id", b"x"), (f"{b}sgattempt", b"-")], marked=True
        ),
        out(topic, b"{structured", media=STRUCTURED, marked=True),
        out(topic, b'{"specversion": "1.0"}', media=STRUCTURED, marked=True),
    ]


@case(43)
async def undecodable(c: Context) -> None:
    """Malformed envelopes and bodies are handed out as they are: to judge them is not the driver's."""
    t = await c.open()
    m = await c.join(t, c.name())
    sent = malformed(c, c.name())
    await c.stored(t, *sent, out(c.name(), "good"))
    found = await m.drain(len(sent) + 1)
    each_once(bodies(found), [*(message.body or b"" for message in sent), b"good"])
    for d in found:
        if d.body == b"good":
            continue
        (message,) = [one for one in sent if one.body == d.body]
        assert (d.media, m.source.headers(d)) == (message.media, message.headers)
        seen = d.marked or d.media == STRUCTURED  # the core sees that by itself
        assert seen or not message.marked, "`marked` was lost: the core would not look at the headers"


@case(43, "dead_letter", level="bus")
async def undecodable_through_bus(c: Context) -> None:
    """What cannot be decoded is a dead letter, untouched and without an attempt; the others are handled."""
    t = await c.open()
    letters, log, bus = await graveyard(c, t), c.log(), c.bus()

    @bus.subscribe(Topic("orders", Order), group="group")
    async def handle(order: Order) -> None:
        log.add(order.n)

    await c.serve(bus)
    sent = malformed(c, place(bus, "orders"))
    for n, message in enumerate(sent):
        await c.stored(t, message)
        await bus.publish("orders", Order(n))
    found = await letters.take(len(sent))
    await log.reach(len(sent))
    assert sorted(log.items) == list(range(len(sent)))
    each_once(bodies(found), [message.body or b"" for message in sent])
    for letter in found:
        headers = said(c, letters, letter)
        assert headers["sgattempt"] == b"0", "the handler was called with what cannot be decoded"
        assert headers["sgreason"], "the dead letter gives no reason"
    await letters.settle(found)
    await letters.nothing()
    assert bus.health().ready
