"""Groups whose members are of both clients, and groups by the protocol of KIP-848."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

pytest.importorskip("aiokafka")
pytest.importorskip("confluent_kafka")

from switchgear.driver import Outgoing, Settlement, Source, Verdict
from switchgear.errors import ConfigurationError, Lost
from switchgear.plugins import open_transport
from switchgear_kafka.transport import KafkaTransport
from tests.brokers.fixtures import Server
from tests.brokers.test_kafka_transport import Taken, bodies, lanes, make, member, opened, send, settle, soon, take

pytestmark = pytest.mark.kafka
KIP_848 = "?client=confluent&group_protocol=consumer"
Connect = Callable[[str], Awaitable[KafkaTransport]]


@pytest.fixture
async def connect(kafka_broker: Server) -> AsyncIterator[Connect]:
    """Connect with these options."""
    transports: list[KafkaTransport] = []

    async def connect(options: str) -> KafkaTransport:
        transports.append(await opened(f"{kafka_broker.url}{options}"))
        return transports[-1]

    yield connect
    for transport in transports:
        await transport.close()


async def joined(first: Source, joining: Awaitable[Source]) -> Source:
    """A second member, while the first is asked as the core asks it."""
    task = asyncio.ensure_future(joining)
    while not task.done():
        await first.receive(0)
        await asyncio.sleep(0.05)
    return task.result()


async def apart(first: Source, second: Source, count: int) -> tuple[dict[str, str], dict[str, str]]:
    """The lanes of both, by place, once each has some and there are so many."""

    async def some(source: Source) -> dict[str, str]:
        await source.receive(0)
        await asyncio.sleep(0.02)
        return {lane.place: name for name, lane in source._lanes.by_name.items()}  # type: ignore[attr-defined]

    async with asyncio.timeout(30):
        while True:
            mine, yours = await some(first), await some(second)
            if mine and yours and len(mine) + len(yours) == count:
                return mine, yours


@pytest.mark.parametrize("leader", ["aiokafka", "confluent"])
async def test_members_of_both_clients_share_a_group(connect: Connect, namespace: str, leader: str) -> None:
    topic = f"{namespace}t"
    follower = {"aiokafka": "confluent", "confluent": "aiokafka"}[leader]
    one, two = await connect(f"?client={leader}"), await connect(f"?client={follower}")
    await make(one, topic, 4)
    first = await member(one, topic)
    await lanes(first, 4)
    second = await joined(first, member(two, topic))
    mine, yours = await apart(first, second, 4)
    assert len(mine) == len(yours) == 2
    assert not mine.keys() & yours.keys()
    batch = [Outgoing(topic=topic, body=b"%d" % n, key=b"%d" % n) for n in range(80)]
    assert list(await two.send(batch, soon())) == [None] * 80
    got: dict[str, list[str]] = {"mine": [], "yours": []}
    async with asyncio.timeout(20):
        while len(got["mine"]) + len(got["yours"]) < 80:
            for name, source in (("mine", first), ("yours", second)):
                some = await source.receive(100)
                got[name] += bodies(some)
                assert await settle(source, *some) == [None] * len(some)
    assert got["mine"]
    assert got["yours"]
    assert len({*got["mine"], *got["yours"]}) == 80
    await first.close()
    await lanes(second, 4)
    assert sum((await one.lag([topic], f"{topic}.g")).values()) == 0


async def test_the_broker_shares_partitions_one_by_one(connect: Connect, namespace: str) -> None:
    """Who keeps a partition keeps its lane, and may settle what it has of it; who lost one may not."""
    topic = f"{namespace}t"
    transport, other = await connect(KIP_848), await connect(KIP_848)
    await make(transport, topic, 2)
    batch = [Outgoing(topic=topic, body=b"%d" % n, key=b"%d" % n) for n in range(20)]
    assert list(await transport.send(batch, soon())) == [None] * 20
    taken = Taken()
    first = await member(transport, topic, revoked=taken)
    before = await lanes(first, 2)
    got = await take(first, 20)
    assert {d.lane for d in got} == set(before.values())
    second = await joined(first, member(other, topic))
    mine, yours = await apart(first, second, 2)
    ((kept, name),) = mine.items()
    (gone,) = yours
    assert name == before[kept], "a partition that stays is not given up"
    assert taken.calls == [({before[gone]}, False)]
    assert await settle(first, [d for d in got if d.lane == before[gone]][-1]) == [Lost]
    assert await settle(first, [d for d in got if d.lane == name][-1]) == [None]
    again = await take(second, len([d for d in got if d.lane == before[gone]]))
    assert bodies(again) == bodies([d for d in got if d.lane == before[gone]])
    assert await settle(second, again[-1]) == [None]
    await second.close()
    after = await lanes(first, 2)
    assert after[kept] == name
    assert sum((await transport.lag([topic], f"{topic}.g")).values()) == 0
    await send(transport, topic, "more", key=b"k")
    assert bodies(await take(first, 1)) == ["more"]


async def test_transactions_in_a_group_that_the_broker_shares(connect: Connect, namespace: str) -> None:
    topic, to = f"{namespace}t", f"{namespace}to"
    transport, other = await connect(KIP_848), await connect(KIP_848)
    for name in (topic, to):
        await make(transport, name)
    await send(transport, topic, "a", "b")
    first = await member(transport, topic)
    got = await take(first, 2)
    await transport.commit(
        first, [Settlement(got[0], Verdict.ACK)], [Outgoing(topic=to, body=b"from a", key=b"k")], soon()
    )
    await first.close()
    second = await member(other, topic)
    (again,) = await take(second, 1)
    assert again.body == b"b"
    with pytest.raises(Lost, match="no longer assigned"):
        await transport.commit(first, [Settlement(got[1], Verdict.ACK)], [Outgoing(topic=to, body=b"late")], soon())
    await send(transport, to, "end", key=b"k")
    found: list[bytes | None] = []
    async with asyncio.timeout(20):
        while found[-1:] != [b"end"]:  # the broker tells readers a moment after it has decided
            found = [d.body async for d, _ in transport.browse(to, "earliest", None)]
    assert found == [b"from a", b"end"]


async def test_the_protocol_takes_the_client_that_has_it() -> None:
    with pytest.raises(ConfigurationError, match="group_protocol=consumer takes client=confluent"):
        open_transport("kafka://localhost?group_protocol=consumer")
