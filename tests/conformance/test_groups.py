"""Groups share, each gets all, and every verdict does what it says."""

from __future__ import annotations

import asyncio
import time

import pytest

from switchgear.driver import Settlement, Transport
from switchgear.errors import Lost

from .conftest import Another
from .member import ACK, EXTEND, RELEASE, RETRY, bodies, each_once, join, out, stored

N = 60
ALL = [str(i).encode() for i in range(N)]


async def test_ready_when_subscribe_returns(transport: Transport, another: Another, topic: str) -> None:
    publisher = await another()
    for i in range(5):
        member = await join(transport, topic, group=f"group{i}")
        await stored(publisher, out(topic, str(i)))
        assert bodies(await member.drain(1, within=5 + transport.capabilities.ready)) == [str(i).encode()]
        await member.source.close()


async def test_members_share_and_groups_each_get_all(transport: Transport, another: Another, topic: str) -> None:
    a1 = await join(transport, topic, group="a", consumer="a1")
    a2 = await join(await another(), topic, group="a", consumer="a2")
    b = await join(transport, topic, group="b")
    await stored(transport, *(out(topic, body) for body in ALL))
    each_once(await a1.drain(N // 2) + await a2.drain(N - N // 2), ALL)
    each_once(await b.drain(N), ALL)
    for member in (a1, a2, b):
        await member.nothing(0.2)


async def test_broadcast_reaches_every_subscriber(transport: Transport, another: Another, topic: str) -> None:
    if not transport.capabilities.broadcast:
        pytest.skip("not applicable: no broadcast")
    await stored(transport, out(topic, "before"))
    one = await join(transport, topic, group=None, consumer="one")
    two = await join(await another(), topic, group=None, consumer="two")
    await stored(transport, *(out(topic, body) for body in ALL))
    each_once(await one.drain(N), ALL)
    each_once(await two.drain(N), ALL)
    await one.nothing(0.2)


async def test_broadcast_tries_again(transport: Transport, topic: str) -> None:
    if not transport.capabilities.broadcast:
        pytest.skip("not applicable: no broadcast")
    one = await join(transport, topic, group=None)
    if not one.source.capabilities.retry_delay:
        pytest.skip("not applicable: the core keeps the retries of a broadcast")
    await stored(transport, out(topic, "a"))
    began = time.monotonic()
    await one.settle([await one.one()], RETRY, 0.3)
    again = await one.one()
    assert again.body == b"a"
    assert time.monotonic() - began >= 0.29
    await one.settle([again])
    await one.nothing()


async def test_what_is_acknowledged_never_returns(transport: Transport, topic: str) -> None:
    member = await join(transport, topic, lease=0.5)
    await stored(transport, out(topic, "a"), out(topic, "b"))
    deliveries = await member.drain(2)
    outcomes = await member.source.settle([Settlement(d, ACK) for d in deliveries])
    assert all(outcome is None or isinstance(outcome, Lost) for outcome in outcomes)  # idempotent
    await member.nothing(1.2)
    await member.source.close()
    after = await join(transport, topic, consumer="two")
    await after.nothing()


async def test_retry_is_not_early_and_counts(transport: Transport, topic: str) -> None:
    capabilities = transport.capabilities
    if not capabilities.retry_delay:
        pytest.skip("not applicable: the broker does not wait before a retry")
    member = await join(transport, topic)
    await stored(transport, out(topic, "a"))
    first = await member.one()
    began = time.monotonic()
    await member.settle([first], RETRY, 0.5)
    second = await member.one()
    assert 0.49 <= time.monotonic() - began < 2.5
    assert second.body == b"a"
    assert second.token == first.token
    if capabilities.counting != "none":
        assert (first.deliveries, second.deliveries) == (1, 2)
    await member.settle([second])
    await member.nothing(0.6)


async def test_release_returns_at_once_and_does_not_count(transport: Transport, another: Another, topic: str) -> None:
    one = await join(transport, topic, consumer="one")
    two = await join(await another(), topic, consumer="two")
    await stored(transport, out(topic, "a"))
    first = await one.one()
    began = time.monotonic()
    await one.settle([first], RELEASE)
    second = await two.one()
    assert time.monotonic() - began < 1.5
    assert second.body == b"a"
    if transport.capabilities.counting != "none":
        assert (first.deliveries, second.deliveries) == (1, 1)
    await two.settle([second])


async def test_extend_keeps_the_lease(transport: Transport, another: Another, topic: str) -> None:
    if not transport.capabilities.lease_cap:
        pytest.skip("not applicable: no leases")
    one = await join(transport, topic, consumer="one", lease=0.8)
    two = await join(await another(), topic, consumer="two", lease=0.8)
    await stored(transport, out(topic, "a"))
    first = await one.one()
    for _ in range(5):
        await one.settle([first], EXTEND, 0.8)
        await two.nothing(0.3)
    await one.settle([first])
    await two.nothing(1.0)


async def test_an_ended_lease_goes_to_another(transport: Transport, another: Another, topic: str) -> None:
    if not transport.capabilities.lease_cap:
        pytest.skip("not applicable: no leases")
    one = await join(transport, topic, consumer="one", lease=0.6)
    two = await join(await another(), topic, consumer="two", lease=0.6)
    await stored(transport, out(topic, "a"), out(topic, "b"))
    first = await one.take(2)
    taken = time.monotonic()
    again = await two.take(2, within=5)
    assert time.monotonic() - taken >= 0.3
    each_once(again, [b"a", b"b"])
    if transport.capabilities.counting == "exact":
        assert [d.deliveries for d in again] == [1, 1]
    await two.settle(again)
    assert first  # held to the end by a member that said no more


@pytest.mark.parametrize("verdict", [ACK, RETRY, EXTEND, RELEASE])
async def test_a_zombie_settles_nothing(transport: Transport, another: Another, topic: str, verdict: object) -> None:
    if not transport.capabilities.fencing:
        pytest.skip("not applicable: not refused, merely harmless")
    zombie = await join(transport, topic, consumer="zombie", lease=1.0)
    heir = await join(await another(), topic, consumer="heir", lease=1.0)
    await stored(transport, out(topic, "a"))
    late = await zombie.one()
    mine = await heir.one(within=5)
    assert mine.body == b"a"
    (outcome,) = await zombie.source.settle([Settlement(late, verdict, 5.0)])  # type: ignore[arg-type]
    assert isinstance(outcome, Lost)
    await heir.nothing(0.2)
    await heir.settle([mine])
    await heir.nothing(1.2)


async def test_close_returns_what_is_unsettled(transport: Transport, another: Another, topic: str) -> None:
    one = await join(transport, topic, consumer="one")
    two = await join(await another(), topic, consumer="two")
    await stored(transport, *(out(topic, body) for body in ALL[:10]))
    taken = await one.take(10)
    await one.settle(taken[:4])
    await one.source.close()
    await one.source.close()
    returned = await two.drain(6, within=5)
    each_once(returned, [d.body or b"" for d in taken[4:]])
    if transport.capabilities.counting == "exact":
        assert {d.deliveries for d in returned} == {1}
    await two.nothing()


async def test_tokens_are_unique_over_topics(transport: Transport, topic: str) -> None:
    topics = [f"{topic}.{i}" for i in range(3)]
    member = await join(transport, *topics)
    for _ in range(5):
        await stored(transport, *(out(name, name) for name in topics))
    deliveries = await member.take(15)
    assert len({d.token for d in deliveries}) == 15
    assert {d.topic for d in deliveries} == set(topics)
    await member.settle(deliveries)
    assert all(member.source.headers(d) == [] for d in deliveries)


async def test_no_topic_starves_another(transport: Transport, topic: str) -> None:
    member = await join(transport, topic, f"{topic}.two")
    await stored(transport, *(out(topic, str(i)) for i in range(100)), out(f"{topic}.two", "rare"))
    seen: list[bytes | None] = []
    for _ in range(4):
        some = await member.receive(10)
        await member.settle(some)
        seen += bodies(some)
    assert b"rare" in seen


async def test_receive_of_nothing_fetches_nothing(transport: Transport, topic: str) -> None:
    member = await join(transport, topic)
    await stored(transport, out(topic, "a"))
    began = time.monotonic()
    assert list(await member.source.receive(0)) == []
    assert time.monotonic() - began < 1.5
    assert (await member.one()).body == b"a"


async def test_receive_waits_about_a_second_and_returns_nothing(transport: Transport, topic: str) -> None:
    member = await join(transport, topic)
    began = time.monotonic()
    assert list(await member.source.receive(10)) == []
    assert time.monotonic() - began < 3


async def test_a_waiting_receive_sees_what_another_process_sends(
    transport: Transport, another: Another, topic: str
) -> None:
    member = await join(transport, topic)
    publisher = await another()
    await stored(publisher, out(topic, "warm"))
    await member.drain(1)
    waits = asyncio.create_task(member.take(1))
    await asyncio.sleep(0.1)
    sent = time.monotonic()
    await stored(publisher, out(topic, "a"))
    await waits
    assert time.monotonic() - sent < 0.5


async def test_close_ends_a_pending_receive(transport: Transport, topic: str) -> None:
    member = await join(transport, topic)
    pending = asyncio.create_task(member.source.receive(10))
    await asyncio.sleep(0.05)
    began = time.monotonic()
    await member.source.close()
    assert list(await pending) == []
    assert time.monotonic() - began < 2


async def test_assign_changes_the_topics(transport: Transport, another: Another, topic: str) -> None:
    member = await join(transport, topic, consumer="one")
    await member.source.assign({topic: None, f"{topic}.two": None})
    await stored(transport, out(topic, "1"), out(f"{topic}.two", "2"))
    each_once(await member.drain(2), [b"1", b"2"])
    await stored(transport, out(topic, "kept"))
    held = await member.one()
    await member.source.assign({f"{topic}.two": None})
    (outcome,) = await member.source.settle([Settlement(held, ACK)])
    assert outcome is None or isinstance(outcome, Lost)
    await stored(transport, out(topic, "3"), out(f"{topic}.two", "4"))
    assert bodies(await member.drain(1)) == [b"4"]
    await member.nothing()
    other = await join(await another(), topic, consumer="two")
    each_once(await other.drain(1 if outcome is None else 2), [b"3"] if outcome is None else [b"kept", b"3"])


async def test_a_group_collects_while_nobody_reads(transport: Transport, topic: str) -> None:
    member = await join(transport, topic)
    await member.source.close()
    await stored(transport, *(out(topic, body) for body in ALL))
    later = await join(transport, topic, consumer="two")
    each_once(await later.drain(N), ALL)
