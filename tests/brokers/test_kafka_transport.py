"""The Kafka driver on a real broker: what it stores, hands out and settles."""

# ruff: noqa: ASYNC110  (what they wait for happens on the broker)

from __future__ import annotations

import asyncio
import secrets
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import suppress

import pytest

pytest.importorskip("aiokafka")

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.partitioner import DefaultPartitioner

from switchgear.driver import (
    Delivery,
    Order,
    Outgoing,
    Resource,
    Settlement,
    Source,
    Start,
    Subscription,
    Verdict,
)
from switchgear.errors import ConfigurationError, Lost, NotFound, NotSent, Refused, Unsupported
from switchgear.plugins import open_transport
from switchgear_kafka import KafkaTuning
from switchgear_kafka.source import GroupSource
from switchgear_kafka.transport import KafkaTransport
from tests.brokers.fixtures import Server

pytestmark = pytest.mark.kafka
ACK = Verdict.ACK


async def opened(url: str, tuning: KafkaTuning | None = None) -> KafkaTransport:
    transport = open_transport(url, [tuning] if tuning else [])
    assert isinstance(transport, KafkaTransport)
    await transport.connect(soon())
    return transport


def soon(seconds: float = 10.0) -> float:
    return asyncio.get_running_loop().time() + seconds


@pytest.fixture
async def transport(kafka: Server) -> AsyncIterator[KafkaTransport]:
    transport = await opened(kafka.url)
    yield transport
    await transport.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}, "closed, and tasks go on"


@pytest.fixture
async def other(kafka: Server) -> AsyncIterator[KafkaTransport]:
    """A second process, as it were."""
    transport = await opened(kafka.url)
    yield transport
    await transport.close()


@pytest.fixture
async def topic(transport: KafkaTransport, namespace: str) -> str:
    """With three partitions."""
    name = f"{namespace}orders"
    await make(transport, name, 3)
    return name


async def make(transport: KafkaTransport, name: str, partitions: int = 1, **more: object) -> None:
    wanted = Resource(kind="topic", name=name, partitions=partitions, **more)  # type: ignore[arg-type]
    await transport.provision([wanted], True)


class Taken:
    """What was revoked, as the core would be told."""

    def __init__(self) -> None:
        self.calls: list[tuple[set[str], bool]] = []
        self.then: Callable[[Collection[str], bool], Awaitable[None]] | None = None

    async def __call__(self, lanes: Collection[str], lost: bool) -> None:
        self.calls.append((set(lanes), lost))
        if self.then is not None:
            await self.then(lanes, lost)


async def member(
    transport: KafkaTransport, *topics: str, group: str | None = "g", start: Start = "earliest", lease: float = 10.0,
    revoked: Taken | None = None, order: Order = Order.KEY,
) -> Source:  # fmt: skip
    return await transport.subscribe(
        Subscription(
            topics=dict.fromkeys(topics), group=None if group is None else f"{topics[0]}.{group}",
            consumer=f"m-{secrets.token_hex(4)}", start=start, lease=lease, order=order,
        ),
        revoked or Taken(),
    )  # fmt: skip


async def send(transport: KafkaTransport, topic: str, *bodies: str, key: bytes | None = None) -> None:
    batch = [Outgoing(topic=topic, body=body.encode(), key=key) for body in bodies]
    assert list(await transport.send(batch, soon())) == [None] * len(batch)


async def take(source: Source, count: int, within: float = 15.0) -> list[Delivery]:
    """Receive until there are `count`."""
    out: list[Delivery] = []
    async with asyncio.timeout(within):
        while len(out) < count:
            out += await source.receive(100)
    assert len(out) == count, [d.body for d in out]
    return out


async def lanes(source: Source, count: int, *others: Source) -> dict[str, str]:
    """The lanes by place, once there are `count`; `others` are asked as well, so that they rebalance."""
    own = source._lanes  # type: ignore[attr-defined]
    async with asyncio.timeout(20):
        while len(own) != count:
            for one in (source, *others):
                await one.receive(0)
            await asyncio.sleep(0.05)
    return {lane.place: name for name, lane in own.by_name.items()}


async def settle(source: Source, *deliveries: Delivery, note: str = "") -> list[type | None]:
    batch = [Settlement(delivery=d, verdict=ACK, note=note) for d in deliveries]
    return [None if error is None else type(error) for error in await source.settle(batch)]


def bodies(deliveries: Sequence[Delivery]) -> list[str]:
    return [(d.body or b"").decode() for d in deliveries]


# ---- messages -------------------------------------------------------------------------------------------------------


async def test_round_trip(transport: KafkaTransport, namespace: str) -> None:
    topic = f"{namespace}t"
    await make(transport, topic)
    before = time.time()
    sent = [
        Outgoing(topic=topic, body=b"\x00\xff", media=b"x/y", headers=[("a", b"1"), ("a", b"\xff")], key=b"\x00k"),
        Outgoing(topic=topic, body=b"", key=b"", headers=[("ce_expirytime", b"2030")], marked=True),
        Outgoing(topic=topic, body=b"plain", headers=[("é", b"")]),
        Outgoing(topic=topic, body=None, key=b"k"),
    ]
    assert list(await transport.send(sent, soon())) == [None] * 4
    source = await member(transport, topic)
    got = await take(source, 4)
    assert [(d.topic, d.body, d.media, d.key, d.marked) for d in got] == [
        (topic, b"\x00\xff", b"x/y", b"\x00k", False), (topic, b"", None, b"", True),
        (topic, b"plain", None, None, False), (topic, None, None, b"k", False),
    ]  # fmt: skip
    assert [source.headers(d) for d in got] == [m.headers for m in sent]
    assert [source.position(d) for d in got] == ["0:0", "0:1", "0:2", "0:3"]
    assert all(before - 0.01 <= source.time(d) <= time.time() for d in got)
    assert len({d.token for d in got}) == 4
    assert {d.lane for d in got} == {f"{topic}/0#1"}


@pytest.mark.parametrize("compression", ["gzip", "snappy", "lz4", "zstd"])
async def test_compression(kafka: Server, namespace: str, compression: str) -> None:
    transport = await opened(kafka.url, KafkaTuning(compression=compression))
    topic = f"{namespace}t"
    await make(transport, topic)
    await send(transport, topic, *["x" * 1000] * 100)
    assert [d.body async for d, _ in transport.browse(topic, "earliest", None)] == [b"x" * 1000] * 100
    await transport.close()


async def test_a_key_is_where_every_client_finds_it(transport: KafkaTransport, kafka: Server, namespace: str) -> None:
    topic = f"{namespace}t"
    await make(transport, topic, 7)
    keys = [secrets.token_bytes(n) for n in range(1, 40)]
    await transport.send([Outgoing(topic=topic, body=b"ours", key=key) for key in keys], soon())
    producer = AIOKafkaProducer(bootstrap_servers=transport.cluster.at.removeprefix("kafka://"))
    await producer.start()
    for key in keys:
        await producer.send_and_wait(topic, b"theirs", key=key)
    await producer.stop()
    places: dict[bytes | None, set[str]] = defaultdict(set)
    async for delivery, _ in transport.browse(topic, "earliest", None):
        places[delivery.key].add(delivery.lane)
    assert len(places) == len(keys)
    for key, found in places.items():
        assert found == {f"{topic}/{DefaultPartitioner()(key, list(range(7)), [])}"}


async def test_what_others_wrote(transport: KafkaTransport, kafka: Server, namespace: str) -> None:
    topic = f"{namespace}t"
    await make(transport, topic)
    producer = AIOKafkaProducer(bootstrap_servers=transport.cluster.at.removeprefix("kafka://"))
    await producer.start()
    await producer.send_and_wait(
        topic, b"{}", key=b"\xff\xfe", headers=[("x", None), ("content-type", b"application/json")], timestamp_ms=5000
    )
    await producer.stop()
    source = await member(transport, topic)
    (got,) = await take(source, 1)
    assert (got.key, got.media, source.headers(got), source.time(got)) == (
        b"\xff\xfe", b"application/json", [("x", b"")], 5.0
    )  # fmt: skip


async def test_one_bad_message_fails_alone(transport: KafkaTransport, namespace: str) -> None:
    topic = f"{namespace}t"
    await make(transport, topic)
    too_long = b"x" * (transport.capabilities.body + 1)
    outcomes = await transport.send(
        [
            Outgoing(topic=topic, body=b"1", key=b"a"),
            Outgoing(topic=topic, body=too_long, key=b"a"),
            Outgoing(topic=topic, body=b"2", key=b"a"),
            Outgoing(topic=topic, body=b"3", key=b"b"),
            Outgoing(topic=topic, body=None),
            Outgoing(topic=f"{namespace}missing", body=b"4"),
        ],
        soon(),
    )
    assert [None if e is None else type(e) for e in outcomes] == [None, Refused, NotSent, None, Refused, NotFound]
    assert [d.body async for d, _ in transport.browse(topic, "earliest", None)] == [b"1", b"3"]


async def test_a_topic_that_takes_less_than_the_broker(transport: KafkaTransport, namespace: str) -> None:
    from switchgear_kafka.topics import configure

    topic = f"{namespace}t"
    await make(transport, topic)
    await configure(transport.cluster, topic, {"max.message.bytes": "1000"})
    batch = [Outgoing(topic=topic, body=b"x" * size, key=key) for size, key in
             ((600, b"a"), (600, b"b"), (1600, b"b"), (10, b"b"), (10, b"c"))]  # fmt: skip
    outcomes = await transport.send(batch, soon())
    assert [None if e is None else type(e) for e in outcomes] == [None, None, Refused, NotSent, None]
    assert "max.message.bytes" in str(outcomes[2])
    await send(transport, topic, "after")  # the broker goes on taking what we send


async def test_a_private_topic_is_made_by_its_first_message(transport: KafkaTransport, namespace: str) -> None:
    topic = f"{namespace}sg.dlq.t.g"
    assert list(await transport.send([Outgoing(topic=topic, body=b"x", private=True)], soon())) == [None]
    assert [d.body async for d, _ in transport.browse(topic, "earliest", None)] == [b"x"]


# ---- groups ---------------------------------------------------------------------------------------------------------


async def test_a_watermark_and_its_note_are_there_for_the_next_owner(
    transport: KafkaTransport, other: KafkaTransport, namespace: str
) -> None:
    topic = f"{namespace}t"
    await make(transport, topic)
    await send(transport, topic, *"abcde")
    source = await member(transport, topic)
    got = await take(source, 5)
    assert source.note(got[0].lane) == ""
    assert await settle(source, got[1], note="n" * 4000) == [None]
    assert source.note(got[0].lane) == "n" * 4000
    assert await transport.lag([topic], f"{topic}.g") == {f"{topic}/0": 3}
    await source.close()
    assert await settle(source, got[4]) == [Lost]
    source = await member(other, topic)
    again = await take(source, 3)
    assert bodies(again) == list("cde")
    assert again[0].token == got[2].token
    assert source.note(again[0].lane) == "n" * 4000


async def test_a_note_beyond_the_brokers_bound_does_not_hold_the_position_back(
    transport: KafkaTransport, namespace: str
) -> None:
    topic = f"{namespace}t"
    await make(transport, topic)
    await send(transport, topic, "a")
    source = await member(transport, topic)
    (got,) = await take(source, 1)
    assert await settle(source, got, note="n" * 5000) == [None]
    assert await transport.lag([topic], f"{topic}.g") == {f"{topic}/0": 0}


async def test_partitions_are_shared_and_a_stale_settlement_is_lost(
    transport: KafkaTransport, other: KafkaTransport, topic: str
) -> None:
    await send(transport, topic, *"abc", key=b"k")
    taken = Taken()
    first = await member(transport, topic, revoked=taken)
    got = await take(first, 3)

    async def settle_the_first(names: Collection[str], lost: bool) -> None:
        assert await settle(first, got[0]) == [None]

    taken.then = settle_the_first
    joining = asyncio.create_task(member(other, topic))
    while not joining.done():
        await first.receive(0)
        await asyncio.sleep(0.05)
    second = await joining
    taken.then = None
    assert taken.calls == [({f"{topic}/{n}#1" for n in range(3)}, False)]
    async with asyncio.timeout(10):
        while len(first._lanes) + len(second._lanes) != 3:  # type: ignore[attr-defined]
            await asyncio.gather(first.receive(0), second.receive(0))
            await asyncio.sleep(0.05)
    mine, yours = await lanes(first, len(first._lanes), second), await lanes(second, len(second._lanes), first)  # type: ignore[attr-defined]
    assert mine.keys() | yours.keys() == {f"{topic}/{n}" for n in range(3)}
    assert not mine.keys() & yours.keys()
    assert all(name.endswith("#2") for name in mine.values())
    assert await settle(first, got[1]) == [Lost]
    owner = first if got[0].lane.partition("#")[0] in mine else second
    again = await take(owner, 2)
    assert bodies(again) == ["b", "c"]
    await second.close()
    await lanes(first, 3)


async def test_who_was_thrown_out_commits_nothing(
    transport: KafkaTransport, other: KafkaTransport, namespace: str
) -> None:
    topic = f"{namespace}t"
    await make(transport, topic)
    await send(transport, topic, *"abc")
    taken = Taken()
    first = await member(transport, topic, revoked=taken, lease=1.5)
    got = await take(first, 3)
    if not isinstance(first, GroupSource):
        pytest.skip("not run: nobody can stop the heartbeat of librdkafka; killed members are in test_kafka_bus")
    coordinator = first._reader.consumer._coordinator
    await coordinator._stop_heartbeat_task()  # type: ignore[attr-defined]
    second = await member(other, topic)
    again = await take(second, 3)
    assert await settle(second, again[2]) == [None]
    assert await settle(first, got[0]) == [Lost]
    await second.close()
    assert await settle(first, got[0]) == [Lost], "with nobody in the group the broker would take a stray commit"
    coordinator._start_heartbeat_task()  # type: ignore[attr-defined]
    await lanes(first, 1)
    async with asyncio.timeout(10):
        while not taken.calls:
            await first.receive(0)
            await asyncio.sleep(0.05)
    assert taken.calls == [({got[0].lane}, True)]
    assert await transport.lag([topic], f"{topic}.g") == {f"{topic}/0": 0}


async def test_held_lanes_wait_also_over_a_rebalance(
    transport: KafkaTransport, other: KafkaTransport, namespace: str
) -> None:
    one, two = f"{namespace}one", f"{namespace}two"
    for topic in (one, two):
        await make(transport, topic)
    source = await member(transport, one, two)
    mine = await lanes(source, 2)
    await send(transport, one, *"abc")
    await send(transport, two, "x")
    held = {mine[f"{one}/0"]}
    got: list[Delivery] = []
    async with asyncio.timeout(10):
        while not got:
            got += await source.receive(10, held)
    assert bodies(got) == ["x"]
    assert list(await source.receive(10, held)) == []
    assert list(await source.receive(0)) == []
    joining = asyncio.create_task(member(other, f"{namespace}one", group="g"))
    while not joining.done():
        await source.receive(0)
        await asyncio.sleep(0.05)
    await (await joining).close()
    mine = await lanes(source, 2)
    assert list(await source.receive(10, set(mine.values()))) == []
    assert bodies(await take(source, 4)) in (["a", "b", "c", "x"], ["x", "a", "b", "c"])


async def test_a_limit_is_kept_and_the_rest_stays(transport: KafkaTransport, namespace: str) -> None:
    topic = f"{namespace}t"
    await make(transport, topic)
    await send(transport, topic, *map(str, range(20)))
    source = await member(transport, topic)
    got: list[Delivery] = []
    async with asyncio.timeout(10):
        while len(got) < 20:
            some = await source.receive(3)
            assert len(some) <= 3
            got += some
    assert bodies(got) == [str(n) for n in range(20)]


async def test_closing_ends_a_receive_at_once(transport: KafkaTransport, topic: str) -> None:
    source = await member(transport, topic)
    waiting = asyncio.create_task(source.receive(10))
    await asyncio.sleep(0.05)
    began = time.monotonic()
    await source.close()
    assert list(await waiting) == []
    assert time.monotonic() - began < 1.0
    assert list(await source.receive(10)) == []
    await source.close()


async def test_a_static_member_comes_back_to_its_partitions(kafka: Server, namespace: str) -> None:
    topic = f"{namespace}t"
    first = await opened(kafka.url, KafkaTuning(group_instance_id="one"))
    await make(first, topic, 2)
    await send(first, topic, "a")
    one = await member(first, topic)
    await take(one, 1)
    await first.close()
    back = await opened(kafka.url, KafkaTuning(group_instance_id="one"))
    began = time.monotonic()
    two = await member(back, topic)
    await lanes(two, 2)
    assert time.monotonic() - began < 5
    assert bodies(await take(two, 1)) == ["a"]
    await back.close()


# ---- where a group begins -------------------------------------------------------------------------------------------


async def test_starts(transport: KafkaTransport, topic: str) -> None:
    await send(transport, topic, "old", key=b"k")
    await asyncio.sleep(0.02)
    between = time.time()
    await asyncio.sleep(0.02)
    await send(transport, topic, "late", key=b"k")
    found: dict[str, Source] = {}
    for name, start in (("new", "new"), ("early", "earliest"), ("time", between)):
        found[name] = await member(transport, topic, group=name, start=start)  # type: ignore[arg-type]
    await send(transport, topic, "next", key=b"k")
    assert bodies(await take(found["new"], 1)) == ["next"]
    assert bodies(await take(found["early"], 3)) == ["old", "late", "next"]
    assert bodies(await take(found["time"], 2)) == ["late", "next"]


async def test_a_new_group_begins_where_it_joined_though_its_first_member_did_nothing(
    transport: KafkaTransport, other: KafkaTransport, topic: str
) -> None:
    source = await member(transport, topic, start="new")
    await send(transport, topic, "a", key=b"k")
    await source.close()
    await send(transport, topic, "b", key=b"k")
    assert bodies(await take(await member(other, topic, start="new"), 2)) == ["a", "b"]


async def test_a_topic_that_is_new_to_a_group_at_work(
    transport: KafkaTransport, other: KafkaTransport, namespace: str
) -> None:
    one, two = f"{namespace}one", f"{namespace}two"
    for topic in (one, two):
        await make(transport, topic)
        await send(transport, topic, "old")
    first = await member(transport, one, start="new")
    subscribing = asyncio.create_task(
        other.subscribe(
            Subscription(topics={two: None}, group=f"{one}.g", consumer="c", start="new", lease=10.0), Taken()
        )
    )
    while not subscribing.done():
        await first.receive(0)
        await asyncio.sleep(0.05)
    second = await subscribing
    await send(transport, two, "next")
    assert bodies(await take(second, 1)) == ["next"]


async def test_what_retention_took_is_counted_and_passed_over(transport: KafkaTransport, namespace: str) -> None:
    from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

    topic = f"{namespace}t"
    await make(transport, topic)
    await send(transport, topic, *"abcde")
    source = await member(transport, topic)
    got = await take(source, 5)
    await settle(source, got[0])
    await source.close()
    admin = AIOKafkaAdminClient(bootstrap_servers=transport.cluster.at.removeprefix("kafka://"))
    await admin.start()
    await admin.delete_records({TopicPartition(topic, 0): RecordsToDelete(before_offset=3)})
    await admin.close()
    source = await member(transport, topic)
    assert bodies(await take(source, 2)) == ["d", "e"]
    assert source.trimmed == {topic: 2}  # type: ignore[attr-defined]


async def test_a_topic_that_was_made_anew_is_read_from_its_beginning(transport: KafkaTransport, namespace: str) -> None:
    from aiokafka.admin import AIOKafkaAdminClient

    topic = f"{namespace}t"
    await make(transport, topic)
    await send(transport, topic, *"abcde")
    source = await member(transport, topic)
    await settle(source, (await take(source, 5))[-1])
    await source.close()
    admin = AIOKafkaAdminClient(bootstrap_servers=transport.cluster.at.removeprefix("kafka://"))
    await admin.start()
    await admin.delete_topics([topic])
    async with asyncio.timeout(10):
        while await transport.cluster.partitions(topic, fresh=True):
            await asyncio.sleep(0.05)
    await admin.close()
    await make(transport, topic)
    got: list[Delivery] = []
    async with asyncio.timeout(20):
        while (await transport.send([Outgoing(topic=topic, body=b"x")], soon()))[0] is not None:
            await asyncio.sleep(0.05)  # the broker is still tidying up after the old one
        while not got:
            source = await member(transport, topic)
            with suppress(Lost):
                while not got:
                    got += await source.receive(10)
            await source.close()
    assert bodies(got) == ["x"]


# ---- broadcast ------------------------------------------------------------------------------------------------------


async def test_broadcast(transport: KafkaTransport, other: KafkaTransport, topic: str) -> None:
    await send(transport, topic, "old", key=b"k")
    all_of_it = await member(transport, topic, group=None, start="earliest")
    from_now = await member(other, topic, group=None, start="new")
    await send(transport, topic, "next", key=b"k")
    assert bodies(await take(from_now, 1)) == ["next"]
    got = await take(all_of_it, 2)
    assert bodies(got) == ["old", "next"]
    assert await settle(all_of_it, *got) == [None, None]
    assert all_of_it.note(got[0].lane) == ""
    assert not [info.groups for info in await transport.topics(topic) if info.groups]


# ---- rows -----------------------------------------------------------------------------------------------------------


async def test_rows(transport: KafkaTransport, other: KafkaTransport, namespace: str) -> None:
    name = f"{namespace}row"
    first = await transport.write(name, b"1", expect=0, ttl=None)
    assert first is not None
    assert await other.write(name, b"x", expect=0, ttl=None) is None
    assert await other.write(name, b"1", expect=first, ttl=None) == first
    second = await other.write(name, b"2", expect=first, ttl=None)
    assert second is not None
    assert second > first
    assert dict(await transport.read(namespace)) == {name: (b"2", second)}
    assert await transport.write(name, None, expect=first, ttl=None) is None
    assert await transport.write(name, None, expect=second, ttl=None) == second
    assert await transport.read(namespace) == {}
    assert await transport.write(name, None, expect=None, ttl=None) == 0
    third = await transport.write(name, b"3", expect=0, ttl=None)
    assert third is not None
    assert third > second
    with pytest.raises(Unsupported, match="do not expire"):
        await transport.write(name, b"4", expect=None, ttl=1.0)


async def test_of_many_writers_one_wins(transport: KafkaTransport, other: KafkaTransport, namespace: str) -> None:
    name = f"{namespace}race"
    for turn in range(5):
        row = (await transport.read(name)).get(name)
        expect = row.revision if row else 0
        results = await asyncio.gather(
            *(t.write(name, f"{turn}.{n}".encode(), expect=expect, ttl=None) for n, t in enumerate((transport, other)))
        )
        (won,) = [r for r in results if r is not None]
        mine, yours = await transport.read(name), await other.read(name)
        assert mine == yours
        assert mine[name].revision == won


# ---- looking after it -----------------------------------------------------------------------------------------------


async def test_provision_shows_and_mends_drift(kafka: Server, transport: KafkaTransport, namespace: str) -> None:
    topic, group = f"{namespace}t", f"{namespace}g"
    wanted = [
        Resource(kind="topic", name=topic, partitions=2, retention=3600.0),
        Resource(kind="group", name=group, topic=topic, start="new"),
    ]
    drifts = await transport.provision(wanted[:1], False)
    assert [(d.field, d.found, d.applied) for d in drifts] == [("exists", False, False)]
    assert [(d.field, d.applied) for d in await transport.provision(wanted, True)] == [("exists", True)] * 2
    assert await transport.provision(wanted, False) == []
    await send(transport, topic, "x")
    assert sum((await transport.lag([topic], group)).values()) == 1
    changed = Resource(kind="topic", name=topic, partitions=5, retention=60.0, order=Order.KEY)
    drifts = await transport.provision([changed], True)
    assert [(d.field, d.wanted, d.found, d.applied) for d in drifts] == [
        ("partitions", 5, 2, False), ("retention", 60.0, 3600.0, True)
    ]  # fmt: skip
    assert [d.field for d in await transport.provision([changed], True)] == ["partitions"]
    compacting = await opened(kafka.url, KafkaTuning(compacted=(topic,), replication=2))
    drifts = await compacting.provision(wanted[:1], True)
    assert [(d.field, d.wanted, d.found, d.applied) for d in drifts] == [
        ("replication", 2, 1, False), ("retention", 3600.0, 60.0, True), ("cleanup.policy", "compact", "delete", True)
    ]  # fmt: skip
    await compacting.close()
    with pytest.raises(ConfigurationError, match="without saying of which topic"):
        await transport.provision([Resource(kind="group", name=group)], True)


async def test_total_order_takes_one_partition(transport: KafkaTransport, namespace: str) -> None:
    topic = f"{namespace}t"
    await transport.provision([Resource(kind="topic", name=topic, partitions=16, order=Order.TOTAL)], True)
    assert len(await transport.cluster.partitions(topic)) == 1
    many = f"{namespace}many"
    await make(transport, many, 2)
    with pytest.raises(Refused, match="total order takes a topic of one partition"):
        await transport.provision([Resource(kind="topic", name=many, order=Order.TOTAL)], True)
    with pytest.raises(Refused, match="total order takes a topic of one partition"):
        await member(transport, many, order=Order.TOTAL)


async def test_topics(transport: KafkaTransport, topic: str) -> None:
    await send(transport, topic, *"abc")
    await member(transport, topic)
    (info,) = await transport.topics(topic)
    assert (info.name, info.messages, info.groups) == (topic, 3, (f"{topic}.g",))


async def test_seek(transport: KafkaTransport, topic: str) -> None:
    await send(transport, topic, *"abc", key=b"k")
    group = f"{topic}.g"
    source = await member(transport, topic)
    got = await take(source, 3)
    with pytest.raises(Refused, match="stop it, then seek"):
        await transport.seek(topic, group, "earliest")
    await settle(source, got[2])
    position = source.position(got[1])
    await source.close()
    await transport.seek(topic, group, "earliest")
    assert sum((await transport.lag([topic], group)).values()) == 3
    await transport.seek(topic, group, "new")
    assert sum((await transport.lag([topic], group)).values()) == 0
    await transport.seek(topic, group, source.time(got[0]))
    assert sum((await transport.lag([topic], group)).values()) == 3
    await transport.seek(topic, group, position)
    assert bodies(await take(await member(transport, topic), 2)) == ["b", "c"]


@pytest.mark.parametrize(
    ("to", "error", "says"),
    [
        ("12", ConfigurationError, "expected partition and offset such as 3:1207"),
        ("7:0", NotFound, "partitions 0 to 2, no 7"),
        ("0:99", Refused, "holds offsets 0 to 0, not 99"),
        ("earliest", NotFound, "has no group"),
    ],
)
async def test_seek_refuses(
    transport: KafkaTransport, topic: str, to: Start | str, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        await transport.seek(topic, f"{topic}.nobody", to)


async def test_browse(transport: KafkaTransport, topic: str) -> None:
    for n in range(30):
        await send(transport, topic, str(n), key=b"%d" % (n % 5))
    found = [(d, headers) async for d, headers in transport.browse(topic, "earliest", None)]
    assert sorted(int(d.body or b"") for d, _ in found) == list(range(30))
    stamps = [round(transport.cluster.time(d) * 1000) for d, _ in found]
    assert stamps == sorted(stamps)
    middle = stamps[15] / 1000
    later = [d async for d, _ in transport.browse(topic, middle, None)]
    earlier = [d async for d, _ in transport.browse(topic, "earliest", middle - 0.001)]
    assert len(later) + len(earlier) == 30
    assert [d async for d, _ in transport.browse(topic, "new", None)] == []
    assert [d async for d, _ in transport.browse(f"{topic}.missing", "earliest", None)] == []


async def test_subscribing_to_what_is_not_there(transport: KafkaTransport, namespace: str) -> None:
    with pytest.raises(NotFound, match="run `switchgear provision`"):
        await member(transport, f"{namespace}missing")
