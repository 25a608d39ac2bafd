"""Capabilities: order, of a key and of a whole topic."""

from __future__ import annotations

import asyncio
from collections import defaultdict

from switchgear import Bus, Message, Retry, Topic
from switchgear.driver import Delivery, Order
from switchgear.errors import Refused
from switchgear_conformance.case import case
from switchgear_conformance.context import Context, numbered
from switchgear_conformance.member import PATIENCE, RELEASE, RETRY, Member, bodies, each_once, out

KEY, TOTAL = Order.KEY, Order.TOTAL


def key_of(body: str) -> str:
    return body.partition(":")[0]


KEYED = Topic("orders", str, key=key_of, partitions=4)
LINE = Topic("orders", str, key=key_of, order="total")


@case(33, "groups", "order>=key")
async def order_per_key(c: Context) -> None:
    """Two members of a group read in uneven batches: every key comes in order, and once."""
    members = [await c.join(await c.open(), c.name(), order=KEY) for _ in range(2)]
    t = members[0].transport
    keys, each = 12, 20
    await c.stored(t, *(out(c.name(), str(i), f"k{k}") for i in range(each) for k in range(keys)))
    handled: dict[bytes | None, list[int]] = defaultdict(list)
    left = keys * each

    async def work(m: Member) -> None:
        nonlocal left
        while left > 0:
            some = await m.receive(c.random.randint(1, 40))
            for d in some:
                await asyncio.sleep(0)
                handled[d.key].append(int(d.body or b""))
                left -= 1
            await m.settle(some)

    async with asyncio.timeout(20):
        await asyncio.gather(*(work(m) for m in members))
    for k in range(keys):
        assert handled[f"k{k}".encode()] == list(range(each)), f"key k{k} came as {handled[f'k{k}'.encode()]}"
    for m in members:
        await m.close()


@case(33, "groups", "order>=key", "individual", part="claim")
async def order_per_key_claim(c: Context) -> None:
    """A key in flight is kept from other members, who get other keys; when it is settled, it goes on."""
    one, two = await c.join(await c.open(), c.name(), order=KEY), await c.join(await c.open(), c.name(), order=KEY)
    t = one.transport
    await c.stored(t, out(c.name(), "a1", "a"))
    held = await one.one()
    await c.stored(t, out(c.name(), "a2", "a"), out(c.name(), "b1", "b"), out(c.name(), "free"))
    rest = await two.take(2)
    each_once(bodies(rest), ["b1", "free"])
    await two.nothing()
    await one.settle([held])
    found, ends = list[bytes | None](), c.time() + PATIENCE
    while not found and c.time() < ends:
        for m in (one, two):  # it is anybody's now
            some = await m.receive(10)
            await m.settle(some)
            found += bodies(some)
    assert found == [b"a2"], f"when a1 was settled, {found} came of its key"
    await two.settle(rest)
    await one.close()
    await two.close()


@case(33, "groups", "order>=key", "individual", part="hot")
async def order_per_key_hot(c: Context) -> None:
    """A key that stands still with a hundred behind it keeps no other key from the same member."""
    m = await c.join(await c.open(), c.name(), order=KEY)
    hot = [out(c.name(), body, "hot") for body in numbered(100)]
    await c.stored(m.transport, *hot, out(c.name(), "other", "cold"))
    some = await m.receive(500)
    if b"other" not in bodies(some):
        some += await m.receive(500)
    assert b"other" in bodies(some), "the only message of a key waits behind a hundred of another"
    await m.settle(some)
    first = [d for d in some if d.key == b"hot"]
    rest = await m.drain(100 - len(first))
    assert bodies(first) + bodies(rest) == [body.encode() for body in numbered(100)]
    await m.close()


@case(33, "groups", "order>=key", "individual", part="keyless")
async def order_per_key_keyless(c: Context) -> None:
    """Messages without a key have no order: two members have some in flight at once, without a fence."""
    one, two = await c.join(await c.open(), c.name(), order=KEY), await c.join(await c.open(), c.name(), order=KEY)
    await c.stored(one.transport, *(out(c.name(), body) for body in numbered(4)))
    first, second = await one.take(2), await two.take(2)
    assert {d.fence for d in first + second} == {0}, "a delivery without a key has a fence"
    each_once(bodies(first + second), numbered(4))
    await one.settle(first)
    await two.settle(second)
    await one.close()
    await two.close()


@case(33, "groups", "order>=key", "individual", part="agree")
async def order_per_key_agree(c: Context) -> None:
    """A member that asks for no order is refused while others of its group read in order, or spoils nothing."""
    one = await c.join(await c.open(), c.name(), order=KEY)
    await c.stored(one.transport, out(c.name(), "a", "k"), out(c.name(), "b", "k"))
    held = await one.take(1)
    t = await c.open()
    try:
        two = await c.join(t, c.name(), order=Order.NONE)
    except Refused as error:
        assert "order" in str(error), f"the refusal does not say that it is about order: {error}"
    else:
        await two.nothing()
        await two.close()
    await one.close()
    try:
        alone = await c.join(t, c.name(), order=Order.NONE)
    except Refused:  # some brokers fix it with the group
        alone = await c.join(t, c.name(), order=KEY)
    each_once(bodies(await alone.drain(2)), [held[0].body or b"", "b"])
    await alone.close()


def recorded(c: Context, topic: Topic[str], said: list[str], failing: str = "") -> Bus:
    """A bus whose handler says "+ body" when it begins and "- body" when it is done; of `failing` it fails twice.

    Its window leaves something to other members.
    """
    bus = c.bus()

    @bus.subscribe(topic, group="group", concurrency=8, window=20, retry=Retry(base=0.2))
    async def handle(message: Message[str]) -> None:
        said.append(f"+ {message.body}")
        await asyncio.sleep(c.random.choice([0, 0, 0.003]))
        if message.body == failing and message.attempt < 3:
            said.append(f"! {message.body}")
            raise RuntimeError("not yet")
        said.append(f"- {message.body}")

    return bus


def in_line(said: list[str], bodies: list[str]) -> None:
    """Each began when the one before it was done."""
    expected = [f"{sign} {body}" for body in bodies for sign in "+-"]
    wrong = next((i for i, pair in enumerate(zip(said, expected, strict=False)) if pair[0] != pair[1]), len(expected))
    near = slice(max(wrong - 2, 0), wrong + 3)
    assert said == expected, f"handlers began (+) and were done (-): …{said[near]}…, expected …{expected[near]}…"


def done(said: list[str]) -> int:
    return sum(line[0] == "-" for line in said)


@case(33, "groups", "order>=key", level="bus")
async def order_per_key_through_bus(c: Context) -> None:
    """With many handlers at once and two members, a key's messages are handled one after the other, in order."""
    said: list[str] = []
    buses = [await c.serve(recorded(c, KEYED, said)) for _ in range(2)]
    await buses[0].publish_many(KEYED, [f"k{k}:{i}" for i in range(15) for k in range(6)])
    await c.eventually(lambda: done(said) >= 90, "all are handled")
    for k in range(6):
        in_line([line for line in said if key_of(line[2:]) == f"k{k}"], [f"k{k}:{i}" for i in range(15)])


# ---- when something of a key comes back


@case(34, "groups", "order>=key", "individual", "nack")
async def order_after_nack(c: Context) -> None:
    """What returns by RETRY goes before what is newer of its key."""
    m = await c.join(await c.open(), c.name(), order=KEY)
    if m.source.capabilities.retry_delay is not None:  # else this subscription gives nothing back: the core holds it
        await c.stored(m.transport, *(out(c.name(), body, "k") for body in numbered(6)))
        taken = await m.take(3)
        await m.settle(taken[:1])
        for d in reversed(taken[1:]):
            await m.settle([d], RETRY)
        assert bodies(await m.drain(5)) == [b"1", b"2", b"3", b"4", b"5"]
    await m.close()


@case(34, "groups", "order>=key", "individual", "nack_delay", part="delay")
async def order_after_nack_delay(c: Context) -> None:
    """A message that waits for its RETRY time holds its own key, and no other."""
    one, two = await c.join(await c.open(), c.name(), order=KEY), await c.join(await c.open(), c.name(), order=KEY)
    if one.source.capabilities.retry_delay:
        await c.stored(one.transport, out(c.name(), "a1", "a"))
        first = await one.one()
        await c.stored(one.transport, out(c.name(), "a2", "a"), out(c.name(), "b1", "b"))
        began = c.time()
        await one.settle([first], RETRY, 0.5)
        found: list[tuple[bytes | None, float]] = []
        while len(found) < 3:
            for m in (one, two):
                for d in await m.receive(10):
                    found.append((d.body, c.time() - began))
                    await m.settle([d])
            assert c.time() < began + PATIENCE, f"only {found} came"
        assert [body for body, _ in found] == [b"b1", b"a1", b"a2"], f"while a1 waited for its retry, came {found}"
        assert found[1][1] >= 0.49, f"the retry was due after 0.5 s and came after {found[1][1]:.3f} s"
    await one.close()
    await two.close()


@case(34, "groups", "order>=key", "individual", part="release")
async def order_after_nack_release(c: Context) -> None:
    """What is released, or left behind by a member that leaves, goes before what is newer of its key."""
    one = await c.join(await c.open(), c.name(), order=KEY)
    await c.stored(one.transport, *(out(c.name(), body, "k") for body in numbered(8)))
    taken = await one.take(5)
    await one.settle(taken[:2])
    await one.settle(taken[2:], RELEASE)
    assert bodies(await one.take(6)) == [b"2", b"3", b"4", b"5", b"6", b"7"]
    await one.close()
    two = await c.join(await c.open(), c.name(), order=KEY)
    await c.stored(two.transport, out(c.name(), "8", "k"))
    assert bodies(await two.drain(7)) == [b"2", b"3", b"4", b"5", b"6", b"7", b"8"]
    await two.close()


@case(34, "groups", "order>=key", "nack", level="bus")
async def order_after_nack_through_bus(c: Context) -> None:
    """A message that fails twice is overtaken by none of its key; other keys go on meanwhile."""
    said: list[str] = []
    bus = await c.serve(recorded(c, KEYED, said, failing="hot:1"))
    await bus.publish_many(KEYED, [f"{key}:{i}" for i in range(6) for key in ("hot", "cold", "warm")])
    await c.eventually(lambda: done(said) >= 18, "all are handled")
    hot = [line for line in said if key_of(line[2:]) == "hot"]
    assert hot[2:6] == ["+ hot:1", "! hot:1", "+ hot:1", "! hot:1"], f"the key of the failing message: {hot}"
    in_line(hot[:2] + hot[6:], [f"hot:{i}" for i in range(6)])
    for key in ("cold", "warm"):
        in_line([line for line in said if key_of(line[2:]) == key], [f"{key}:{i}" for i in range(6)])
        assert said.index(f"- {key}:5") < said.index("- hot:1"), f"the key {key} waited for the retries of another"


# ---- one line for all


@case(35, "groups", "order=total")
async def order_total(c: Context) -> None:
    """Whatever the keys, a group of two is handed a topic in one line; its next owner goes on, with a higher fence."""
    one, two = await c.join(await c.open(), c.name(), order=TOTAL), await c.join(await c.open(), c.name(), order=TOTAL)
    every = numbered(150)
    await c.stored(one.transport, *(out(c.name(), b, None if i % 2 else f"k{i}") for i, b in enumerate(every)))
    first: list[Delivery] = []
    while not first:  # the broker says who of them has the line
        first, others = await asyncio.gather(one.receive(5), two.receive(5))
        if others:
            assert not first, "both members are handed something of one line"
            one, two, first = two, one, others
    first += await one.take(5 - len(first))
    await two.nothing()
    fenced = not one.cumulative  # else the core counts how often a lane changes hands, in its notes
    assert not fenced or all(d.fence > 0 for d in first), "a totally ordered delivery has no fence"
    await one.settle(first[:3])
    await one.close()
    rest = await two.drain(147)
    assert bodies(first[:3]) + bodies(rest) == [body.encode() for body in every]
    risen = min(d.fence for d in rest) > max(d.fence for d in first)
    assert not fenced or risen, "the line changed hands and its fence did not rise"
    await two.close()


@case(35, "groups", "order=total", level="bus")
async def order_total_through_bus(c: Context) -> None:
    """A totally ordered topic is handled one message at a time, in line, by however many handlers and members."""
    said: list[str] = []
    one, two = recorded(c, LINE, said), recorded(c, LINE, said)
    sent = [f"k{i}:{i}" for i in range(120)]
    async with one.serving():
        await c.serve(two)
        await one.publish_many(LINE, sent[:60])
        await c.eventually(lambda: done(said) >= 60, "the first half is handled")
    await two.publish_many(LINE, sent[60:])
    await c.eventually(lambda: done(said) >= 120, "all are handled")
    in_line(said, sent)
