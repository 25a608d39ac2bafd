"""The Kafka driver when the broker dies, hangs, refuses, or wants to know who we are."""

# ruff: noqa: ASYNC110  (what they wait for happens on the broker)

from __future__ import annotations

import asyncio
import base64
import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest

pytest.importorskip("aiokafka")

from switchgear.driver import Delivery, Outgoing
from switchgear.errors import (
    ConfigurationError,
    Lost,
    MaybeSent,
    NotSent,
    Refused,
    SwitchgearError,
    TransportError,
    Unavailable,
)
from switchgear.plugins import open_transport
from switchgear_kafka.transport import KafkaTransport
from tests.brokers.broker import HOST, Broker, free_ports
from tests.brokers.certificates import Certificates
from tests.brokers.fixtures import Server
from tests.brokers.kafka_fixtures import OwnKafka, by
from tests.brokers.test_kafka_transport import bodies, make, member, send, settle, soon, take

pytestmark = pytest.mark.kafka
Opener = Callable[[str], Awaitable[KafkaTransport]]


@pytest.fixture
async def opened(engine: str) -> AsyncIterator[Opener]:
    """Connect to a URL with each client; closed at the end, with no task left."""
    transports: list[KafkaTransport] = []

    async def open_(url: str) -> KafkaTransport:
        transport = open_transport(by(engine, url))
        assert isinstance(transport, KafkaTransport)
        transports.append(transport)
        await transport.connect(soon())
        return transport

    yield open_
    for transport in transports:
        await transport.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.fixture(autouse=True)
async def left_running(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """Whatever a test does to the shared broker, the next finds it running and in its cluster."""
    broker: Broker | None = request.getfixturevalue("shaky_kafka") if "shaky_kafka" in request.fixturenames else None
    yield
    if broker is not None:
        broker.resume()
        transport = open_transport(broker.url)
        assert isinstance(transport, KafkaTransport)
        await until_reconnected(transport)
        await transport.close()


async def stored(transport: KafkaTransport, topic: str, body: str) -> None:
    """Sent as the core would: what was certainly not stored is sent again."""
    async with asyncio.timeout(20):
        while True:
            (outcome,) = await transport.send([Outgoing(topic=topic, body=body.encode())], soon())
            if outcome is None:
                return
            assert isinstance(outcome, NotSent | Unavailable), outcome
            await asyncio.sleep(0.05)


async def until_reconnected(transport: KafkaTransport) -> None:
    async with asyncio.timeout(30):
        while True:
            with suppress(Unavailable):
                await transport.connect(soon(2))
                return
            await asyncio.sleep(0.05)


# ---- the broker goes away -------------------------------------------------------------------------------------------


async def test_killed_and_restarted(shaky_kafka: Broker, namespace: str, opened: Opener) -> None:
    broker, topic = shaky_kafka, f"{namespace}orders"
    transport = await opened(broker.url)
    await make(transport, topic)
    source = await member(transport, topic, lease=30.0)  # longer than the broker is away
    await send(transport, topic, *"abc")
    got = await take(source, 3)
    assert await settle(source, got[0], note="note") == [None]
    broker.kill()
    with pytest.raises(Unavailable, match="does not answer"):
        async with asyncio.timeout(15):
            while True:
                await source.receive(10)
    with pytest.raises(Unavailable):
        await settle(source, got[1])
    (outcome,) = await transport.send([Outgoing(topic=topic, body=b"x")], soon(1.0))
    assert isinstance(outcome, Unavailable), "it was never written to a socket"
    with pytest.raises(Unavailable):
        await transport.connect(soon(2))
    broker.start()
    await until_reconnected(transport)
    async with asyncio.timeout(20):
        while True:  # the group's coordinator loads what it kept
            try:
                outcomes = await settle(source, got[1], note="later")
                break
            except Unavailable:
                await asyncio.sleep(0.1)
    assert outcomes in ([None], [Lost])
    await stored(transport, topic, "d")
    seen: list[Delivery] = []
    async with asyncio.timeout(30):
        while not seen or seen[-1].body != b"d":
            with suppress(Unavailable):
                seen += await source.receive(10)
    assert bodies(seen) in (["d"], ["c", "d"], ["b", "c", "d"])
    assert await settle(source, seen[-1]) == [None]
    assert await transport.lag([topic], f"{topic}.g") == {f"{topic}/0": 0}


async def test_nothing_acknowledged_is_lost_by_sigkill_and_nothing_stored_twice(
    shaky_kafka: Broker, namespace: str, opened: Opener
) -> None:
    broker, topic = shaky_kafka, f"{namespace}orders"
    transport = await opened(broker.url)
    await make(transport, topic, 2)
    stored: set[str] = set()
    maybe: set[str] = set()
    turn = 0
    stop = asyncio.Event()

    async def publish() -> None:
        nonlocal turn
        while not stop.is_set():
            turn += 1
            names = [f"{turn}.{n}" for n in range(50)]
            batch = [Outgoing(topic=topic, body=name.encode(), key=name[-1].encode()) for name in names]
            try:
                outcomes = list(await transport.send(batch, soon(20)))
            except TransportError as error:
                outcomes = [error] * len(batch)
            for name, outcome in zip(names, outcomes, strict=True):
                if outcome is None:
                    stored.add(name)
                elif isinstance(outcome, MaybeSent):
                    maybe.add(name)
            if any(isinstance(o, Unavailable) for o in outcomes):
                with suppress(Unavailable):
                    await transport.connect(soon(1))
                await asyncio.sleep(0.05)

    publishing = asyncio.create_task(publish())
    while len(stored) < 500:
        await asyncio.sleep(0.01)
    broker.kill()
    broker.start()
    before = len(stored)
    async with asyncio.timeout(30):
        while len(stored) < before + 500:
            await asyncio.sleep(0.01)
    stop.set()
    await publishing
    found = [(d.body or b"").decode() async for d, _ in transport.browse(topic, "earliest", None)]
    assert stored <= set(found), "an acknowledged message is gone"
    assert set(found) <= stored | maybe
    assert len(found) == len(set(found)), "sent again, and stored again"


async def test_a_pause_stores_once_or_says_that_it_does_not_know(
    shaky_kafka: Broker, namespace: str, opened: Opener
) -> None:
    broker, topic = shaky_kafka, f"{namespace}orders"
    transport = await opened(f"{broker.url}?timeout=2")
    await make(transport, topic)
    await send(transport, topic, "first")
    broker.pause()
    sending = asyncio.create_task(transport.send([Outgoing(topic=topic, body=b"x")], soon(20)))
    short = [Outgoing(topic=topic, body=b"y")]
    await asyncio.sleep(3)  # the client has given up its first request, and written the next
    broker.resume()
    assert list(await sending) == [None]
    await until_reconnected(transport)
    await stored(transport, topic, "second")
    broker.pause()
    began = time.monotonic()
    (outcome,) = await transport.send(short, soon(1.0))
    assert isinstance(outcome, MaybeSent)
    assert time.monotonic() - began < 1.5
    broker.resume()
    await until_reconnected(transport)
    await stored(transport, topic, "last")
    found = [(d.body or b"").decode() async for d, _ in transport.browse(topic, "earliest", None)]
    assert [name for name in found if name != "y"] == ["first", "x", "second", "last"]
    assert found.count("y") <= 1


async def test_closing_while_the_broker_hangs_is_bounded(shaky_kafka: Broker, namespace: str, opened: Opener) -> None:
    broker, topic = shaky_kafka, f"{namespace}orders"
    transport = await opened(broker.url)
    await make(transport, topic)
    await member(transport, topic)
    await member(transport, topic, group=None)
    broker.pause()
    began = time.monotonic()
    await transport.close()
    assert time.monotonic() - began < 8
    assert asyncio.all_tasks() == {asyncio.current_task()}
    broker.resume()


async def test_nobody_there(opened: Opener) -> None:
    (port,) = free_ports(1)
    with pytest.raises(Unavailable, match=rf"kafka://{HOST}:{port} cannot be reached.*connection refused"):
        await opened(f"kafka://{HOST}:{port}")
    with pytest.raises(Unavailable, match="cannot be reached"):
        await opened("kafka://does-not-exist.invalid")


async def test_somebody_who_does_not_speak_it(engine: str) -> None:
    with socket.create_server((HOST, 0)) as silent:
        transport = open_transport(by(engine, f"kafka://{HOST}:{silent.getsockname()[1]}"))
        with pytest.raises(Unavailable, match="no answer in time"):
            await transport.connect(soon(0.5))
        await transport.close()


# ---- limits and rights ----------------------------------------------------------------------------------------------


async def test_limits_are_asked_for(own_kafka: OwnKafka, opened: Opener) -> None:
    broker = own_kafka({"message.max.bytes": "20000", "offset.metadata.max.bytes": "100", "num.partitions": "5"})
    transport = await opened(broker.url)
    assert 19000 < transport.capabilities.body < 20000
    assert transport.capabilities.note == 100
    outcomes = await transport.send(
        [
            Outgoing(topic="private", body=b"x" * 20001, private=True),
            Outgoing(topic="private", body=b"x", private=True),
        ],
        soon(),
    )
    assert [type(o) for o in outcomes] == [Refused, type(None)]
    assert len(await transport.cluster.partitions("private")) == 5
    await make(transport, "orders")
    with pytest.raises(ConfigurationError, match=r"group\.\*\.session\.timeout\.ms"):
        await member(transport, "orders", lease=0.5)


async def test_more_replicas_than_brokers(kafka_broker: Server, opened: Opener, namespace: str) -> None:
    transport = await opened(f"{kafka_broker.url}?replication=3")
    with pytest.raises(Refused, match="fewer brokers than the replication"):
        await make(transport, f"{namespace}three")


async def test_a_leader_is_lost_and_then_too_many_replicas(own_kafka: OwnKafka, opened: Opener, engine: str) -> None:
    from switchgear_kafka.topics import create

    first = own_kafka({"offsets.topic.replication.factor": "3"})
    controller = first.ports[2]
    second, third = await asyncio.gather(
        *(asyncio.to_thread(own_kafka, number=n, controller=controller) for n in (2, 3))
    )
    transport = await opened(f"{first.url},{HOST}:{second.ports[0]}?replication=3")
    await create(transport.cluster, "orders", partitions=6, config={"min.insync.replicas": "2"})
    keys = [b"%d" % n for n in range(20)]

    async def publish(mark: bytes) -> None:
        """As the core would: what was certainly not stored is sent again."""
        left = [Outgoing(topic="orders", body=mark, key=key) for key in keys]
        async with asyncio.timeout(20):
            while left:
                outcomes = await transport.send(left, soon(10))
                assert all(o is None or isinstance(o, NotSent | Unavailable) for o in outcomes), outcomes
                left = [m for m, o in zip(left, outcomes, strict=True) if o is not None]
                await asyncio.sleep(0.05)

    await publish(b"before")
    second.kill()
    await publish(b"without one")
    third.kill()
    (said,) = {str(o) for o in (await transport.send([Outgoing(topic="orders", body=b"x", key=b"0")], soon(5)))}
    async with asyncio.timeout(20):
        # librdkafka tries again until the timeout, and keeps to itself what the broker said
        while ("min.insync.replicas" if engine == "aiokafka" else "did not confirm") not in said:
            await asyncio.sleep(0.1)
            (outcome,) = await transport.send([Outgoing(topic="orders", body=b"x", key=b"0")], soon(5))
            assert outcome is None or isinstance(outcome, NotSent | Unavailable | MaybeSent)
            said = str(outcome)
    third.start()
    await publish(b"after")
    found = [(d.body, d.key) async for d, _ in transport.browse("orders", "earliest", None)]
    for mark in (b"before", b"without one", b"after"):
        assert sorted(key or b"" for body, key in found if body == mark) == sorted(keys)


def acls(*rules: str) -> dict[str, str]:
    return {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS;User:admin",
        **dict(rule.split("=", 1) for rule in rules),
    }


PLAIN = "listener.name.client.plain.sasl.jaas.config"
SCRAM = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
MECHANISMS = {
    "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER",
    PLAIN: (
        'org.apache.kafka.common.security.plain.PlainLoginModule required user_admin="a-secret" user_eve="e-secret";'
    ),
    "listener.name.client.scram-sha-256.sasl.jaas.config": SCRAM,
    "listener.name.client.scram-sha-512.sasl.jaas.config": SCRAM,
    "listener.name.client.oauthbearer.sasl.jaas.config": (
        "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required "
        'unsecuredLoginStringClaim_sub="admin";'
    ),
}


def token(subject: str) -> str:
    """What a broker takes that is told to trust anybody."""

    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    now = time.time()
    return f"{part({'alg': 'none'})}.{part({'sub': subject, 'iat': now - 5, 'exp': now + 600})}."


def login(url: str, user: str, password: str, sasl: str) -> str:
    return f"{url.replace('://', f'://{user}:{password}@')}?sasl={sasl}"


async def test_passwords_tokens_and_rights(own_kafka: OwnKafka, opened: Opener, tmp_path: Path) -> None:
    broker = own_kafka(
        {**MECHANISMS, **acls()}, listener="SASL_PLAINTEXT", scram=[("admin", "s-secret")]
    )  # fmt: skip
    url = broker.url
    for n, (password, sasl) in enumerate(
        (("a-secret", "PLAIN"), ("s-secret", "SCRAM-SHA-256"), ("s-secret", "SCRAM-SHA-512"))
    ):
        transport = await opened(login(url, "admin", password, sasl))
        await make(transport, f"orders{n}")
        await send(transport, f"orders{n}", "x")
        assert bodies(await take(await member(transport, f"orders{n}"), 1)) == ["x"]
        with pytest.raises(Refused, match="wrong user, password or token") as caught:
            await opened(login(url, "admin", "guessed-wrong", sasl))
        assert "guessed-wrong" not in str(caught.value)
    file = tmp_path / "token"
    file.write_text(token("admin"))
    transport = await opened(f"{url}?token_file={file}")
    await send(transport, "orders0", "y")
    file.write_text("nonsense")
    with pytest.raises((Refused, Unavailable)):
        await opened(f"{url}?token_file={file}")
    with pytest.raises(Unavailable, match="user and password"):
        await opened(url)

    eve = await opened(login(url, "eve", "e-secret", "PLAIN"))
    assert eve.capabilities.note == 4096, "she may not ask, and it is taken to be as it comes"
    for act in (
        eve.send([Outgoing(topic="orders0", body=b"x")], soon()),
        eve.send([Outgoing(topic="hers", body=b"x", private=True)], soon()),
        member(eve, "orders0"),
        eve.read("x"),
    ):
        with pytest.raises(SwitchgearError) as refused:
            outcome = await act
            if isinstance(outcome, list):
                raise outcome[0]
        assert isinstance(refused.value, Refused), refused.value
        assert "right" in str(refused.value) or "no topic" in str(refused.value) or "ACL" in str(refused.value)


async def test_tls(
    own_kafka: OwnKafka, opened: Opener, authority: Certificates, other_authority: Certificates, tmp_path: Path
) -> None:
    key = tmp_path / "key-and-cert.pem"
    key.write_text(authority.key.read_text() + authority.cert.read_text())
    settings = {
        "listener.name.client.ssl.keystore.type": "PEM",
        "listener.name.client.ssl.keystore.location": str(key),
        "listener.name.client.ssl.truststore.type": "PEM",
        "listener.name.client.ssl.truststore.location": str(authority.ca),
        "listener.name.client.ssl.client.auth": "required",
    }
    broker = own_kafka(settings, listener="SSL")
    url = broker.url.replace("kafka://", "kafka+ssl://")
    mine = f"cert={authority.cert}&key={authority.key}"
    transport = await opened(f"{url}?ca={authority.ca}&{mine}")
    await make(transport, "orders")
    await send(transport, "orders", "x")
    assert bodies(await take(await member(transport, "orders"), 1)) == ["x"]
    with pytest.raises(ConfigurationError, match=r"name its authority with \?ca="):
        await opened(f"{url}?{mine}")
    with pytest.raises(ConfigurationError, match=r"name its authority with \?ca="):
        await opened(f"{url}?ca={other_authority.ca}&{mine}")
    with pytest.raises((ConfigurationError, Unavailable), match=r"certificate|closed the connection"):
        await opened(f"{url}?ca={authority.ca}")
    with pytest.raises(Unavailable, match=r"TLS that this port speaks \(kafka\+ssl://\)"):
        await opened(broker.url)
    await opened(f"{url}?verify=no&{mine}")


async def test_tls_to_a_port_without(kafka_broker: Server, opened: Opener) -> None:
    with pytest.raises((ConfigurationError, Unavailable), match=r"write kafka://|or does not \(kafka://\)"):
        await opened(kafka_broker.url.replace("kafka://", "kafka+ssl://"))
