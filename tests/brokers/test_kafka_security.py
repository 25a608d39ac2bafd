"""Who we are, whom we talk to, what we may do: each refusal of a real Kafka says what to do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import pytest

pytest.importorskip("aiokafka")

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.admin import CreateAclsRequest, DescribeAclsRequest

from switchgear import Bus, Topic
from switchgear.driver import Outgoing
from switchgear.errors import ConfigurationError, Refused, SwitchgearError, TransportError, Unavailable
from tests.brokers.broker import Broker
from tests.brokers.certificates import Certificates, certificates
from tests.brokers.identity import provider
from tests.brokers.kafka_fixtures import OwnKafka, by
from tests.brokers.test_kafka_faults import MECHANISMS, Opener, acls, login, opened
from tests.brokers.test_kafka_transport import bodies, make, member, soon, take

pytestmark = pytest.mark.kafka
__all__ = ["opened"]  # a fixture


# ---- tokens ---------------------------------------------------------------------------------------------------------


async def test_tokens_of_an_endpoint_are_renewed_before_they_expire(own_kafka: OwnKafka, opened: Opener) -> None:
    """The broker wants to see a token again every two seconds, and closes connections without one; nobody notices.

    A token is good for some seconds more than is said, as one of minutes is when it is renewed: the broker may be slow.
    """
    reauthenticate = {"listener.name.client.oauthbearer.connections.max.reauth.ms": "2000"}
    broker = own_kafka({**MECHANISMS, **acls(), **reauthenticate}, listener="SASL_PLAINTEXT")
    with provider() as server:
        server.lifetime, server.grace = 2.0, 6.0
        url = broker.url.replace("://", "://admin:s%20p%40%3A@") + f"?token_endpoint={server.url}&scope=kafka"
        transport = await opened(url)
        await make(transport, "orders")
        source = await member(transport, "orders")
        got: list[str] = []
        sent: list[str] = []
        until = time.monotonic() + 10.0
        while time.monotonic() < until or len(got) < len(sent):
            if time.monotonic() < until:
                (outcome,) = await transport.send([Outgoing(topic="orders", body=b"%d" % len(sent))], soon())
                assert outcome is None, outcome
                sent.append(str(len(sent)))
            got += bodies(await source.receive(100))
            await asyncio.sleep(0.2)
        assert got == sent
        assert server.given >= 3
        with pytest.raises(Refused, match="401 invalid_client: check the client's id and secret") as caught:
            await opened(url.replace("s%20p", "guessed"))
        assert "guessed" not in str(caught.value)
    with pytest.raises(Unavailable, match=r"token_endpoint http://.* cannot be reached"):
        await opened(url)


async def test_a_token_that_the_broker_does_not_take(own_kafka: OwnKafka, opened: Opener, tmp_path: Path) -> None:
    broker = own_kafka({**MECHANISMS, **acls()}, listener="SASL_PLAINTEXT")
    with provider() as server:
        server.answer = (200, b'{"access_token": "opaque"}')
        url = broker.url.replace("://", "://admin:x@") + f"?token_endpoint={server.url}"
        with pytest.raises(Refused, match="does not take the token: check its issuer"):
            await opened(url)
    file = tmp_path / "token"
    file.write_text("x")
    url = f"{broker.url}?token_file={file}"
    file.unlink()
    with pytest.raises(ConfigurationError, match="is no file"):
        await opened(url)


async def test_a_mechanism_that_the_broker_does_not_offer(own_kafka: OwnKafka, opened: Opener) -> None:
    broker = own_kafka({**MECHANISMS, "sasl.enabled.mechanisms": "PLAIN"}, listener="SASL_PLAINTEXT")
    with pytest.raises(ConfigurationError, match=r"does not offer this mechanism: see \?sasl="):
        await opened(login(broker.url, "admin", "a-secret", "SCRAM-SHA-256"))


# ---- certificates ---------------------------------------------------------------------------------------------------


def tls(server: Certificates, clients: Certificates, folder: Path, asked: str = "none") -> Mapping[str, str]:
    pem = folder / "server.pem"
    pem.write_text(server.key.read_text() + server.cert.read_text())
    return {
        "listener.name.client.ssl.keystore.type": "PEM",
        "listener.name.client.ssl.keystore.location": str(pem),
        "listener.name.client.ssl.truststore.type": "PEM",
        "listener.name.client.ssl.truststore.location": str(clients.ca),
        "listener.name.client.ssl.client.auth": asked,
    }


def secure(broker: Broker, **options: object) -> str:
    query = "&".join(f"{name}={value}" for name, value in options.items())
    return f"{broker.url.replace('kafka://', 'kafka+ssl://')}?{query}"


async def test_the_brokers_certificate(
    own_kafka: OwnKafka, opened: Opener, tmp_path: Path, other_authority: Certificates
) -> None:
    old = certificates(tmp_path / "old", until=timedelta(hours=-1))
    broker = own_kafka(tls(old, old, tmp_path), listener="SSL")
    with pytest.raises(ConfigurationError, match="certificate has expired: renew it there, or check both clocks"):
        await opened(secure(broker, ca=old.ca))
    with pytest.raises(ConfigurationError, match=r"name its authority with \?ca="):
        await opened(secure(broker, ca=other_authority.ca))
    broker.close()
    elsewhere = certificates(tmp_path / "elsewhere", name="kafka.example")
    broker = own_kafka(tls(elsewhere, elsewhere, tmp_path), listener="SSL")
    with pytest.raises(ConfigurationError, match="connect by a name that it is for"):
        await opened(secure(broker, ca=elsewhere.ca))


async def test_our_certificate(
    own_kafka: OwnKafka, opened: Opener, tmp_path: Path, authority: Certificates, other_authority: Certificates
) -> None:
    broker = own_kafka(tls(authority, authority, tmp_path, "required"), listener="SSL")
    await opened(secure(broker, ca=authority.ca, cert=authority.cert, key=authority.key))
    says = r"certificate|closed the connection"
    for theirs in (other_authority, None):
        mine = {} if theirs is None else {"cert": theirs.cert, "key": theirs.key}
        with pytest.raises((ConfigurationError, Unavailable), match=says):
            await opened(secure(broker, ca=authority.ca, **mine))
    with pytest.raises(ConfigurationError, match="key that of cert"):
        await opened(secure(broker, ca=authority.ca, cert=authority.cert, key=other_authority.key))


# ---- rights ---------------------------------------------------------------------------------------------------------


RIGHTS = {"READ": 3, "WRITE": 4, "CREATE": 5, "DELETE": 6, "ALTER": 7, "DESCRIBE": 8, "DESCRIBE_CONFIGS": 10,
          "ALTER_CONFIGS": 11}  # fmt: skip
KINDS = {"topic": 2, "group": 3, "cluster": 4, "transactional": 5}
LITERAL, PREFIXED = 3, 4
ALLOW = 3


async def grant(broker: Broker, *rules: tuple[str, str, str]) -> None:
    """Rights of the user `eve`: kind of a resource, its name (or what it starts with, and `*`), rights with blanks."""
    admin = AIOKafkaAdminClient(
        bootstrap_servers=broker.url.removeprefix("kafka://"), security_protocol="SASL_PLAINTEXT",
        sasl_mechanism="PLAIN", sasl_plain_username="admin", sasl_plain_password="a-secret",
    )  # fmt: skip
    await admin.start()
    for kind, name, rights in rules:
        for right in rights.split():
            pattern = PREFIXED if name.endswith("*") else LITERAL
            rule = (KINDS[kind], name.removesuffix("*"), pattern, "User:eve", "*", RIGHTS[right], ALLOW)
            response = await admin._send_request(CreateAclsRequest(*rule))
            assert [code for code, *_ in response.creation_responses] == [0], response
            async with asyncio.timeout(10):  # the controller has it; the broker goes by it a moment later
                while not (await admin._send_request(DescribeAclsRequest(*rule))).resources:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
    await admin.close()


async def test_rights_to_topics_and_groups(own_kafka: OwnKafka, opened: Opener) -> None:
    """What is missing is named, one after the other; with all that the how-to lists a bus works."""
    broker = own_kafka({**MECHANISMS, **acls()}, listener="SASL_PLAINTEXT")
    admin = await opened(login(broker.url, "admin", "a-secret", "PLAIN"))
    await make(admin, "orders")
    eve = await opened(login(broker.url, "eve", "e-secret", "PLAIN"))

    async def refused(error: TransportError | None) -> str:
        assert isinstance(error, Refused), error
        return str(error)

    (error,) = await eve.send([Outgoing(topic="orders", body=b"x")], soon())
    assert "lacks the right to the topic: grant" in await refused(error)
    await grant(broker, ("topic", "orders", "DESCRIBE"))
    (error,) = await eve.send([Outgoing(topic="orders", body=b"x")], soon())
    assert "to publish, WRITE on any topic" in await refused(error)
    await grant(broker, ("topic", "another", "WRITE"))
    (error,) = await eve.send([Outgoing(topic="orders", body=b"x")], soon())
    assert "lacks the right to the topic: grant" in await refused(error)
    await grant(broker, ("topic", "orders", "WRITE"))
    assert await eve.send([Outgoing(topic="orders", body=b"x")], soon()) == [None]
    with pytest.raises(Refused, match="lacks the right to the group: grant READ"):
        await member(eve, "orders")
    await grant(broker, ("group", "orders.g", "READ"))
    with pytest.raises(Refused, match="lacks the right to the topic"):
        await member(eve, "orders")
    await grant(broker, ("topic", "orders", "READ"))
    assert bodies(await take(await member(eve, "orders"), 1)) == ["x"]
    (error,) = await eve.send([Outgoing(topic="sg.dlq.orders.g", body=b"x", private=True)], soon())
    assert "grant" in await refused(error)
    with pytest.raises(Refused, match="right"):
        await make(eve, "hers")


async def test_the_rights_that_the_how_to_lists_are_enough(own_kafka: OwnKafka, engine: str) -> None:
    broker = own_kafka({**MECHANISMS, **acls()}, listener="SASL_PLAINTEXT")
    bus = Bus(by(engine, login(broker.url, "eve", "e-secret", "PLAIN")), name="app", namespace="shop.", config={})
    mails = Topic("mails", str, order="none", partitions=1)
    seen: list[str] = []

    @bus.subscribe(mails, group="sender")
    async def handle(mail: str) -> None:
        seen.append(mail)
        if mail == "bad":
            raise ValueError(mail)

    await grant(
        broker, ("topic", "shop.*", "READ WRITE DESCRIBE CREATE DESCRIBE_CONFIGS ALTER_CONFIGS ALTER DELETE"),
        ("group", "shop.*", "READ"), ("topic", "sg.registry", "READ WRITE CREATE"),
        ("transactional", "shop.*", "WRITE DESCRIBE"),
    )  # fmt: skip
    async with bus.serving():
        await bus.publish(mails, "x", delay=1.5)
        async with asyncio.timeout(20):
            while "x" not in seen:  # noqa: ASYNC110  (it happens elsewhere)
                await asyncio.sleep(0.05)
        assert bus.health().ready, bus.health()


async def test_a_bus_without_rights_says_so_at_once(own_kafka: OwnKafka, engine: str) -> None:
    broker = own_kafka({**MECHANISMS, **acls()}, listener="SASL_PLAINTEXT")
    bus = Bus(by(engine, login(broker.url, "eve", "e-secret", "PLAIN")), name="app", config={})

    @bus.subscribe(Topic("mails", str, order="none", partitions=1), group="sender")
    async def handle(mail: str) -> None: ...

    with pytest.raises(SwitchgearError, match="right"):
        async with asyncio.timeout(20), bus.serving():
            pass
    await send_nothing(bus)


async def send_nothing(bus: Bus) -> None:
    with pytest.raises(SwitchgearError, match="right"):
        async with asyncio.timeout(20), bus:
            await bus.publish("mails", "x")
