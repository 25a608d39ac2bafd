"""Delay: never early, taken back while it waits, moved once."""

from __future__ import annotations

import asyncio
import time

import pytest

from switchgear.driver import Order, Scheduling, Transport

from .conftest import Another
from .member import bodies, each_once, join, out, stored


@pytest.fixture(autouse=True)
def delaying(request: pytest.FixtureRequest) -> None:
    transport: Transport = request.getfixturevalue("transport")
    if not transport.capabilities.delay:
        pytest.skip("not applicable: no delay in the broker")


async def test_a_delayed_message_is_not_early(transport: Transport, topic: str) -> None:
    member = await join(transport, topic)
    due = time.time() + 0.6
    await stored(transport, out(topic, "later", due=due, headers=[("x", b"1")], media=b"a/b"), out(topic, "now"))
    assert bodies(await member.drain(1)) == [b"now"]
    (later,) = await member.drain(1)
    assert due - 0.01 <= time.time() < due + 2
    assert (later.body, later.media, member.source.headers(later)) == (b"later", b"a/b", [("x", b"1")])
    await member.nothing()


async def test_a_past_time_is_now(transport: Transport, topic: str) -> None:
    member = await join(transport, topic)
    await stored(transport, out(topic, "a", due=time.time() - 5))
    assert bodies(await member.drain(1, within=2)) == [b"a"]


async def test_equal_times_keep_the_order_of_sending(transport: Transport, topic: str) -> None:
    if transport.capabilities.order < Order.KEY:
        pytest.skip("not applicable: the broker itself keeps no order of a key")
    member = await join(transport, topic)
    due = time.time() + 0.3
    await stored(transport, *(out(topic, str(i), dedup=f"d{i}", due=due) for i in range(20)))
    assert bodies(await member.drain(20)) == [str(i).encode() for i in range(20)]


async def test_cancel_takes_back_what_is_not_due(transport: Transport, topic: str) -> None:
    assert isinstance(transport, Scheduling)
    member = await join(transport, topic)
    due = time.time() + 0.5
    await stored(transport, out(topic, "a", dedup="a", due=due), out(topic, "b", dedup="b", due=due))
    assert await transport.cancel(topic, "a") is True
    assert await transport.cancel(topic, "a") is False
    assert await transport.cancel(topic, "unknown") is False
    assert bodies(await member.drain(1)) == [b"b"]
    assert await transport.cancel(topic, "b") is False
    await member.nothing()


async def test_promote_says_when_the_next_is_due(transport: Transport, topic: str) -> None:
    assert isinstance(transport, Scheduling)
    member = await join(transport, topic)
    await stored(transport, out(topic, "a", due=time.time() + 5, dedup="a"))
    wait = await transport.promote(100)
    assert wait is not None
    assert 0 < wait <= 5
    assert await transport.cancel(topic, "a")
    await member.nothing(0.1)


async def test_several_promoters_move_each_message_once(transport: Transport, another: Another, topic: str) -> None:
    second = await another()
    assert isinstance(transport, Scheduling)
    assert isinstance(second, Scheduling)
    member = await join(transport, topic)
    due = time.time() + 0.3
    await stored(transport, *(out(topic, str(i), dedup=f"d{i}", due=due) for i in range(100)))
    await asyncio.sleep(0.35)
    for _ in range(20):
        await asyncio.gather(transport.promote(10), second.promote(10), transport.promote(7))
    each_once(await member.drain(100), [str(i).encode() for i in range(100)])
    await member.nothing()
