"""The Redis driver when the server dies, hangs, refuses or forgets."""

# ruff: noqa: ASYNC110  (what they wait for happens on the server)

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest
from redis.asyncio import Redis

from switchgear.driver import Delivery, Outgoing, Source
from switchgear.errors import (
    ConfigurationError,
    Lost,
    MaybeSent,
    NotSent,
    Refused,
    SwitchgearError,
    TransportError,
    Unavailable,
    Unsupported,
)
from switchgear.plugins import open_transport
from switchgear_redis.transport import RedisTransport
from tests.brokers.broker import HOST, Broker
from tests.brokers.certificates import Certificates
from tests.brokers.fixtures import OwnRedis
from tests.brokers.test_redis_transport import (
    ACK,
    EXTEND,
    RELEASE,
    RETRY,
    blocked,
    bodies,
    member,
    send,
    settle,
    soon,
    take,
)

pytestmark = pytest.mark.redis
Opener = Callable[[str], Awaitable[RedisTransport]]


@pytest.fixture
async def opened() -> AsyncIterator[Opener]:
    """Connect to a URL; closed at the end."""
    transports: list[RedisTransport] = []

    async def open_(url: str) -> RedisTransport:
        transport = open_transport(url)
        assert isinstance(transport, RedisTransport)
        transports.append(transport)
        await transport.connect(soon())
        return transport

    yield open_
    for transport in transports:
        await transport.close()


async def raw(broker: Broker, *command: str) -> object:
    client = Redis.from_url(broker.url)
    try:
        return await client.execute_command(*command)
    finally:
        await client.aclose()


async def until_blocked(broker: Broker, count: int) -> None:
    """Wait until so many reads are blocking on the server."""
    client = Redis.from_url(broker.url)
    await blocked(client, count)
    await client.aclose()


async def until_reconnected(transport: RedisTransport) -> None:
    async with asyncio.timeout(60):
        while True:
            with suppress(Unavailable):
                await transport.connect(soon(5))
                return
            await asyncio.sleep(0.02)


def impatient(transport: RedisTransport, seconds: float) -> None:
    """As `?timeout=` does from the beginning, for a server that answered until now."""
    assert transport._open is not None
    object.__setattr__(transport._settings.tuning, "timeout", seconds)
    transport._open.patience = seconds


# ---- the server goes away -------------------------------------------------------------------------------------------


async def test_killed_and_restarted(own_redis: OwnRedis, opened: Opener) -> None:
    broker = own_redis()
    transport = await opened(broker.url)
    assert (transport.capabilities.persistent, transport.capabilities.ack_durable) == (True, True)
    source = await member(transport, "t")
    await send(transport, "t", *"abc")
    [a, b, c] = await take(source, 3)
    assert await settle(source, ACK, a) == [None]
    assert await settle(source, RETRY, c, seconds=0.5) == [None]
    waiting = asyncio.create_task(source.receive(10))
    await until_blocked(broker, 1)
    broker.kill()
    with pytest.raises(Unavailable, match="redis://127"):
        await waiting
    with pytest.raises(Unavailable, match="cannot be reached"):
        await transport.send([Outgoing(topic="t", body=b"x")], soon())
    with pytest.raises(Unavailable):
        await settle(source, ACK, b)
    with pytest.raises(Unavailable):
        await source.receive(10)
    with pytest.raises(Unavailable):
        await transport.connect(soon())
    broker.start()
    await until_reconnected(transport)
    await send(transport, "t", "d")
    got: dict[str, Delivery] = {}
    async with asyncio.timeout(60):
        while len(got) < 3:
            got |= {(d.body or b"").decode(): d for d in await source.receive(10)}
    assert set(got) == set("bcd")
    assert got["b"].token == b.token
    assert [got[name].deliveries for name in "bcd"] == [1, 2, 1]
    assert await settle(source, ACK, b, got["c"], got["d"]) == [None] * 3
    assert await transport.lag(["t"], "g") == {"t": 0}


async def test_nothing_acknowledged_is_lost_by_sigkill(own_redis: OwnRedis, opened: Opener) -> None:
    broker = own_redis()
    transport = await opened(broker.url)
    stored: set[str] = set()
    maybe: set[str] = set()

    async def publish(worker: int) -> None:
        for n in range(10_000):
            batch = [f"{worker}.{n}.{i}" for i in range(20)]
            try:
                outcomes = await transport.send([Outgoing(topic="t", body=m.encode()) for m in batch], soon())
            except MaybeSent:
                maybe.update(batch)
                return
            except Unavailable:
                return
            assert outcomes == [None] * 20
            stored.update(batch)

    publishing = [asyncio.create_task(publish(n)) for n in range(2)]
    while len(stored) < 500:
        await asyncio.sleep(0.001)
    broker.kill()
    await asyncio.gather(*publishing)
    broker.start()
    await until_reconnected(transport)
    source = await member(transport, "t")
    found: set[str] = set()
    while got := await source.receive(500):
        found |= set(bodies(got))
    assert stored - found == set()
    assert found - stored - maybe == set()


async def test_paused_server_is_bounded(own_redis: OwnRedis, opened: Opener) -> None:
    broker = own_redis()
    transport = await opened(broker.url)
    source = await member(transport, "t")
    await send(transport, "t", "a")
    [a] = await take(source, 1)
    broker.pause()  # from here on whatever has no bound never ends
    with pytest.raises(MaybeSent, match="before the answer came"):
        await transport.send([Outgoing(topic="t", body=b"b")], soon(0.3))
    impatient(transport, 0.5)
    results = await asyncio.gather(
        source.receive(10), settle(source, ACK, a), transport.connect(soon(0.3)), return_exceptions=True
    )
    assert [type(result) for result in results] == [Unavailable] * 3
    impatient(transport, 60.0)
    broker.resume()
    await until_reconnected(transport)
    # `b` was stored after all, as MaybeSent says, and what the paused server handed to nobody is read back
    got: set[str] = set()
    async with asyncio.timeout(60):
        while "b" not in got:
            got |= set(bodies(await source.receive(10)))
    assert got <= {"a", "b"}
    assert await transport.lag(["t"], "g") in ({"t": 1}, {"t": 2})


async def test_close_is_bounded_while_the_server_hangs(own_redis: OwnRedis, opened: Opener) -> None:
    broker = own_redis()
    transport = await opened(broker.url)
    source = await member(transport, "t")
    everybody = await member(transport, "t", group=None)
    waiting = [asyncio.create_task(s.receive(10)) for s in (source, everybody)]
    await until_blocked(broker, 2)
    impatient(transport, 0.5)
    broker.pause()
    await transport.close()
    assert [list(got) for got in await asyncio.gather(*waiting)] == [[], []]


async def test_lost_reply_is_read_back(own_redis: OwnRedis, opened: Opener) -> None:
    broker = own_redis()
    transport = await opened(broker.url)
    source = await member(transport, "t")
    await send(transport, "t", "held")
    [held] = await take(source, 1)
    await send(transport, "t", *map(str, range(1200)))
    name = source._member  # type: ignore[attr-defined]
    # as if the server had handed them out and the connection had broken under the reply
    await raw(broker, "XREADGROUP", "GROUP", "g", name, "COUNT", "1200", "STREAMS", "t", ">")
    await raw(broker, "CLIENT", "KILL", "ID", str(source._line.id))  # type: ignore[attr-defined]
    with pytest.raises(Unavailable):
        await source.receive(10)
    await transport.connect(soon())
    assert await settle(source, ACK, held) == [None]
    got = await take(source, 1200)
    assert bodies(got) == [str(n) for n in range(1200)]
    assert {d.deliveries for d in got} == {1}
    await send(transport, "t", "new")
    assert bodies(await take(source, 1)) == ["new"]


async def test_settled_while_it_is_read_back_is_not_handed_out(own_redis: OwnRedis, opened: Opener) -> None:
    broker = own_redis()
    transport = await opened(broker.url)
    source = await member(transport, "t")
    await send(transport, "t", *"abc")
    got = await take(source, 3)
    await raw(broker, "CLIENT", "KILL", "ID", str(source._line.id))  # type: ignore[attr-defined]
    with pytest.raises(Unavailable):
        await source.receive(10)
    broker.pause()  # both requests are under way when it goes on
    reading = asyncio.create_task(source.receive(10))
    await asyncio.sleep(0.05)
    settling = asyncio.create_task(settle(source, ACK, got[0]))
    await asyncio.sleep(0.05)
    broker.resume()
    assert await settling == [None]
    back = bodies(await reading)
    assert "a" not in back
    assert back == ["b", "c"]


async def test_flushed_server_is_noticed(own_redis: OwnRedis, opened: Opener) -> None:
    broker = own_redis()
    transport = await opened(broker.url)
    source = await member(transport, "t", start="new")
    await send(transport, "t", "old")
    got = await take(source, 1)
    await raw(broker, "FLUSHALL")
    await send(transport, "t", "after")
    for verdict in (RETRY, EXTEND, RELEASE):
        assert await settle(source, verdict, *got) == [Lost]
    with pytest.raises(Lost, match=r"group 'g' of t had vanished"):
        while True:
            await source.receive(10)
    await source.close()
    again = await member(transport, "t", start="new")
    assert bodies(await take(again, 1)) == ["after"]


async def test_destroyed_group_goes_on_where_it_was(own_redis: OwnRedis, opened: Opener) -> None:
    broker = own_redis()
    transport = await opened(broker.url)
    source = await member(transport, "t")
    await send(transport, "t", "1", "2")
    await take(source, 2)
    await raw(broker, "XGROUP", "DESTROY", "t", "g")
    await send(transport, "t", "3")
    with pytest.raises(Lost):
        await source.receive(10)
    await source.close()
    assert bodies(await take(await member(transport, "t"), 1)) == ["3"]


# ---- the server cannot be reached -----------------------------------------------------------------------------------


async def test_nobody_listens() -> None:
    transport = open_transport(f"redis://:secret@{HOST}:1?timeout=3600")
    with pytest.raises(Unavailable, match="cannot be reached") as error:
        await transport.connect(soon(3600))
    assert "secret" not in str(error.value)
    await transport.close()


async def test_a_listener_that_never_answers() -> None:
    with socket.create_server((HOST, 0)) as silent:
        transport = open_transport(f"redis://{HOST}:{silent.getsockname()[1]}?timeout=3600")
        for _ in range(2):
            with pytest.raises(Unavailable):
                await transport.connect(soon(0.1))
        await transport.close()


# ---- the server says no ---------------------------------------------------------------------------------------------


async def fails(url: str, error: type[SwitchgearError]) -> str:
    transport = open_transport(url)
    try:
        with pytest.raises(error) as raised:
            await transport.connect(soon())
        assert type(raised.value) is error
        return str(raised.value)
    finally:
        await transport.close()


async def test_passwords(own_redis: OwnRedis, opened: Opener) -> None:
    broker = own_redis({"requirepass": "right"}, password="right")
    await opened(broker.url)
    wrong = await fails(broker.url.replace("right", "s3cret"), Refused)
    assert "wrong user or password" in wrong
    assert "s3cret" not in wrong
    assert "password" in await fails(broker.url.replace(":right@", ""), Refused)
    assert "no such database" in await fails(f"{broker.url}/99", ConfigurationError)


async def test_read_only_replica(own_redis: OwnRedis, opened: Opener) -> None:
    primary = own_redis({"repl-diskless-sync": "yes", "repl-diskless-sync-delay": "0"})
    replica = own_redis({"replicaof": f"{HOST} {primary.ports[0]}"})
    while "'master_link_status': 'up'" not in str(await raw(replica, "INFO", "replication")):
        await asyncio.sleep(0.02)
    assert "let the URL name the primary" in await fails(replica.url, Refused)
    transport = await opened(primary.url)
    source = await member(transport, "t")
    await raw(primary, "REPLICAOF", HOST, str(replica.ports[0]))
    [outcome] = await transport.send([Outgoing(topic="t", body=b"x")], soon())
    assert type(outcome) is Refused
    assert "read-only replica" in str(outcome)
    with pytest.raises(TransportError):
        for _ in range(3):
            await source.receive(10)
    await raw(primary, "REPLICAOF", "NO", "ONE")


async def test_out_of_memory(own_redis: OwnRedis, opened: Opener) -> None:
    broker = own_redis({"maxmemory": "12mb", "maxmemory-policy": "noeviction", "appendonly": "no"})
    transport = await opened(f"{broker.url}?keep=0")
    assert not transport.capabilities.persistent
    assert not transport.capabilities.ack_durable
    source = await member(transport, "t")
    batch = [Outgoing(topic="t", body=bytes(50_000), key=b"k") for _ in range(20)]
    stored = 0
    while True:
        outcomes = list(await transport.send(batch, soon()))
        good = outcomes.index(next((o for o in outcomes if o), None)) if any(outcomes) else 20
        stored += good
        if good < 20:
            break
        assert stored < 1000
    assert [type(outcome) for outcome in outcomes[good:]] == [NotSent] * (20 - good)
    assert "out of memory" in str(outcomes[good])
    # consuming goes on, and makes room
    [d] = await source.receive(1)
    [error] = await settle(source, RETRY, d, seconds=1)
    assert error in (None, NotSent)
    if error is NotSent:
        assert await settle(source, EXTEND, d, seconds=1) == [None]
    taken = [d] if error else []
    while len(taken) < stored:
        taken += await source.receive(20)
    assert await settle(source, ACK, *taken) == [None] * stored
    source._trim_at = source._tend_at = 0.0  # type: ignore[attr-defined]
    await source.receive(1)
    assert list(await transport.send(batch[:1], soon())) == [None]


async def test_a_user_with_the_documented_rights(own_redis: OwnRedis, opened: Opener) -> None:
    rights = "~shop.* ~switchgear:* +@stream +@scripting +@transaction +@connection -@dangerous"
    broker = own_redis({"user": f"app on >pw resetchannels {rights} +time +exists +hget +hset +hdel +hmget +hincrby "
                        "+zadd +zrem +zrange +zrangebyscore +zrangebylex +zscore +zcard +set +get +del +pexpire "
                        "+persist +type +scan"})  # fmt: skip
    transport = await opened(broker.url.replace("redis://", "redis://app:pw@"))
    assert not transport.capabilities.ack_durable  # it may not ask
    source = await member(transport, "shop.t")
    await send(transport, "shop.t", "a", "b")
    [a, b] = await take(source, 2)
    assert await settle(source, RETRY, a, seconds=0) == [None]
    assert await settle(source, ACK, b) == [None]
    await transport.send([Outgoing(topic="shop.t", body=b"later", due=time.time() + 60, dedup="1")], soon())
    assert await transport.promote(10) is not None
    assert await transport.write("shop.row", b"1", expect=0, ttl=5)
    assert [info.name for info in await transport.topics("shop.")] == ["shop.t"]
    [outcome] = await transport.send([Outgoing(topic="other", body=b"x")], soon())
    assert type(outcome) is Refused
    assert "lacks the right" in str(outcome)
    with pytest.raises(Refused, match="lacks the right"):
        await member(transport, "other")


async def test_a_user_without_scripts_is_refused_at_once(own_redis: OwnRedis) -> None:
    broker = own_redis({"user": "app on >pw ~* +@all -@scripting"})
    assert "lacks the right" in await fails(broker.url.replace("redis://", "redis://app:pw@"), Refused)


# ---- replicas -------------------------------------------------------------------------------------------------------


async def test_waiting_for_replicas(own_redis: OwnRedis, opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("switchgear_redis.transport.MARGIN", 60.0)  # the server's answer is not late
    primary = own_redis({"repl-diskless-sync": "yes", "repl-diskless-sync-delay": "0"})
    transport = await opened(f"{primary.url}?wait=1")
    [outcome] = await transport.send([Outgoing(topic="t", body=b"alone")], soon(60.3))
    assert type(outcome) is MaybeSent
    assert "wait=1" in str(outcome)
    own_redis({"replicaof": f"{HOST} {primary.ports[0]}"})
    async with asyncio.timeout(120):
        while list(await transport.send([Outgoing(topic="t", body=b"two")], soon(61))) != [None]:
            pass


async def test_waiting_for_disks(
    own_redis: OwnRedis, opened: Opener, redis_version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("switchgear_redis.transport.MARGIN", 60.0)  # the server's answer is not late
    broker = own_redis()
    if redis_version == "7":  # 7.0 does not have it
        assert "lacks WAITAOF" in await fails(f"{broker.url}?waitaof=0", Unsupported)
        return
    transport = await opened(f"{broker.url}?waitaof=0")
    assert list(await transport.send([Outgoing(topic="t", body=b"x")], soon(120))) == [None]
    transport = await opened(f"{broker.url}?waitaof=1")
    [outcome] = await transport.send([Outgoing(topic="t", body=b"x")], soon(60.3))
    assert type(outcome) is MaybeSent
    assert "waitaof=1" in str(outcome)


# ---- TLS ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("redis_version", ["7"], indirect=True)
async def test_tls(own_redis: OwnRedis, opened: Opener, authority: Certificates, other_authority: Certificates) -> None:
    files = {"tls-cert-file": str(authority.cert), "tls-key-file": str(authority.key)}
    broker = own_redis({**files, "tls-ca-cert-file": str(authority.ca)}, tls=True)  # it wants a client certificate
    mine = f"cert={authority.cert}&key={authority.key}"
    transport = await opened(f"{broker.url}?ca={authority.ca}&{mine}")
    await send(transport, "t", "x")
    source = await member(transport, "t")
    assert bodies(await take(source, 1)) == ["x"]
    await opened(f"{broker.url}?verify=no&{mine}")
    assert "?ca=" in await fails(f"{broker.url}?ca={other_authority.ca}&{mine}", ConfigurationError)
    assert "?ca=" in await fails(f"{broker.url}?{mine}", ConfigurationError)
    await fails(f"{broker.url}?ca={authority.ca}", Unavailable)  # without one the server just hangs up
    await fails(broker.url.replace("rediss://", "redis://"), Unavailable)


async def test_tls_to_a_plain_port(own_redis: OwnRedis) -> None:
    broker = own_redis()  # it waits for the end of a line
    assert "does that port speak TLS?" in await fails(
        broker.url.replace("redis://", "rediss://") + "?timeout=0.3", Unavailable
    )


# ---- nothing stays behind -------------------------------------------------------------------------------------------


async def test_no_task_or_socket_is_left(own_redis: OwnRedis) -> None:
    broker = own_redis()

    async def use(topic: str) -> None:
        transport = open_transport(broker.url)
        assert isinstance(transport, RedisTransport)
        await transport.connect(soon())
        sources: list[Source] = [await member(transport, topic, group=group) for group in ("g", None)]
        await asyncio.gather(*(send(transport, topic, "x") for _ in range(30)))
        for source in sources:
            await take(source, 30)
        await transport.close()

    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    await use("a")  # what is made once is made now
    files = open_files()
    await use("b")
    async with asyncio.timeout(60):  # the loop closes sockets a moment later
        while asyncio.all_tasks() != {asyncio.current_task()} or open_files() > files:
            await asyncio.sleep(0.01)
