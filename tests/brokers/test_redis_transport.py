"""The Redis driver on real servers: what it stores, hands out and settles."""

# ruff: noqa: ASYNC110  (what they wait for happens on the server)

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence

import pytest
from redis.asyncio import Redis

from switchgear.driver import (
    Delivery,
    Fence,
    Outgoing,
    Resource,
    Settlement,
    Source,
    Start,
    Subscription,
    Verdict,
)
from switchgear.errors import ConfigurationError, Lost, NotFound, NotSent, Refused, TransportError
from switchgear.plugins import open_transport
from switchgear_redis import RedisTuning
from switchgear_redis.transport import RedisTransport
from tests.brokers.fixtures import Server

pytestmark = pytest.mark.redis
ACK, RETRY, EXTEND, RELEASE = Verdict.ACK, Verdict.RETRY, Verdict.EXTEND, Verdict.RELEASE
Opener = Callable[..., Awaitable[RedisTransport]]


async def opened(url: str, tuning: RedisTuning | None = None) -> RedisTransport:
    transport = open_transport(url, [tuning] if tuning else [])
    assert isinstance(transport, RedisTransport)
    await transport.connect(soon())
    return transport


def soon(seconds: float = 60.0) -> float:
    return asyncio.get_running_loop().time() + seconds


@pytest.fixture
async def transport(redis_server: Server) -> AsyncIterator[RedisTransport]:
    transport = await opened(redis_server.url)
    yield transport
    await transport.close()


@pytest.fixture
async def client(redis_server: Server, namespace: str) -> AsyncIterator[Redis]:
    """The bare client, to look behind the driver and to clear up."""
    client = Redis.from_url(redis_server.url)
    yield client
    names = [name async for name in client.scan_iter(f"{namespace}*")]
    if names:
        await client.delete(*names)
    await client.aclose()


@pytest.fixture
def topic(namespace: str, client: Redis) -> str:
    return f"{namespace}orders"


async def nothing_revoked(lanes: Collection[str], lost: bool) -> None:
    raise AssertionError(f"revoked: {lanes}")


async def ignored(lanes: Collection[str], lost: bool) -> None:
    """For a member that is expected to lose its lease."""


async def member(
    transport: RedisTransport, *topics: str, group: str | None = "g", start: Start = "earliest", lease: float = 30.0,
    fences: Mapping[str, Fence] | None = None,
    revoked: Callable[[Collection[str], bool], Awaitable[None]] = nothing_revoked,
) -> Source:  # fmt: skip
    return await transport.subscribe(
        Subscription(
            topics={name: (fences or {}).get(name) for name in topics}, group=group,
            consumer=f"m-{secrets.token_hex(4)}", start=start, lease=lease,
        ),
        revoked,
    )  # fmt: skip


async def send(transport: RedisTransport, topic: str, *bodies: str, key: bytes | None = None) -> None:
    batch = [Outgoing(topic=topic, body=body.encode(), key=key) for body in bodies]
    assert list(await transport.send(batch, soon())) == [None] * len(batch)


async def take(source: Source, count: int) -> list[Delivery]:
    """Receive until there are `count`."""
    out: list[Delivery] = []
    async with asyncio.timeout(60):
        while len(out) < count:
            out += await source.receive(100)
    assert len(out) == count, [d.body for d in out]
    return out


async def settle(source: Source, verdict: Verdict, *deliveries: Delivery, seconds: float = 0.0) -> list[type | None]:
    batch = [Settlement(delivery=d, verdict=verdict, seconds=seconds) for d in deliveries]
    return [None if error is None else type(error) for error in await source.settle(batch)]


def bodies(deliveries: Sequence[Delivery]) -> list[str]:
    return [(d.body or b"").decode() for d in deliveries]


async def lease(transport: RedisTransport, name: str, owner: bytes, ttl: float = 60.0) -> Fence:
    revision = await transport.write(name, owner, expect=None, ttl=ttl)
    assert revision
    return Fence(name, revision)


def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on reads block for an hour, so that what ends one was meant to."""
    monkeypatch.setattr("switchgear_redis.source.BLOCK", 3600.0)
    monkeypatch.setattr("switchgear_redis.broadcast.BLOCK", 3600.0)


async def blocked(client: Redis, count: int) -> None:
    """Wait until so many reads are blocking on the server."""
    while sum("b" in one["flags"] for one in await client.client_list()) < count:
        await asyncio.sleep(0.005)


# ---- messages --------------------------------------------------------------------------------------------


async def test_round_trip(transport: RedisTransport, topic: str) -> None:
    sent = [
        Outgoing(topic=topic, body=b"\x00\xff", media=b"x/y", headers=[("a", b"1"), ("a", b"\xff")], key=b"\x00k"),
        Outgoing(topic=topic, body=b"", key=b"", marked=True),
        Outgoing(topic=topic, body=b"plain"),
    ]
    began = time.time()
    assert list(await transport.send(sent, soon())) == [None] * 3
    source = await member(transport, topic)
    before = soon(30)
    got = await take(source, 3)
    assert [(d.body, d.media, d.key, d.marked, d.deliveries, d.lane) for d in got] == [
        (b"\x00\xff", b"x/y", b"\x00k", False, 1, ""),
        (b"", None, b"", True, 1, ""),
        (b"plain", None, None, False, 1, ""),
    ]
    assert [source.headers(d) for d in got] == [[("a", b"1"), ("a", b"\xff")], [], []]
    assert all(began - 1 < source.time(d) < time.time() + 1 for d in got)
    assert before <= got[0].until <= soon(30)


async def test_readable_with_redis_cli(transport: RedisTransport, topic: str, client: Redis) -> None:
    await transport.send([Outgoing(topic=topic, body=b"{}", headers=[("ce-id", b"1")], key=b"k")], soon())
    [(_, fields)] = await client.xrange(topic)
    assert fields == {b"b": b"{}", b"h": b'[["ce-id","1"]]', b"t": b"", b"k": b"k"}


async def test_foreign_entries(transport: RedisTransport, topic: str, client: Redis) -> None:
    await client.xadd(topic, {"body": b"hello", "tenant": "a"})
    await client.xadd(topic, {"id": "1", "total": "5"})
    source = await member(transport, topic)
    first, second = await take(source, 2)
    assert (first.body, source.headers(first), first.marked) == (b"hello", [("tenant", b"a")], True)
    assert (second.body, second.media) == (b'{"id":"1","total":"5"}', b"application/json")


async def test_equal_ids_of_two_topics_are_two_messages(
    transport: RedisTransport, namespace: str, topic: str, client: Redis
) -> None:
    other = f"{namespace}other"
    for name in (topic, other):
        await client.xadd(name, {"body": name}, id="1-1")
    source = await member(transport, topic, other)
    got = await take(source, 2)
    assert len({d.token for d in got}) == 2
    assert {source.position(d) for d in got} == {"1-1"}
    assert await settle(source, ACK, *got) == [None, None]
    assert await transport.lag([topic, other], "g") == {topic: 0, other: 0}


async def test_failed_message_holds_back_its_key(
    transport: RedisTransport, namespace: str, topic: str, client: Redis
) -> None:
    # The largest id: Redis refuses whatever follows it, so all of this topic fails and nothing of the other.
    other = f"{namespace}other"
    await client.xadd(topic, {"body": "last"}, id="18446744073709551615-18446744073709551615")
    outcomes = await transport.send(
        [
            Outgoing(topic=topic, body=b"1", key=b"a"),
            Outgoing(topic=other, body=b"2", key=b"a"),
            Outgoing(topic=topic, body=b"3", key=b"a"),
            Outgoing(topic=topic, body=b"4"),
        ],
        soon(),
    )
    assert [type(outcome) for outcome in outcomes] == [Refused, type(None), NotSent, Refused]
    assert "an earlier message of its key" in str(outcomes[2])
    assert await client.xlen(topic) == 1
    assert await client.xlen(other) == 1


async def test_what_is_no_stream(transport: RedisTransport, topic: str, client: Redis) -> None:
    await client.set(topic, "x")
    [outcome] = await transport.send([Outgoing(topic=topic, body=b"1")], soon())
    assert type(outcome) is Refused
    assert "no stream" in str(outcome)
    with pytest.raises(Refused, match="no stream"):
        await member(transport, topic)


async def test_tombstone_and_odd_header_name_are_refused_alone(transport: RedisTransport, topic: str) -> None:
    outcomes = await transport.send(
        [
            Outgoing(topic=topic, body=None, key=b"k"),
            Outgoing(topic=topic, body=b"1", headers=[("\ud800", b"")]),
            Outgoing(topic=topic, body=b"2"),
        ],
        soon(),
    )
    assert [type(outcome) for outcome in outcomes] == [Refused, Refused, type(None)]


async def test_scripts_are_loaded_again(transport: RedisTransport, topic: str, client: Redis) -> None:
    source = await member(transport, topic)
    await client.script_flush()
    await send(transport, topic, "1", "2")
    await client.script_flush()
    got = await take(source, 2)
    await client.script_flush()
    assert await settle(source, ACK, *got) == [None, None]
    assert await client.xlen(topic) == 2


# ---- groups ----------------------------------------------------------------------------------------------


async def test_groups_each_get_all_and_members_share(transport: RedisTransport, topic: str) -> None:
    a1, a2 = await member(transport, topic, group="a"), await member(transport, topic, group="a")
    b = await member(transport, topic, group="b")
    await send(transport, topic, *map(str, range(20)))
    first = await a1.receive(5)
    second = await take(a2, 15)
    assert sorted(bodies([*first, *second]), key=int) == [str(n) for n in range(20)]
    assert bodies(await take(b, 20)) == [str(n) for n in range(20)]


async def test_starts(transport: RedisTransport, topic: str, client: Redis) -> None:
    await client.xadd(topic, {"body": "old"}, id="1000000-0")
    await client.xadd(topic, {"body": "mid"}, id="2000000-0")
    new = await member(transport, topic, group="new", start="new")
    earliest = await member(transport, topic, group="earliest")
    timed = await member(transport, topic, group="timed", start=2000.0)
    await send(transport, topic, "now")
    assert bodies(await take(new, 1)) == ["now"]
    assert bodies(await take(earliest, 3)) == ["old", "mid", "now"]
    assert bodies(await take(timed, 2)) == ["mid", "now"]


async def test_retry_waits_and_counts(transport: RedisTransport, topic: str) -> None:
    source, other = await member(transport, topic), await member(transport, topic)
    await send(transport, topic, "x")
    [d] = await take(source, 1)
    began = time.monotonic()
    assert await settle(source, RETRY, d, seconds=0.4) == [None]
    assert await settle(source, RETRY, d, seconds=0.4) == [Lost]
    [again] = await take(source, 1)
    assert time.monotonic() - began >= 0.4
    assert (again.token, again.deliveries) == (d.token, 2)
    assert await settle(source, RETRY, again, seconds=0.0) == [None]
    [third] = await take(other, 1)  # any member
    assert third.deliveries == 3
    assert await settle(other, ACK, third) == [None]
    assert await transport.lag([topic], "g") == {topic: 0}


async def test_retry_wakes_a_read_that_blocks(
    transport: RedisTransport, topic: str, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient(monkeypatch)
    source = await member(transport, topic, lease=4 * 3600)
    await send(transport, topic, "x")
    [d] = await take(source, 1)
    taking = asyncio.create_task(take(source, 1))
    await blocked(client, 1)
    await settle(source, RETRY, d, seconds=0.05)
    assert (await taking)[0].deliveries == 2


async def test_waiting_longer_than_the_lease_is_not_taken_over(transport: RedisTransport, topic: str) -> None:
    source, other = await member(transport, topic, lease=0.2), await member(transport, topic, lease=0.2)
    await send(transport, topic, "x")
    [d] = await take(source, 1)
    began = time.monotonic()
    await settle(source, RETRY, d, seconds=1.0)
    assert (await take(other, 1))[0].deliveries == 2
    assert time.monotonic() - began >= 1.0


async def test_release_is_no_delivery(transport: RedisTransport, topic: str) -> None:
    source, other = await member(transport, topic), await member(transport, topic)
    await send(transport, topic, "x", "y")
    got = await take(source, 2)
    assert await settle(source, RELEASE, *got) == [None, None]
    again = await take(other, 2)
    assert [(d.body, d.deliveries) for d in again] == [(b"x", 1), (b"y", 1)]
    for verdict in (EXTEND, RETRY, RELEASE):
        assert await settle(source, verdict, got[0]) == [Lost]
    assert await settle(other, ACK, *again) == [None, None]


async def test_ack_twice_is_harmless(transport: RedisTransport, topic: str) -> None:
    source = await member(transport, topic)
    await send(transport, topic, "x", "y")
    got = await take(source, 2)
    assert await settle(source, ACK, got[0]) == [None]
    assert await settle(source, ACK, *got) == [None, None]
    assert await transport.lag([topic], "g") == {topic: 0}


async def test_dead_members_entries_go_to_others_after_the_lease(transport: RedisTransport, topic: str) -> None:
    dead, alive = await member(transport, topic, lease=0.5), await member(transport, topic, lease=0.5)
    await send(transport, topic, *map(str, range(1200)))
    got = [d for _ in range(2) for d in await dead.receive(400)]
    began = time.monotonic()
    got += await dead.receive(400)
    late = await take(alive, 1200)
    assert time.monotonic() - began >= 0.499  # the server counts in milliseconds
    assert {d.deliveries for d in late} == {2}
    assert sorted(bodies(late), key=int) == bodies(got)
    # a late settlement of the dead one is refused, and harms nobody
    for verdict in (ACK, EXTEND, RETRY, RELEASE):
        assert await settle(dead, verdict, got[0]) == [Lost]
    assert await transport.lag([topic], "g") == {topic: 1200}
    assert await settle(alive, ACK, *late) == [None] * 1200


async def test_extension_keeps_the_lease(transport: RedisTransport, topic: str, client: Redis) -> None:
    source, other = await member(transport, topic, lease=300.0), await member(transport, topic)
    await send(transport, topic, "x")
    [d] = await take(source, 1)
    name: str = source._member  # type: ignore[attr-defined]

    async def pass_time(seconds: int) -> None:
        [p] = await client.xpending_range(topic, "g", "-", "+", 9)
        idle = p["time_since_delivered"] + seconds * 1000
        await client.xclaim(topic, "g", name, 0, [source.position(d)], idle=idle, justid=True)

    for _ in range(3):
        await pass_time(200)
        assert await other._tend(10) == []  # type: ignore[attr-defined]
        assert await settle(source, EXTEND, d, seconds=300.0) == [None]
    await pass_time(200)
    await pass_time(200)
    assert [t.deliveries for t in await other._tend(10)] == [2]  # type: ignore[attr-defined]
    assert await settle(source, ACK, d) == [Lost]


async def test_leaving_returns_what_is_unsettled(transport: RedisTransport, topic: str, client: Redis) -> None:
    source = await member(transport, topic)
    await send(transport, topic, *map(str, range(1500)))
    await take(source, 1500)
    await source.close()
    await source.close()
    assert await source.receive(1) == []
    other = await member(transport, topic)
    assert bodies(await take(other, 1500)) == [str(n) for n in range(1500)]
    names = {c["name"] for c in await client.xinfo_consumers(topic, "g")}
    assert names == {b":waiting", other._member.encode()}  # type: ignore[attr-defined]


async def test_leaving_is_no_delivery(transport: RedisTransport, topic: str, namespace: str) -> None:
    """Also of what was read and never handed out, since the source was closed meanwhile."""
    source = await member(transport, topic)
    await send(transport, topic, "x", "y")
    assert bodies(await source.receive(1)) == ["x"]
    reading = asyncio.create_task(source.receive(1))
    await asyncio.sleep(0)
    await source.close()
    assert await reading == []
    other = await member(transport, topic)
    assert [(d.body, d.deliveries) for d in await take(other, 2)] == [(b"x", 1), (b"y", 1)]
    await other.close()

    row = f"{namespace}sg.lease"
    old = await member(transport, topic, fences={topic: await lease(transport, row, b"old")})
    assert bodies(await take(old, 2)) == ["x", "y"]
    await old.close()
    new = await member(transport, topic, fences={topic: await lease(transport, row, b"new")})
    assert [(d.body, d.deliveries) for d in await take(new, 2)] == [(b"x", 1), (b"y", 1)]


async def test_close_ends_a_blocking_receive(
    transport: RedisTransport, topic: str, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient(monkeypatch)
    for group in ("g", None):
        source = await member(transport, topic, group=group, start="new", lease=4 * 3600)
        waiting = asyncio.create_task(source.receive(10))
        await blocked(client, 1)
        await source.close()
        assert await waiting == []


async def test_broadcast(transport: RedisTransport, topic: str, client: Redis) -> None:
    await send(transport, topic, "old")
    new, all_ = (
        await member(transport, topic, group=None, start="new"),
        await member(transport, topic, group=None, start="earliest"),
    )
    await send(transport, topic, "1", "2")
    assert bodies(await take(new, 2)) == ["1", "2"]
    got = await take(all_, 3)
    assert bodies(got) == ["old", "1", "2"]
    assert await settle(all_, ACK, *got) == [None] * 3
    began = time.monotonic()
    assert await settle(all_, RETRY, got[0], seconds=0.3) == [None]
    assert await settle(all_, RELEASE, got[1]) == [None]
    again = await take(all_, 2)
    assert [(d.body, d.deliveries, d.token) for d in again] == [(b"1", 1, got[1].token), (b"old", 2, got[0].token)]
    assert time.monotonic() - began >= 0.3
    assert await client.xinfo_groups(topic) == []


async def test_trimmed_pending_entry_is_counted_and_gone(transport: RedisTransport, topic: str, client: Redis) -> None:
    dead, alive = await member(transport, topic, lease=0.2), await member(transport, topic, lease=0.2)
    await send(transport, topic, "x", "y")
    got = await take(dead, 2)
    await client.xdel(topic, dead.position(got[0]))
    assert bodies(await take(alive, 1)) == ["y"]
    assert alive.trimmed == {topic: 1}  # type: ignore[attr-defined]
    assert await transport.trimmed([topic]) == {topic: 1}
    assert (await client.xpending(topic, "g"))["pending"] == 1


async def test_limit_is_kept_over_many_topics(transport: RedisTransport, namespace: str, client: Redis) -> None:
    names = [f"{namespace}n{n}" for n in range(5)]
    for name in names:
        await send(transport, name, *"abcd")
    source = await member(transport, *names)
    total = 0
    while total < 20:
        got = await source.receive(3)
        assert 0 < len(got) <= 3
        total += len(got)


# ---- leases ----------------------------------------------------------------------------------------------


async def test_new_owner_takes_what_was_unsettled_first(transport: RedisTransport, topic: str, namespace: str) -> None:
    row = f"{namespace}sg.lease"
    old = await lease(transport, row, b"old")
    a = await member(transport, topic, fences={topic: old})
    await send(transport, topic, *"abcdef", key=b"k")
    got = [*await a.receive(2), *await a.receive(2)]
    assert bodies(got) == list("abcd")
    assert {(d.lane, d.fence) for d in got} == {(f"{topic}#{old.revision}", old.revision)}
    assert await settle(a, ACK, got[0]) == [None]
    assert await settle(a, RETRY, got[2], seconds=60) == [None]
    assert await settle(a, RELEASE, got[3]) == [None]

    new = await lease(transport, row, b"new")
    assert new.revision > old.revision
    b = await member(transport, topic, fences={topic: new})
    taken = [d for n in (1, 1, 100, 100) for d in await b.receive(n)]
    assert bodies(taken) == list("bcdef")
    assert [d.deliveries for d in taken] == [2, 2, 1, 1, 1]
    assert {(d.lane, d.fence) for d in taken} == {(f"{topic}#{new.revision}", new.revision)}
    for verdict in (ACK, EXTEND, RETRY, RELEASE):
        assert await settle(a, verdict, got[1]) == [Lost]
    assert await settle(b, ACK, *taken) == [None] * 5
    assert await transport.lag([topic], "g") == {topic: 0}


async def test_expired_lease_settles_nothing(transport: RedisTransport, topic: str, namespace: str) -> None:
    row = f"{namespace}sg.lease"
    fence = await lease(transport, row, b"a")
    source = await member(transport, topic, fences={topic: fence})
    await send(transport, topic, "x")
    got = await take(source, 1)
    await transport.write(row, None, expect=fence.revision, ttl=None)
    assert await settle(source, ACK, *got) == [Lost]


async def test_member_without_the_lease_hands_out_nothing(
    transport: RedisTransport, topic: str, namespace: str
) -> None:
    row, revoked = f"{namespace}sg.lease", list[tuple[list[str], bool]]()

    async def revoke(lanes: Collection[str], lost: bool) -> None:
        revoked.append((list(lanes), lost))

    old = await lease(transport, row, b"old")
    zombie = await member(transport, topic, fences={topic: old}, revoked=revoke)
    assert await zombie.receive(10) == []
    new = await lease(transport, row, b"new")
    owner = await member(transport, topic, fences={topic: new})
    assert await owner.receive(1) == []  # it has taken over; nothing was pending
    await send(transport, topic, "1", "2", "3")
    assert await zombie.receive(2) == []  # it read two and noticed
    assert revoked == [([f"{topic}#{old.revision}"], True)]
    assert await zombie.receive(2) == []
    assert revoked == [([f"{topic}#{old.revision}"], True)]
    got: list[Delivery] = []
    while len(got) < 3:
        got += await owner.receive(10)
    assert bodies(got) == ["1", "2", "3"]
    assert await settle(owner, ACK, *got) == [None] * 3


async def test_what_a_member_without_the_lease_read_keeps_its_place(
    transport: RedisTransport, topic: str, namespace: str, client: Redis
) -> None:
    row = f"{namespace}sg.lease"
    zombie = await member(transport, topic, fences={topic: await lease(transport, row, b"old")}, revoked=ignored)
    assert await zombie.receive(1) == []
    owner = await member(transport, topic, fences={topic: await lease(transport, row, b"new")})
    assert await owner.receive(1) == []
    owner._due_at = soon(60)  # type: ignore[attr-defined]  # it has just looked at what waits
    await send(transport, topic, "1", "2")
    assert await zombie.receive(1) == []  # it has read 1
    await zombie.close()
    [left] = await client.xpending_range(topic, "g", "-", "+", 9)
    assert left["consumer"] == zombie._member.encode()  # type: ignore[attr-defined]
    await send(transport, topic, "3")
    got: list[Delivery] = []
    while len(got) < 3:
        got += await owner.receive(10)
    assert bodies(got) == ["1", "2", "3"]
    assert await settle(owner, ACK, *got) == [None] * 3


async def test_assigned_anew_with_a_new_revision(transport: RedisTransport, topic: str, namespace: str) -> None:
    row = f"{namespace}sg.lease"
    first = await lease(transport, row, b"a")
    source = await member(transport, topic, fences={topic: first})
    await send(transport, topic, "x", "y")
    [x, y] = await take(source, 2)
    await transport.write(row, None, expect=None, ttl=None)
    second = await lease(transport, row, b"a")
    await source.assign({topic: second})
    again = await take(source, 2)
    assert [(d.token, d.deliveries) for d in again] == [(x.token, 1), (y.token, 1)]
    assert await settle(source, ACK, x) == [Lost]
    assert await settle(source, ACK, *again) == [None, None]
    await source.assign({})
    assert await source.receive(10) == []
    assert await settle(source, ACK, *again) == [None, None]


async def test_held_lanes_are_not_fetched(transport: RedisTransport, namespace: str, client: Redis) -> None:
    names = [f"{namespace}p0", f"{namespace}p1"]
    fences = {name: await lease(transport, f"{name}.lease", b"a") for name in names}
    source = await member(transport, *names, fences=fences)
    for name in names:
        await send(transport, name, "x")
    held = f"{names[0]}#{fences[names[0]].revision}"
    assert [d.topic for d in await source.receive(10, [held])] == [names[1]]
    assert await source.receive(10, [held]) == []
    assert [d.topic for d in await take(source, 1)] == [names[0]]


# ---- registry --------------------------------------------------------------------------------------------


async def test_registry(transport: RedisTransport, namespace: str, client: Redis) -> None:
    a, b = f"{namespace}a", f"{namespace}b"
    write = transport.write
    first = await write(a, b"1", expect=0, ttl=None)
    assert first
    assert await write(a, b"2", expect=0, ttl=None) is None
    assert await write(a, b"1", expect=first, ttl=60) == first  # renewed
    assert await client.pttl(f"switchgear:row:{a}") > 50_000
    second = await write(a, b"2", expect=first, ttl=None)
    assert second is not None
    assert second > first
    assert await client.pttl(f"switchgear:row:{a}") == -1
    assert await write(a, b"3", expect=first, ttl=None) is None
    third = await write(b, b"", expect=None, ttl=60)
    assert third
    assert await transport.read(namespace) == {a: (b"2", second), b: (b"", third)}
    assert await transport.read(b) == {b: (b"", third)}
    await client.pexpire(f"switchgear:row:{b}", 1)
    while await transport.read(b):
        await asyncio.sleep(0.01)
    fourth = await write(b, b"", expect=0, ttl=None)
    assert fourth is not None
    assert fourth > third
    assert await write(b, None, expect=third, ttl=None) is None
    assert await write(b, None, expect=fourth, ttl=None) == fourth
    assert await write(b, None, expect=None, ttl=None) == 0
    assert list(await transport.read(namespace)) == [a]
    assert await write(a, None, expect=None, ttl=None) == second


async def test_registry_has_one_winner(transport: RedisTransport, namespace: str) -> None:
    results = await asyncio.gather(*(transport.write(namespace, b"%d" % n, expect=0, ttl=5) for n in range(20)))
    assert sum(result is not None for result in results) == 1
    await transport.write(namespace, None, expect=None, ttl=None)


# ---- delay -----------------------------------------------------------------------------------------------


async def test_delayed_messages(transport: RedisTransport, topic: str, client: Redis) -> None:
    source = await member(transport, topic)
    now = time.time()
    batch = [
        Outgoing(topic=topic, body=b"late", key=b"k", headers=[("a", b"\xff")], due=now + 0.3, dedup="1", marked=True),
        Outgoing(topic=topic, body=b"never", due=now + 3600, dedup="2"),
        Outgoing(topic=topic, body=b"twice", due=now + 0.2, dedup="3"),
        Outgoing(topic=topic, body=b"past", due=now - 1),
    ]
    assert list(await transport.send(batch, soon())) == [None] * 4
    assert list(await transport.send(batch[2:3], soon())) == [None]
    assert bodies(await take(source, 1)) == ["past"]
    due = await transport.promote(100)
    assert due is not None
    assert 0 <= due <= 3600
    assert await transport.cancel(topic, "2")
    assert not await transport.cancel(topic, "2")
    got: list[Delivery] = []
    while len(got) < 2:
        await transport.promote(1)
        got += await source.receive(10)
    assert bodies(got) == ["twice", "late"]
    assert all(source.time(d) >= now + wait - 0.001 for d, wait in zip(got, (0.2, 0.3), strict=True))
    assert (got[1].key, source.headers(got[1]), got[1].marked) == (b"k", [("a", b"\xff")], True)
    assert not await transport.cancel(topic, "1")


async def test_a_refused_delayed_message_holds_up_no_other(
    transport: RedisTransport, topic: str, namespace: str, client: Redis
) -> None:
    wrong = f"{namespace}wrong"
    await client.set(wrong, "x")
    now = time.time() + 0.05
    await transport.send([Outgoing(topic=t, body=b"x", due=now, dedup="1") for t in (wrong, topic)], soon())
    source = await member(transport, topic)
    while time.time() < now + 0.01:
        await asyncio.sleep(0.01)
    with pytest.raises(Refused, match="no stream"):
        await transport.promote(10)
    assert bodies(await take(source, 1)) == ["x"]
    assert await transport.cancel(wrong, "1")


# ---- what is kept ----------------------------------------------------------------------------------------


async def trim(transport: RedisTransport, topic: str, group: str = "g") -> None:
    source = await member(transport, topic, group=group)
    await source.receive(1)
    await source.close()


async def test_trimming_takes_only_what_every_group_settled(redis_server: Server, topic: str, client: Redis) -> None:
    transport = await opened(redis_server.url, RedisTuning(keep=0.0))
    await send(transport, topic, *map(str, range(500)))
    a, b = await member(transport, topic, group="a"), await member(transport, topic, group="b")
    got = [d for _ in range(5) for d in await a.receive(100)]
    assert await settle(a, ACK, *got) == [None] * 500
    b_got = [d for _ in range(4) for d in await b.receive(100)]
    assert await settle(b, ACK, *b_got[:300]) == [None] * 300
    a._trim_at = a._tend_at = 0.0  # type: ignore[attr-defined]
    await a.receive(1)
    left = [f[b"b"] for _, f in await client.xrange(topic)]
    assert left[-200:] == [b"%d" % n for n in range(300, 500)]  # pending and unread ones
    assert 200 <= len(left) < 500  # whole blocks of the rest are gone
    assert await transport.trimmed([topic]) == {}
    assert await settle(b, ACK, *b_got[300:]) == [None] * 100
    assert bodies(await take(b, 100)) == [str(n) for n in range(400, 500)]
    await transport.close()


async def test_nothing_is_trimmed_before_its_time_or_without_a_group(
    redis_server: Server, transport: RedisTransport, topic: str, client: Redis
) -> None:
    await send(transport, topic, *map(str, range(300)))
    source = await member(transport, topic)
    assert await settle(source, ACK, *(await take(source, 300))) == [None] * 300
    source._trim_at = source._tend_at = 0.0  # type: ignore[attr-defined]
    await source.receive(1)
    assert await client.xlen(topic) == 300


async def test_declared_retention_trims_read_or_not_and_counts(
    transport: RedisTransport, topic: str, client: Redis
) -> None:
    for n in range(10):
        await client.xadd(topic, {"body": str(n)}, id=f"{1000 + n}-0")
    source = await member(transport, topic)
    await source.receive(3)
    await transport.provision([Resource(kind="topic", name=topic, retention=60.0)], True)
    await send(transport, topic, "new")
    source._trim_at = source._tend_at = 0.0  # type: ignore[attr-defined]
    got = await source.receive(10)
    assert await client.xlen(topic) == 1
    assert bodies(got) == ["new"]
    assert source.trimmed == {topic: 7}  # type: ignore[attr-defined]
    assert await transport.trimmed([topic]) == {topic: 7}


async def test_maxlen_counts_what_it_takes_unread(redis_server: Server, topic: str, client: Redis) -> None:
    transport = await opened(redis_server.url, RedisTuning(maxlen=10))
    source = await member(transport, topic)
    await send(transport, topic, *map(str, range(10)))
    assert await settle(source, ACK, *(await take(source, 10))) == [None] * 10
    await send(transport, topic, *map(str, range(10)))
    assert await transport.trimmed([topic]) == {}
    await send(transport, topic, *map(str, range(3)))
    assert await client.xlen(topic) == 10
    assert await transport.trimmed([topic]) == {topic: 3}
    for _ in range(2):  # told once
        source._trim_at = source._tend_at = 0.0  # type: ignore[attr-defined]
        await source.receive(1)
        assert source.trimmed == {topic: 3}  # type: ignore[attr-defined]
    await transport.close()


# ---- administration --------------------------------------------------------------------------------------


async def test_provision_and_topics(transport: RedisTransport, topic: str, namespace: str, client: Redis) -> None:
    wanted = [
        Resource(kind="topic", name=topic, retention=60.0),
        Resource(kind="group", name="g", topic=topic, start="earliest"),
    ]
    assert [(d.field, d.applied) for d in await transport.provision(wanted, False)] == [("exists", False)] * 2
    assert await client.exists(topic) == 0
    assert [(d.field, d.applied) for d in await transport.provision(wanted, True)] == [("exists", True)] * 2
    assert await transport.provision(wanted, True) == []
    assert await transport.topics(namespace) == [(await transport.topics(topic))[0]]
    [info] = await transport.topics(namespace)
    assert (info.name, info.messages, info.groups) == (topic, 0, ("g",))
    [drift] = await transport.provision([Resource(kind="topic", name=topic)], True)
    assert (drift.field, drift.wanted, drift.found) == ("retention", None, 60.0)
    assert await transport.provision([Resource(kind="topic", name=topic)], False) == []
    with pytest.raises(ConfigurationError, match="of which topic"):
        await transport.provision([Resource(kind="group", name="g")], True)


async def test_names_are_no_patterns(transport: RedisTransport, namespace: str, client: Redis) -> None:
    await send(transport, f"{namespace}a", "x")
    assert await transport.topics(f"{namespace}*") == []
    assert [info.name for info in await transport.topics(namespace)] == [f"{namespace}a"]


async def test_lag(transport: RedisTransport, topic: str, client: Redis) -> None:
    source = await member(transport, topic)
    await send(transport, topic, *"abcde")
    got = await source.receive(3)
    await settle(source, ACK, got[0])
    await settle(source, RETRY, got[1], seconds=60)
    assert await transport.lag([topic, f"{topic}.none"], "g") == {topic: 4}
    await client.xdel(topic, (await client.xrange(topic))[3][0])  # then Redis no longer knows by itself
    assert await transport.lag([topic], "g") == {topic: 3}
    assert await transport.lag([topic], "other") == {}


async def test_seek(transport: RedisTransport, topic: str) -> None:
    source = await member(transport, topic)
    await send(transport, topic, *"abc")
    got = await take(source, 3)
    await settle(source, RETRY, got[2], seconds=60)
    with pytest.raises(Refused, match="stop it, then seek"):
        await transport.seek(topic, "g", "earliest")
    await source.close()
    await transport.seek(topic, "g", source.position(got[1]))
    source = await member(transport, topic)
    assert bodies(await take(source, 2)) == ["b", "c"]
    await source.close()
    await transport.seek(topic, "g", "new")
    await send(transport, topic, "d")
    source = await member(transport, topic)
    assert bodies(await take(source, 1)) == ["d"]
    with pytest.raises(NotFound, match="no group 'other'"):
        await transport.seek(topic, "other", "earliest")
    with pytest.raises(NotFound):
        await transport.seek(f"{topic}.none", "g", "earliest")
    with pytest.raises(ConfigurationError, match="no position"):
        await transport.seek(topic, "g", "yesterday")


async def test_a_member_that_has_read_nothing_yet_is_there(transport: RedisTransport, topic: str) -> None:
    source = await member(transport, topic)
    with pytest.raises(Refused, match="stop it, then seek"):
        await transport.seek(topic, "g", "earliest")
    await source.close()
    await transport.seek(topic, "g", "earliest")


async def test_a_member_without_room_is_alive(transport: RedisTransport, topic: str, client: Redis) -> None:
    source = await member(transport, topic)
    await send(transport, topic, "x")
    await source.receive(0)
    assert (await client.xinfo_consumers(topic, "g"))[0]["pending"] == 0
    with pytest.raises(Refused, match="stop it"):
        await transport.seek(topic, "g", "earliest")


async def test_browse(transport: RedisTransport, topic: str, client: Redis) -> None:
    async def browsed(start: Start, end: float | None = None) -> list[str]:
        return [(d.body or b"").decode() async for d, _ in transport.browse(topic, start, end)]

    assert await browsed("earliest") == []
    for n in range(250):
        await client.xadd(topic, {"body": str(n)}, id=f"{1000 + n}-0")
    assert await browsed("earliest") == [str(n) for n in range(250)]
    assert await browsed(1.1) == [str(n) for n in range(100, 250)]
    assert await browsed("earliest", 1.009) == [str(n) for n in range(10)]
    assert await browsed("new") == []
    await send(transport, topic, "x")
    async for delivery, headers in transport.browse(topic, "earliest", None):
        assert (delivery.deliveries, delivery.lane, headers) == (None, "", [])


async def test_empty_members_of_the_past_go(transport: RedisTransport, topic: str, client: Redis) -> None:
    import switchgear_redis.source as module

    source = await member(transport, topic)
    await client.xgroup_createconsumer(topic, "g", "past")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "EMPTY_MEMBER", -1)
        await source._tend(1)  # type: ignore[attr-defined]
    assert b"past" not in {c["name"] for c in await client.xinfo_consumers(topic, "g")}


async def test_a_waiting_set_that_was_evicted_is_rebuilt(transport: RedisTransport, topic: str, client: Redis) -> None:
    source = await member(transport, topic)
    await send(transport, topic, "x")
    await settle(source, RETRY, *(await take(source, 1)), seconds=3600)
    await client.delete(f"{topic}:waiting:g")
    source._tend_at = source._due_at = 0.0  # type: ignore[attr-defined]
    assert bodies(await take(source, 1)) == ["x"]


async def test_use_after_close(redis_server: Server, topic: str) -> None:
    transport = await opened(redis_server.url)
    await transport.close()
    await transport.close()
    with pytest.raises(TransportError, match="not connected"):
        await transport.send([Outgoing(topic=topic, body=b"x")], soon())
    await transport.connect(soon())
    await send(transport, topic, "x")
    client = Redis.from_url(redis_server.url)
    await client.delete(topic)
    await client.aclose()
    await transport.close()
