"""Sending: what arrives is what was sent, and each item gets its own outcome."""

from __future__ import annotations

import asyncio
import time

import pytest

from switchgear.driver import Transport
from switchgear.errors import NotSent, Refused, Unavailable
from switchgear.plugins import open_transport

from .conftest import Another
from .member import bodies, each_once, join, out, send, stored

ODD = [b"", b"\x00", b"\xff\xfe\x00", "żółć".encode(), b'{"a": 1}', bytes(range(256))]


async def test_bytes_headers_and_keys_arrive_as_sent(transport: Transport, topic: str) -> None:
    member = await join(transport, topic)
    headers = [("ce-id", b"1"), ("x", b""), ("x", b"\x00\xff"), ("trace", "ü".encode())]
    began = time.time()
    sent = [
        out(topic, body, key, headers=headers[:n], media=media)
        for body in ODD
        for n, (key, media) in enumerate([(None, None), (b"k", b"text/plain"), (b"\x00\xff", b"a/b")], start=2)
    ]
    await stored(transport, *sent)
    by_content = {(m.body, m.key, m.media): m for m in sent}
    for d in await member.drain(len(sent)):
        m = by_content.pop((d.body, d.key, d.media))
        assert d.topic == topic
        assert member.source.headers(d) == m.headers
        assert began - 1 <= member.source.time(d) <= time.time() + 1
        assert member.source.position(d)
    assert not by_content


async def test_marked_is_never_lost(transport: Transport, topic: str) -> None:
    """A driver may say True of what was not marked, never False of what was."""
    member = await join(transport, topic)
    await stored(transport, out(topic, "a", marked=True, headers=[("x", b"1")]))
    assert (await member.one()).marked is True


async def test_longest_body_passes_and_one_more_byte_is_refused_or_whole(transport: Transport, topic: str) -> None:
    """The core refuses what is longer before it sends; a driver that is asked all the same never stores a part."""
    limit = transport.capabilities.body
    member = await join(transport, topic)
    outcomes = await send(transport, out(topic, "a"), out(topic, bytes(limit + 1)), out(topic, bytes(limit)))
    assert (outcomes[0], outcomes[2]) == (None, None)
    expected = [1, limit]
    if outcomes[1] is None:
        expected.append(limit + 1)
    else:
        assert isinstance(outcomes[1], Refused)
        assert topic in str(outcomes[1])
    assert sorted(len(d.body or b"") for d in await member.drain(len(expected))) == expected
    await member.nothing()


async def test_after_a_failed_item_none_of_its_key_is_stored(transport: Transport, topic: str) -> None:
    if not transport.capabilities.send_order:
        pytest.skip("not applicable: the transport does not promise it, and the core sends a key once a batch")
    member = await join(transport, topic)
    too_long = bytes(transport.capabilities.body + 1)
    batch = [out(topic, "a", "k"), out(topic, too_long, "k"), out(topic, "b", "k"), out(topic, "c", "other")]
    outcomes = await send(transport, *batch)
    if outcomes == [None] * 4:
        pytest.skip("not applicable: this driver leaves refusing long bodies to the core, and nothing else fails here")
    assert [type(outcome) for outcome in outcomes] == [type(None), Refused, NotSent, type(None)]
    each_once(await member.drain(2), [b"a", b"c"])
    await member.nothing()


async def test_tombstones_are_refused_where_there_are_none(transport: Transport, topic: str) -> None:
    if transport.capabilities.tombstones:
        pytest.skip("not applicable: the broker has tombstones")
    member = await join(transport, topic)
    from switchgear.driver import Outgoing

    (outcome,) = await send(transport, Outgoing(topic=topic, body=None, key=b"k"))
    assert isinstance(outcome, Refused)
    await member.nothing()


async def test_topics_do_not_mix(transport: Transport, topic: str) -> None:
    one, two = await join(transport, topic), await join(transport, f"{topic}.two")
    await stored(transport, out(topic, "1"), out(f"{topic}.two", "2"))
    assert bodies(await one.drain(1)) == [b"1"]
    assert bodies(await two.drain(1)) == [b"2"]
    await one.nothing()
    await two.nothing()


async def test_concurrent_senders_lose_nothing(transport: Transport, topic: str) -> None:
    member = await join(transport, topic)
    at_once = asyncio.Semaphore(transport.capabilities.sends)

    async def publish(n: int) -> None:
        for i in range(10):
            async with at_once:
                await stored(transport, out(topic, f"{n}-{i}"))

    await asyncio.gather(*(publish(n) for n in range(20)))
    each_once(await member.drain(200), [f"{n}-{i}".encode() for n in range(20) for i in range(10)])


async def test_equal_tokens_are_stored_once(transport: Transport, topic: str) -> None:
    if transport.capabilities.dedup is None:
        pytest.skip("not applicable: the broker does not deduplicate")
    member = await join(transport, topic)
    await stored(transport, out(topic, "a", dedup="id-1"), out(topic, "b", dedup="id-2"))
    await stored(transport, out(topic, "again", dedup="id-1"), out(topic, "c", dedup="id-3"))
    each_once(await member.drain(3), [b"a", b"b", b"c"])
    await member.nothing()
    if transport.capabilities.dedup.scope == "topic":
        other = await join(transport, f"{topic}.other")
        await stored(transport, out(f"{topic}.other", "a", dedup="id-1"))
        assert (await other.one()).body == b"a"


async def test_calls_before_connect_and_after_close_are_unavailable(broker: str, topic: str) -> None:
    transport = open_transport(broker)
    with pytest.raises(Unavailable):
        await send(transport, out(topic, "a"))
    await transport.connect(asyncio.get_running_loop().time() + 10)
    await transport.connect(asyncio.get_running_loop().time() + 10)
    await stored(transport, out(topic, "a"))
    await transport.close()
    await transport.close()
    with pytest.raises(Unavailable):
        await send(transport, out(topic, "b"))
    with pytest.raises(Unavailable):
        await join(transport, topic)


async def test_a_closed_transport_connects_again(another: Another, broker: str, topic: str) -> None:
    await another()  # keeps the broker, where it lives with its users
    transport = open_transport(broker)
    for _ in range(2):
        await transport.connect(asyncio.get_running_loop().time() + 10)
        member = await join(transport, topic)
        await stored(transport, out(topic, "a"))
        assert (await member.drain(1))[0].body == b"a"
        await transport.close()
