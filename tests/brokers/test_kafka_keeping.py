"""What Kafka keeps of topics that Switchgear makes for itself, what is deleted, and topics that are not as wanted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest

pytest.importorskip("aiokafka")

from switchgear import Bus, RetryAfter, Topic
from switchgear.driver import Order, Outgoing, Resource, Subscription
from switchgear.errors import ConfigurationError
from switchgear_kafka.cluster import EARLIEST
from switchgear_kafka.purging import Purge
from switchgear_kafka.topics import configure, create
from switchgear_kafka.transport import KafkaTransport
from tests.brokers.fixtures import Server
from tests.brokers.kafka_fixtures import OwnKafka, by
from tests.brokers.test_kafka_transport import Taken, bodies, make, opened, send, settle, soon, take

pytestmark = pytest.mark.kafka


@pytest.fixture
async def transport(kafka: Server) -> AsyncIterator[KafkaTransport]:
    transport = await opened(kafka.url)
    yield transport
    await transport.close()


async def settings(transport: KafkaTransport, topic: str) -> dict[str, str | None]:
    names = ("cleanup.policy", "retention.ms", "retention.bytes")
    found = await transport.cluster.topic_config(topic)
    return {name: found[name].value for name in names}


async def first(transport: KafkaTransport, topic: str) -> int:
    """Of all partitions, the offsets that are no longer kept."""
    tps = await transport.cluster.partitions(topic)
    return sum((await transport.cluster.offsets(dict.fromkeys(tps, EARLIEST))).values())


async def test_what_waits_is_kept_whatever_the_cluster_deletes(own_kafka: OwnKafka, engine: str) -> None:
    broker = own_kafka({"log.retention.ms": "60000", "log.retention.bytes": "1000000", "log.cleanup.policy": "compact"})
    bus = Bus(by(engine, broker.url), name="test", config={})

    @bus.subscribe(Topic("mails", str, order="none", partitions=1), group="sender")
    async def handle(mail: str) -> None:
        raise RetryAfter(3600)

    @bus.subscribe(Topic("prices", str, order="none", partitions=1), group="pricing")
    async def price(asked: str) -> str:
        return asked

    transport = await opened(by(engine, broker.url))
    for topic in ("mails", "prices"):
        await create(transport.cluster, topic, partitions=1, config={"cleanup.policy": "delete"})
    async with bus.serving():
        await bus.publish("mails", "later", delay=30 * 86_400)
        await bus.publish("mails", "again")
        assert await bus.request(Topic("prices", str), "x", str, timeout=20) == "x"
        names = {info.name for info in await transport.topics("sg.")}
    kept = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}
    waiting = {name for name in names if name.startswith(("sg.delay.", "sg.retry."))}
    assert {"sg.delay.6h", "sg.delay.1s", "sg.retry.mails.sender"} <= waiting
    for name in waiting:
        assert await settings(transport, name) == kept, name
    (replies,) = (name for name in names if name.startswith("sg.reply."))
    assert (await settings(transport, replies))["retention.ms"] == "3600000"
    await transport.send([Outgoing(topic="sg.dlq.mails.sender", body=b"", private=True)], soon())
    assert await settings(transport, "sg.dlq.mails.sender") == kept
    await transport.close()


async def test_a_private_topic_that_does_not_keep_is_mended(transport: KafkaTransport, namespace: str) -> None:
    topic = f"{namespace}sg.delay.6h"
    await create(transport.cluster, topic, partitions=1, config={"retention.ms": "3600000"})
    wanted = [Resource(kind="topic", name=topic, partitions=1, private=True)]
    (drift,) = await transport.provision(wanted, False)
    assert (drift.field, drift.wanted, drift.found, drift.applied) == ("retention", None, 3600.0, False)
    (drift,) = await transport.provision(wanted, True)
    assert drift.applied
    assert (await settings(transport, topic))["retention.ms"] == "-1"
    assert await transport.provision(wanted, True) == []


async def test_what_the_only_reader_settled_is_deleted(transport: KafkaTransport, namespace: str) -> None:
    orders, returns = f"{namespace}orders", f"{namespace}sg.retry.orders.g"
    await make(transport, orders)
    await make(transport, returns)
    source = await transport.subscribe(
        Subscription(
            topics=dict.fromkeys((orders, returns)), group=f"{namespace}g", consumer="c", start="earliest",
            order=Order.NONE, own=(returns,),
        ),
        Taken(),
    )  # fmt: skip
    source._purge = Purge(transport.cluster, (returns,), every=0.0)  # type: ignore[attr-defined]
    await send(transport, orders, *"abc")
    await send(transport, returns, *"def")
    got = await take(source, 6)
    for topic in (orders, returns):
        assert await settle(source, [d for d in got if d.topic == topic][1]) == [None]
    async with asyncio.timeout(10):
        while await first(transport, returns) == 0:
            await source.receive(10)
    assert await first(transport, returns) == 2, "the third is not settled"
    assert await first(transport, orders) == 0, "others may read it"
    await source.close()
    again = await transport.subscribe(
        Subscription(topics={returns: None}, group=f"{namespace}g", consumer="d"), Taken()
    )
    assert bodies(await take(again, 1)) == ["f"]


async def test_partitions_are_added_where_no_order_is_kept(transport: KafkaTransport, namespace: str) -> None:
    topic = f"{namespace}t"
    await make(transport, topic, 2)

    async def drift(partitions: int, order: Order, apply: bool = True) -> list[tuple[object, object, bool]]:
        wanted = Resource(kind="topic", name=topic, partitions=partitions, order=order)
        return [(d.wanted, d.found, d.applied) for d in await transport.provision([wanted], apply)]

    assert await drift(5, Order.KEY) == [(5, 2, False)], "keys would move"
    assert await drift(5, Order.NONE, apply=False) == [(5, 2, False)]
    assert await drift(5, Order.NONE) == [(5, 2, True)]
    assert len(await transport.cluster.partitions(topic, fresh=True)) == 5
    assert await drift(5, Order.NONE) == []
    assert await drift(3, Order.NONE) == [(3, 5, False)], "none is ever taken away"


async def test_drift_of_what_an_operator_changed(transport: KafkaTransport, namespace: str) -> None:
    topic = f"{namespace}t"
    wanted = [Resource(kind="topic", name=topic, partitions=1, retention=3600.0)]
    await transport.provision(wanted, True)
    await configure(transport.cluster, topic, {"retention.ms": "-1", "max.message.bytes": "5000"})
    (drift,) = await transport.provision(wanted, True)
    assert (drift.field, drift.wanted, drift.found, drift.applied) == ("retention", 3600.0, None, True)
    found = await transport.cluster.topic_config(topic)
    assert found["retention.ms"].value == "3600000"
    assert found["max.message.bytes"].value == "5000", "what the plan says nothing of is left alone"


async def test_no_delay_is_too_long_that_ends_in_time(kafka: Server, namespace: str) -> None:
    bus = Bus(kafka.url, name="test", namespace=namespace, config={})
    topic = Topic("mails", str, order="none", partitions=1)

    @bus.subscribe(topic, group="sender")
    async def handle(mail: str) -> None: ...

    async with bus.serving():
        await bus.publish(topic, "x", delay=datetime(2126, 1, 1, tzinfo=UTC))
        with pytest.raises(ConfigurationError, match="between the years 1970 and 9999"):
            await bus.publish(topic, "x", delay=1e12)
        with pytest.raises(ConfigurationError, match="expected a time that comes, got inf"):
            await bus.publish(topic, "x", delay=float("inf"))
        transport = bus.transport
        assert isinstance(transport, KafkaTransport)
        found = [dict(h)["ce_sgdue"] async for _, h in transport.browse(f"{namespace}sg.delay.6h", "earliest", None)]
    assert [due[:10] for due in found] == [b"2126-01-01"]
