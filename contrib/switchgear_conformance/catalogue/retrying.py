"""Capabilities: what is given back returns, counted, and when it is due."""

from __future__ import annotations

from switchgear import Message, Retry, RetryAfter, Topic
from switchgear_conformance.case import case
from switchgear_conformance.context import Context, numbered
from switchgear_conformance.member import PATIENCE, RELEASE, RETRY, bodies, each_once, out

ORDERS = Topic("orders", str)


@case(36, "groups", "individual", "nack")
async def nack_returns(c: Context) -> None:
    """What is given back with RETRY returns whole, under its old token, its delivery counted."""
    t = await c.open()
    m = await c.join(t, c.name())
    await c.stored(t, out(c.name(), "a", "key", media=b"text/plain", headers=[("n", b"1"), ("n", b"2")]))
    first = await m.one()
    await m.settle([first], RETRY)
    second = await m.one()
    assert (second.body, second.key, second.media) == (b"a", b"key", b"text/plain")
    assert m.source.headers(second) == [("n", b"1"), ("n", b"2")]
    assert second.token == first.token, "the same stored message came again under another token"
    await m.settle([second], RETRY)
    third = await m.one()
    counts = [first.deliveries, second.deliveries, third.deliveries]
    expected = [None] * 3 if c.capabilities.counting == "none" else [1, 2, 3]
    assert counts == expected, f"deliveries were counted as {counts}, declared is {c.capabilities.counting!r}"
    await m.settle([third])
    await m.nothing()
    await m.close()


@case(36, "groups", "individual", part="release")
async def nack_returns_release(c: Context) -> None:
    """What is given back with RELEASE returns at once, to whoever has room, and that is no failure."""
    one, two = await c.join(await c.open(), c.name()), await c.join(await c.open(), c.name())
    await c.stored(one.transport, out(c.name(), "a"))
    first = await one.one()
    began = c.time()
    await one.settle([first], RELEASE)
    second = await two.one()
    assert c.time() - began < 1.5, f"it took {c.time() - began:.1f} s until another member had what was released"
    assert second.body == b"a"
    if c.capabilities.counting != "none":
        counts = first.deliveries, second.deliveries
        assert counts == (1, 1), f"deliveries are {counts}: a release was counted as a failed delivery"
    await two.settle([second])
    await one.nothing()
    await one.close()
    await two.close()


@case(36, "nack", level="bus")
async def nack_returns_through_bus(c: Context) -> None:
    """A message whose handler failed is handled again, with the same id; attempts are counted; others pass it."""
    bus, tries, log = c.bus(), list[tuple[str, int]](), c.log()

    @bus.subscribe(ORDERS, group="group", retry=Retry(base=0.05))
    async def handle(message: Message[str]) -> None:
        if message.body == "bad":
            tries.append((message.id, message.attempt))
            if len(tries) < 3:
                raise RuntimeError("not yet")
        log.add(message.body)

    await c.serve(bus)
    id = await bus.publish(ORDERS, "bad")
    await bus.publish_many(ORDERS, numbered(10))
    await log.reach(11)
    await log.quiet()
    assert tries == [(id, 1), (id, 2), (id, 3)], f"ids and attempts of a message {id!r} that failed twice: {tries}"
    assert sorted(log.items) == sorted(["bad", *numbered(10)])


# ---- many at once


@case(37, "groups", "individual", "nack")
async def nack_storm(c: Context) -> None:
    """Fifty messages are each given back three times: everything arrives then, and once."""
    t = await c.open()
    m = await c.join(t, c.name())
    await c.stored(t, *(out(c.name(), body) for body in numbered(50)))
    seen: dict[bytes | None, int] = dict.fromkeys((body.encode() for body in numbered(50)), 0)
    finished: list[bytes | None] = []
    ends = c.time() + PATIENCE
    while len(finished) < 50:
        assert c.time() < ends, f"{len(finished)} of 50 messages arrived after a storm of RETRY"
        some = await m.receive(20)
        last = [d for d in some if seen[d.body] == 3]
        again = [d for d in some if seen[d.body] < 3]
        for d in some:
            seen[d.body] += 1
        await m.settle(again, RETRY)
        await m.settle(last)
        finished += bodies(last)
        if c.capabilities.counting != "none":
            assert all(d.deliveries == 4 for d in last), f"4 deliveries are counted as {last[0].deliveries}"
    each_once(finished, numbered(50))
    await m.nothing()
    await m.close()


@case(37, "nack", level="bus")
async def nack_storm_through_bus(c: Context) -> None:
    """Forty messages fail three times each: every one is handled then, once, and none goes missing."""
    bus, log = c.bus(), c.log()
    tries: dict[str, list[int]] = {body: [] for body in numbered(40)}

    @bus.subscribe(ORDERS, group="group", retry=Retry(base=0.02, cap=0.1))
    async def handle(message: Message[str]) -> None:
        tries[message.body].append(message.attempt)
        if len(tries[message.body]) < 4:
            raise RuntimeError("not yet")
        log.add(message.body)

    await c.serve(bus)
    await bus.publish_many(ORDERS, numbered(40))
    await log.reach(40)
    await log.quiet()
    each_once((str(item).encode() for item in log.items), numbered(40))
    wrong = {body: attempts for body, attempts in tries.items() if attempts != [1, 2, 3, 4]}
    assert not wrong, f"attempts of messages that failed three times: {wrong}"


# ---- not at once


@case(38, "groups", "individual", "nack_delay")
async def nack_delay(c: Context) -> None:
    """RETRY with a delay returns the message not before it, and soon after; others pass it."""
    t = await c.open()
    m = await c.join(t, c.name())
    delay = min(c.capabilities.retry_delay or 0.0, 0.5)
    await c.stored(t, out(c.name(), "a"))
    first = await m.one()
    began = c.time()
    await m.settle([first], RETRY, delay)
    await c.stored(t, out(c.name(), "b"))
    assert bodies(await m.drain(1)) == [b"b"]
    again = await m.one()
    took = c.time() - began
    assert again.body == b"a"
    assert delay - 0.01 <= took, f"it returned after {took:.3f} s, asked for was {delay:g} s"
    assert took < delay + 2.5, f"it returned after {took:.3f} s, asked for was {delay:g} s"
    await m.settle([again])
    await m.nothing()
    await m.close()


@case(38, "nack_delay", level="bus")
async def nack_delay_through_bus(c: Context) -> None:
    """`RetryAfter` is kept: the next attempt is not early, and soon after."""
    bus, log = c.bus(), c.log()

    @bus.subscribe(ORDERS, group="group")
    async def handle(message: Message[str]) -> None:
        log.add((message.body, c.time()))
        if message.body == "a" and message.attempt == 1:
            raise RetryAfter(0.5)

    await c.serve(bus)
    await bus.publish(ORDERS, "a")
    await log.reach(1)
    await bus.publish(ORDERS, "b")
    await log.reach(3)
    assert [body for body, _ in log.items] == ["a", "b", "a"]
    took = log.items[2][1] - log.items[0][1]
    assert 0.49 <= took < 3.0, f"handled again after {took:.3f} s, asked for were 0.5 s"
    await log.quiet()
