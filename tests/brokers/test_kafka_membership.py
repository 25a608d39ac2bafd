"""Members of a group on a real Kafka, with each client: what they may rely on, and that nothing stays behind."""

# ruff: noqa: ASYNC251  (what they wait for happens on the broker; a blocked loop is what is tested)

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

import pytest

pytest.importorskip("aiokafka")

from switchgear.driver import Delivery, Membership, Source
from switchgear.errors import Unavailable
from switchgear_kafka.transport import KafkaTransport
from tests.brokers.broker import Broker
from tests.brokers.fixtures import Server
from tests.brokers.kafka_fixtures import by
from tests.brokers.test_kafka_transport import bodies, lanes, make, member, opened, send, settle, soon, take

pytestmark = pytest.mark.kafka
LEASE = 2.0
Connect = Callable[[str], Awaitable[KafkaTransport]]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Connect to a URL; closed at the end."""
    transports: list[KafkaTransport] = []

    async def connect(url: str) -> KafkaTransport:
        transports.append(await opened(url))
        return transports[-1]

    yield connect
    for transport in transports:
        await transport.close()


def left(source: Source) -> float:
    """Seconds for which its lanes are its own."""
    assert isinstance(source, Membership)
    return source.valid_until - time.monotonic()


async def proven(source: Source) -> list[Delivery]:
    """Receive until its lanes are its own; what came meanwhile."""
    got: list[Delivery] = []
    async with asyncio.timeout(20):
        while left(source) <= 0:
            got += await source.receive(100)
    return got


async def test_it_is_proven_from_the_beginning_and_stays_so(kafka: Server, namespace: str, connect: Connect) -> None:
    topic = f"{namespace}t"
    transport = await connect(kafka.url)
    await make(transport, topic, 2)
    source = await member(transport, topic, lease=10.0)
    for n in range(8):
        assert 0 < left(source) <= 10.0
        await source.receive(n % 2)  # with and without room
        await asyncio.sleep(0.1)


async def test_who_was_not_heard_of_proves_it_anew(kafka: Server, namespace: str, connect: Connect) -> None:
    """The loop stands still beyond a session: what was fetched waits until the source has its lanes again."""
    topic = f"{namespace}t"
    transport = await connect(kafka.url)
    await make(transport, topic, 2)
    await send(transport, topic, *"abcdef")
    source = await member(transport, topic, lease=LEASE)
    first = await take(source, 6)
    time.sleep(LEASE + 0.5)
    assert left(source) <= 0
    again = await proven(source)
    ours = {d.lane for d in first} & {lane.name for lane in source._lanes.by_name.values()}  # type: ignore[attr-defined]
    if not ours:  # the group had given them up
        async with asyncio.timeout(20):
            while len(again) < 6:
                again += await source.receive(100)
        first = again
    assert sorted(bodies(first)) == list("abcdef")
    assert await settle(source, *first) == [None] * 6


async def test_while_the_broker_hangs_it_runs_out(shaky_kafka: Broker, engine: str, namespace: str) -> None:
    topic = f"{namespace}t"
    transport = await opened(by(engine, shaky_kafka.url))
    try:
        await make(transport, topic, 2)
        await send(transport, topic, "a")
        source = await member(transport, topic, lease=LEASE)
        await take(source, 1)
        shaky_kafka.pause()
        async with asyncio.timeout(30):
            while left(source) > 0:
                with suppress(Unavailable):
                    await source.receive(0)
        shaky_kafka.resume()
        async with asyncio.timeout(30):
            while left(source) <= 0:
                try:
                    await source.receive(100)
                except Unavailable:
                    with suppress(Unavailable):
                        await transport.connect(soon(2))
    finally:
        shaky_kafka.resume()
        await transport.close()


async def test_what_was_not_wanted_when_partitions_moved_is_read_all_the_same(
    kafka: Server, namespace: str, connect: Connect
) -> None:
    """A client may remember that a partition was paused, beyond the time that it was taken."""
    topic = f"{namespace}t"
    one, two = await connect(kafka.url), await connect(kafka.url)
    await make(one, topic, 3)
    first = await member(one, topic)
    mine = await lanes(first, 3)
    await send(one, topic, *"abcdef")
    async with asyncio.timeout(20):
        for _ in range(3):  # none of them has room, nor has the whole
            assert await first.receive(100, set(mine.values())) == []
            assert await first.receive(0) == []
    joining = asyncio.ensure_future(member(two, topic))
    while not joining.done():
        await first.receive(0)
        await asyncio.sleep(0.02)
    second = joining.result()
    await second.close()
    await lanes(first, 3)
    assert sorted(bodies(await take(first, 6))) == list("abcdef")
