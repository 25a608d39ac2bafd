"""Order: per key with several members, over retries, handovers and deaths; and over a whole topic."""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict

import pytest

from switchgear.driver import Delivery, Order, Settlement, Transport
from switchgear.errors import Lost, Refused

from .conftest import Another
from .member import ACK, RELEASE, RETRY, Member, bodies, join, out, stored


@pytest.fixture(autouse=True)
def ordered(request: pytest.FixtureRequest) -> None:
    transport: Transport = request.getfixturevalue("transport")
    if transport.capabilities.order < Order.KEY:
        pytest.skip("not applicable: key order takes the core's partitions and leases")


async def test_two_members_keep_the_order_of_every_key(transport: Transport, another: Another, topic: str) -> None:
    members = [
        await join(transport, topic, consumer="one", order=Order.KEY),
        await join(await another(), topic, consumer="two", order=Order.KEY),
    ]
    keys, each = 12, 30
    await stored(transport, *(out(topic, f"{i}", f"k{k}") for i in range(each) for k in range(keys)))
    handled: dict[bytes | None, list[int]] = defaultdict(list)
    left = keys * each
    dice = random.Random(7)

    async def work(member: Member) -> None:
        nonlocal left
        while left > 0:
            batch = await member.receive(dice.randint(1, 40))
            for d in batch:
                handled[d.key].append(int(d.body or b""))
                left -= 1
                if dice.random() < 0.05:
                    await asyncio.sleep(0.001)
            await member.settle(batch)

    await asyncio.wait_for(asyncio.gather(*(work(member) for member in members)), 30)
    assert dict(handled) == {f"k{k}".encode(): list(range(each)) for k in range(keys)}


async def test_a_key_in_flight_is_kept_from_others_and_other_keys_go_on(
    transport: Transport, another: Another, topic: str
) -> None:
    one = await join(transport, topic, consumer="one", order=Order.KEY)
    two = await join(await another(), topic, consumer="two", order=Order.KEY)
    await stored(transport, out(topic, "a1", "a"))
    held = await one.one()
    await stored(transport, out(topic, "a2", "a"), out(topic, "b1", "b"), out(topic, "free"))
    rest = await two.take(2)
    assert sorted(bodies(rest), key=str) == [b"b1", b"free"]
    await two.nothing(0.3)
    await one.settle([held])
    assert bodies(await one.take(1)) == [b"a2"]
    await two.settle(rest)


async def test_the_owner_of_a_key_gets_more_of_it_up_to_a_run(transport: Transport, topic: str) -> None:
    member = await join(transport, topic, order=Order.KEY)
    await stored(transport, *(out(topic, str(i), "hot") for i in range(100)), out(topic, "other", "cold"))
    some = await member.receive(500) + await member.receive(500)
    hot = [d for d in some if d.key == b"hot"]
    assert bodies(hot) == [str(i).encode() for i in range(len(hot))]
    assert 1 < len(hot) < 50  # not one at a time, and a key that stands still leaves room
    assert b"other" in bodies(some)
    await member.settle(some)
    rest = await member.drain(100 - len(hot))
    assert bodies(rest) == [str(i).encode() for i in range(len(hot), 100)]


async def test_what_returns_goes_before_what_is_newer(transport: Transport, another: Another, topic: str) -> None:
    one = await join(transport, topic, consumer="one", order=Order.KEY)
    await stored(transport, *(out(topic, str(i), "k") for i in range(8)))
    taken = await one.take(5)
    await one.settle(taken[:2])
    await one.settle(taken[2:], RELEASE)
    assert bodies(await one.take(6)) == [b"2", b"3", b"4", b"5", b"6", b"7"]
    await one.source.close()
    two = await join(await another(), topic, consumer="two", order=Order.KEY)
    await stored(transport, out(topic, "8", "k"))
    assert bodies(await two.drain(7)) == [b"2", b"3", b"4", b"5", b"6", b"7", b"8"]


async def test_a_new_owner_begins_with_what_was_unsettled_and_the_fence_rises(
    transport: Transport, another: Another, topic: str
) -> None:
    dead = await join(transport, topic, consumer="dead", order=Order.KEY, lease=0.6)
    await stored(transport, *(out(topic, f"{k}{i}", k) for i in range(6) for k in "ab"))
    before = await dead.take(6)
    assert all(d.fence > 0 for d in before)
    heir = await join(await another(), topic, consumer="heir", order=Order.KEY)
    after = await heir.drain(12, within=8)
    for key in "ab":
        assert bodies(d for d in after if d.key == key.encode()) == [f"{key}{i}".encode() for i in range(6)]
    highest = {d.key: d.fence for d in before}
    assert all(d.fence > highest[d.key] for d in after)
    outcomes = await dead.source.settle([Settlement(d, ACK) for d in before])
    assert all(isinstance(outcome, Lost) for outcome in outcomes)


async def test_a_waiting_retry_holds_its_key_and_no_other(transport: Transport, another: Another, topic: str) -> None:
    one = await join(transport, topic, consumer="one", order=Order.KEY)
    two = await join(await another(), topic, consumer="two", order=Order.KEY)
    await stored(transport, out(topic, "a1", "a"), out(topic, "a2", "a"), out(topic, "b1", "b"))
    began = time.monotonic()
    first: Delivery = await one.one()
    assert first.body == b"a1"
    await one.settle([first], RETRY, 0.6)
    found: list[tuple[bytes | None, float]] = []
    while len(found) < 3:
        for member in (one, two):
            for d in await member.receive(10):
                found.append((d.body, time.monotonic() - began))
                await member.settle([d])
    assert [body for body, _ in found] == [b"b1", b"a1", b"a2"]
    assert found[0][1] < 0.6 <= found[1][1] + 0.01


async def test_a_message_without_a_key_has_no_order(transport: Transport, another: Another, topic: str) -> None:
    one = await join(transport, topic, consumer="one", order=Order.KEY)
    two = await join(await another(), topic, consumer="two", order=Order.KEY)
    await stored(transport, *(out(topic, str(i)) for i in range(4)))
    first = await one.take(2)
    second = await two.take(2)
    assert {d.fence for d in first + second} == {0}
    await one.settle(first)
    await two.settle(second)


async def test_total_order_is_one_line_for_all(transport: Transport, another: Another, topic: str) -> None:
    if transport.capabilities.order < Order.TOTAL:
        pytest.skip("not applicable: no total order over several members")
    one = await join(transport, topic, consumer="one", order=Order.TOTAL)
    two = await join(await another(), topic, consumer="two", order=Order.TOTAL)
    await stored(transport, *(out(topic, str(i), None if i % 2 else f"k{i}") for i in range(300)))
    first = await one.take(5)
    await two.nothing(0.3)
    assert all(d.fence > 0 for d in first)
    await one.settle(first[:3])
    await one.source.close()
    rest = await two.drain(297)
    assert bodies(first[:3]) + bodies(rest) == [str(i).encode() for i in range(300)]
    assert min(d.fence for d in rest) > max(d.fence for d in first)


async def test_members_of_a_group_agree_on_the_order(transport: Transport, another: Another, topic: str) -> None:
    one = await join(transport, topic, consumer="one", order=Order.KEY)
    with pytest.raises(Refused, match="order"):
        await join(await another(), topic, consumer="two", order=Order.NONE)
    await stored(transport, out(topic, "a", "k"), out(topic, "b", "k"))
    await one.take(1)
    await one.source.close()
    two = await join(await another(), topic, consumer="three", order=Order.NONE)
    assert sorted(bodies(await two.drain(2)), key=str) == [b"a", b"b"]


async def test_a_delayed_message_takes_its_place_when_it_is_due(transport: Transport, topic: str) -> None:
    if not transport.capabilities.delay:
        pytest.skip("not applicable: no delay in the broker")
    member = await join(transport, topic, order=Order.KEY)
    await stored(transport, out(topic, "late", "k", due=time.time() + 0.4), out(topic, "first", "k"))
    assert bodies(await member.drain(1)) == [b"first"]
    assert bodies(await member.drain(1)) == [b"late"]
