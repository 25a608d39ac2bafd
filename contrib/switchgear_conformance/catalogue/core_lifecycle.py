"""Core: opening and closing, what is not there, and errors that say so."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from switchgear import Bus, Topic
from switchgear.driver import Lagged, Provisioner, Resource, Seekable, Transport
from switchgear.errors import (
    ConfigurationError,
    Misuse,
    NotFound,
    Refused,
    SwitchgearError,
    TransportError,
    Unavailable,
)
from switchgear_conformance.case import case
from switchgear_conformance.context import Context, listen
from switchgear_conformance.member import bodies, each_once, out, raised

UNREACHABLE = (Unavailable, Refused, ConfigurationError)
ORDERS = Topic("orders", str)


@case(1)
async def lifecycle(c: Context) -> None:
    """A transport is used between `connect` and `close`, outside it is Unavailable; both may be called twice."""
    other = await c.open()  # what lives with its users lives on
    t = c.transport()
    c.closed(t.close)
    await raised(t.send([out(c.name(), "too early")], c.deadline()), Unavailable)
    await raised(c.join(t, c.name()), Unavailable)
    await t.close()
    for life in ("first", "second"):
        await t.connect(c.deadline())
        await t.connect(c.deadline())
        m = await c.join(t, c.name())
        await c.stored(t, out(c.name(), life))
        assert bodies(await m.drain(1)) == [life.encode()]
        await m.source.close()
        await m.source.close()
        assert not await m.source.receive(10), "a closed source handed something out"
        open_ = await c.join(t, c.name())
        await t.close()
        assert not await open_.source.receive(10), "a source of a closed transport handed something out"
        await t.close()
        await raised(t.send([out(c.name(), "too late")], c.deadline()), Unavailable)
        await raised(c.join(t, c.name()), Unavailable)
    m = await c.join(other, c.name())
    await c.stored(other, out(c.name(), "other"))
    assert bodies(await m.drain(1)) == [b"other"], "closing one transport did something to another"
    await m.nothing()
    await m.close()


@case(1, level="bus")
async def lifecycle_through_bus(c: Context) -> None:
    """A bus opens again after it was closed; closed, or not yet open, it says Misuse; closing twice does nothing."""
    await c.open()
    bus, log = c.bus(), c.log()
    listen(bus, ORDERS, log)
    await raised(bus.publish(ORDERS, "too early"), Misuse)
    for life in ("first", "second"):
        async with bus.serving():
            await bus.publish(ORDERS, life)
            await log.reach(1 if life == "first" else 2)
        await bus.close()
        await bus.close()
        await raised(bus.publish(ORDERS, "too late"), Misuse)
        await raised(bus.publish_many(ORDERS, ["too late"]), Misuse)
    assert log.items == ["first", "second"]


@case(13)
async def missing_destination(c: Context) -> None:
    """A topic that nobody made is made at first use, or NotFound says that there is none; never silence."""
    t = await c.open()
    (outcome,) = await t.send([out(c.name("nowhere"), "1")], c.deadline())
    assert outcome is None or isinstance(outcome, NotFound), f"sent to a topic that is not there: {outcome!r}"
    if outcome is None and t.capabilities.persistent and "earliest" in t.capabilities.starts:
        m = await c.join(t, c.name("nowhere"), start="earliest")
        assert bodies(await m.drain(1)) == [b"1"], "send said that it stored, and it is not there"
        await m.close()
    if outcome is not None and isinstance(t, Provisioner):
        await t.provision([Resource(kind="topic", name=c.name("made"))], apply=True)
    m = await c.join(t, c.name("made"))
    await c.stored(t, out(c.name("made"), "2"))
    assert bodies(await m.drain(1)) == [b"2"]
    await m.close()


@case(13, "provisioner", level="bus")
async def missing_destination_through_bus(c: Context) -> None:
    """With `provision="check"` a missing topic is NotFound, to publish and to subscribe, and is not made."""
    log = c.log()
    checks = await c.opened(c.bus(provision="check"))
    for _ in range(2):
        error = await raised(checks.publish(ORDERS, "1"), NotFound)
        assert "orders" in str(error), f"it does not name the topic: {error}"
    listen(checks, ORDERS, log)
    await raised(c.serve(checks), NotFound)
    creates = c.bus()
    listen(creates, ORDERS, log)
    await c.serve(creates)
    await creates.publish(ORDERS, "2")
    await checks.publish(ORDERS, "3")
    await log.reach(2)
    await log.quiet()
    each_once((body.encode() for body in log.items), ["2", "3"])


@case(14)
async def error_taxonomy(c: Context) -> None:
    """What goes wrong is an error of ours that says something, with the client's own error as its cause."""
    t = await c.open()
    m = await c.join(t, c.name())
    errors: list[BaseException] = []
    await m.receive(0)  # it reads
    if isinstance(t, Seekable):
        errors += await missing(t.seek(c.name(), c.name("no-group"), "new"))
        errors.append(await raised(t.seek(c.name("nowhere"), c.name("group"), "new"), NotFound))
        errors.append(await raised(t.seek(c.name(), c.name("group"), "new"), Refused))
    if isinstance(t, Lagged):
        assert sum((await t.lag([c.name("nowhere")], c.name("no-group"))).values()) == 0
    secret = "body-" + "x" * min(t.capabilities.body, 1 << 24)
    errors += filter(None, await c.send(t, out(c.name(), secret)))
    errors += await unreachable(c)
    await t.close()
    errors.append(await raised(t.send([out(c.name(), secret[:20])], c.deadline()), Unavailable))
    try:
        errors += filter(None, await m.source.settle([]))
    except TransportError as error:
        errors.append(error)
    for one in errors:
        assert str(one), f"{one!r} says nothing"
        assert "body-" not in str(one), f"{type(one).__name__} shows a body"
    await m.source.close()


async def missing(call: Awaitable[object]) -> list[BaseException]:
    """What is not there may be made, or NotFound."""
    try:
        await call
    except NotFound as error:
        return [error]
    return []


async def unreachable(c: Context) -> list[BaseException]:
    """What connecting to no broker raises, with its cause."""
    url = c.dead_url()
    if url is None:
        return []
    away = c.transport(url)
    error = await raised(away.connect(c.deadline(1.0)), *UNREACHABLE)
    await away.close()
    cause = error.__cause__
    assert cause is not None and not isinstance(cause, SwitchgearError), (
        f"{error!r} has no error of the client or the system as its __cause__ (it is {cause!r})"
    )
    return [error]


@case(14, level="bus")
async def error_taxonomy_through_bus(c: Context) -> None:
    """What publish raises is of our tree, tells topic or broker, and leads by `__cause__` to the client's error."""
    bus = await c.opened(c.bus())
    orders = Topic("orders", bytes, codec="application/octet-stream")
    if c.capabilities.body < 1 << 25:
        error = await raised(bus.publish(orders, bytes(c.capabilities.body + 1)), Refused)
        assert "orders" in str(error), f"it does not name the topic: {error}"
    url = c.dead_url()
    if url is None:
        return
    error = await publish_to_nobody(c.bus(url), orders)
    causes = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    assert not isinstance(causes[-1], SwitchgearError), f"no cause is the client's or the system's error: {causes}"


async def publish_to_nobody(bus: Bus, topic: Topic[bytes]) -> BaseException:
    """What comes of it: raised by opening the bus, where that makes trying pointless, else by publishing."""

    async def publish() -> None:
        async with bus:
            health = bus.health()
            assert not health.ready, f"there is no broker, and health says {health}"
            began = asyncio.get_running_loop().time()
            try:
                await bus.publish(topic, b"", timeout=0.3)
            finally:
                took = asyncio.get_running_loop().time() - began
                assert took < 2, f"publish(timeout=0.3) took {took:.1f} s"

    return await raised(publish(), *UNREACHABLE)


@case(16)
async def health(c: Context) -> None:
    """`connect` succeeds where there is a broker, again and again; where there is none it fails by its deadline."""
    t = await c.open()
    for _ in range(3):
        began = c.time()
        await t.connect(c.deadline(5.0))
        assert c.time() - began < 5.0
        await c.stored(t, out(c.name(), "1"))
    url = c.dead_url()
    if url is None:
        return
    away = c.transport(url)
    c.closed(away.close)
    for _ in range(2):
        await must_fail(c, away)
    try:
        (outcome,) = await away.send([out(c.name(), "1")], c.deadline(1.0))
    except TransportError as error:
        outcome = error
    assert outcome is not None, "there is no broker, and send says that it stored"


async def must_fail(c: Context, away: Transport) -> None:
    began = c.time()
    await raised(away.connect(c.deadline(1.0)), *UNREACHABLE)
    took = c.time() - began
    assert took < 3.0, f"connect had a second, and failed after {took:.1f} s"


@case(16, level="bus")
async def health_through_bus(c: Context) -> None:
    """`health()` tells whether the broker is there and every subscription at work; publishing fails in its time."""
    await c.open()
    bus, log = c.bus(), c.log()
    listen(bus, ORDERS, log)
    assert not bus.health().ready, "a bus that is not open says that it is ready"
    async with bus.serving():
        found = bus.health()
        assert found.live and found.ready, f"all is well, and health says {found}"
        assert len(found.detail) == 2, f"the broker and one subscription are in {found.detail}"
    assert not bus.health().ready, "a closed bus says that it is ready"
    url = c.dead_url()
    if url is not None:
        await publish_to_nobody(c.bus(url), Topic("orders", bytes))
