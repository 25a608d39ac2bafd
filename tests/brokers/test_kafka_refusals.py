"""What Kafka refuses, and what others wrote into it that nobody should: each has its error, or is read all the same."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest

pytest.importorskip("aiokafka")

from aiokafka import TopicPartition, codec
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy
from aiokafka.record.util import calc_crc32c

from switchgear import Bus, DeadLetter, Message, RetryAfter, Topic
from switchgear.driver import Outgoing
from switchgear.errors import ConfigurationError, NotFound, Refused
from switchgear_kafka.topics import configure, create
from switchgear_kafka.transport import KafkaTransport
from tests.brokers.broker import HOST
from tests.brokers.fixtures import Server
from tests.brokers.kafka_fixtures import OwnKafka, by
from tests.brokers.test_kafka_transport import bodies, make, member, opened, send, settle, soon, take

pytestmark = pytest.mark.kafka


@pytest.fixture
async def transport(kafka: Server) -> AsyncIterator[KafkaTransport]:
    transport = await opened(kafka.url)
    yield transport
    await transport.close()


@pytest.fixture
async def others(kafka_broker: Server) -> AsyncIterator[AIOKafkaClient]:
    """What other programs write with: no client of ours writes such things."""
    client = AIOKafkaClient(bootstrap_servers=kafka_broker.url.removeprefix("kafka://"))
    await client.bootstrap()
    yield client
    await client.close()


class Name(str):
    """Of a header, as a client writes it that does not care for UTF-8."""

    __slots__ = ()

    def encode(self, *_: Any) -> bytes:
        return b"caf\xe9"


def batch(*records: tuple[bytes | None, bytes | None, list[tuple[str, bytes]]], compression: int = 0) -> bytearray:
    builder = _DefaultRecordBatchBuilderPy(2, compression, 0, -1, -1, -1, 1 << 20)
    for n, (key, value, headers) in enumerate(records):
        builder.append(n, round(time.time() * 1000), key, value, headers)
    return builder.build()


async def write(client: AIOKafkaClient, topic: str, data: bytearray, partition: int = 0) -> int:
    """The broker's error code."""
    await client.set_topics([topic])
    leader = client.cluster.leader_for_partition(TopicPartition(topic, partition))
    request = ProduceRequest(None, -1, 5000, [(topic, [(partition, data)])])
    response = await client.send(leader, request)
    ((_, ((_, code, *_),)),) = response.topics
    return int(code)


# ---- what others wrote ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", [0, 1, 3])
@pytest.mark.parametrize("group", ["g", None])
async def test_a_header_whose_name_is_no_text(
    transport: KafkaTransport, others: AIOKafkaClient, namespace: str, compression: int, group: str | None
) -> None:
    """None before it and none behind it is lost, in its partition and in others."""
    topic = f"{namespace}t"
    await make(transport, topic, 2)
    expected: list[str] = []
    for round_ in range(3):
        for partition in range(2):
            values = [b"%d-%d-%d-%0200d" % (round_, partition, n, 0) for n in range(3)]
            expected += [value.decode() for value in values]
            headers = [[], [(Name("x"), b"1"), ("ü", b"2")] if partition else [], []]
            records = [(b"k", value, header) for value, header in zip(values, headers, strict=True)]
            assert await write(others, topic, batch(*records, compression=compression), partition) == 0  # type: ignore[arg-type]
    source = await member(transport, topic, group=group)
    got = []
    async with asyncio.timeout(20):
        while len(got) < len(expected):
            got += await source.receive(4)
    assert sorted(bodies(got)) == sorted(expected)
    for partition in range(2):
        mine = [body for body in bodies(got) if body.split("-")[1] == str(partition)]
        assert mine == sorted(mine), "order"
    odd = [source.headers(d) for d in got if source.headers(d)]
    assert odd == [[("caf\\xe9", b"1"), ("ü", b"2")]] * 3
    assert len([d async for d, _ in transport.browse(topic, "earliest", None)]) == len(expected)


async def test_a_message_with_a_broken_header_is_handled_copied_and_buried(
    kafka: Server, transport: KafkaTransport, others: AIOKafkaClient, namespace: str
) -> None:
    bus = Bus(kafka.url, name="test", namespace=namespace, config={})
    topic = Topic("notes", dict[str, int], order="none", partitions=1, envelope="none")
    tries: list[int] = []

    @bus.subscribe(topic, group="g", start="earliest", dead_letter=DeadLetter(topic="graves"))
    async def handle(message: Message[dict[str, int]]) -> None:
        assert message.headers["caf\\xe9"] == "1"
        tries.append(message.attempt)
        if message.attempt == 1:
            raise RetryAfter(1.2)
        raise TypeError

    await make(transport, f"{namespace}notes")
    assert await write(others, f"{namespace}notes", batch((None, b'{"n": 1}', [(Name("x"), b"1")]))) == 0
    graves: list[dict[str, bytes]] = []
    async with asyncio.timeout(40), bus.serving():
        while not graves:
            await asyncio.sleep(0.1)
            if tries and max(tries) > 1:
                graves = [dict(h) async for _, h in transport.browse(f"{namespace}graves", "earliest", None)]
    assert graves[0]["caf\\xe9"] == b"1"


async def test_nothing_at_all_in_a_record(
    kafka: Server, transport: KafkaTransport, others: AIOKafkaClient, namespace: str
) -> None:
    """Neither key nor value nor header: no tombstone of anything, and acknowledged like one."""
    bus = Bus(kafka.url, name="test", namespace=namespace, config={})
    topic = Topic("notes", dict[str, int], order="none", partitions=1, envelope="none")
    seen: list[dict[str, int]] = []

    @bus.subscribe(topic, group="g", start="earliest")
    async def handle(note: dict[str, int]) -> None:
        seen.append(note)

    await make(transport, f"{namespace}notes")
    data = batch((None, None, []), (b"", None, []), (None, b'{"n": 1}', []))
    assert await write(others, f"{namespace}notes", data) == 0
    async with asyncio.timeout(30), bus.serving():
        while not seen:  # noqa: ASYNC110  (it happens elsewhere)
            await asyncio.sleep(0.05)
    assert seen == [{"n": 1}]
    assert sum((await transport.lag([f"{namespace}notes"], f"{namespace}g")).values()) == 0
    letters = [d async for d, _ in transport.browse(f"{namespace}sg.dlq.notes.g", "earliest", None)]
    assert letters == []


async def test_a_codec_that_is_not_installed(
    kafka_broker: Server, others: AIOKafkaClient, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With aiokafka; confluent-kafka brings all of them."""
    transport = await opened(kafka_broker.url)
    topic = f"{namespace}t"
    await make(transport, topic)
    assert await write(others, topic, batch((b"k", b"v" * 1000, []), compression=3)) == 0
    monkeypatch.setattr(codec, "has_lz4", lambda: False)
    source = await member(transport, topic)
    with pytest.raises(Refused, match=r"pip install 'switchgear\[kafka\]'"):
        await take(source, 1)
    with pytest.raises(ConfigurationError, match=r"compression=lz4.*pip install 'switchgear\[kafka\]'"):
        await opened(f"{kafka_broker.url}?compression=lz4")
    await transport.close()


async def test_a_codec_that_nobody_knows_does_not_get_in(
    transport: KafkaTransport, others: AIOKafkaClient, namespace: str
) -> None:
    topic = f"{namespace}t"
    await make(transport, topic)
    data = batch((b"k", b"v", []))
    data[22] |= 5  # attributes
    data[17:21] = struct.pack(">I", calc_crc32c(bytes(data[21:])))
    assert await write(others, topic, data) != 0
    await send(transport, topic, "x")
    assert bodies(await take(await member(transport, topic), 1)) == ["x"]


# ---- what the broker refuses ----------------------------------------------------------------------------------------


async def test_a_topic_that_is_missing_is_neither_made_nor_waited_for(own_kafka: OwnKafka, engine: str) -> None:
    for create_ in ("false", "true"):
        broker = own_kafka({"auto.create.topics.enable": create_})
        transport = await opened(by(engine, broker.url))
        (error,) = await transport.send([Outgoing(topic="missing", body=b"x")], soon())
        assert isinstance(error, NotFound)
        assert "run `switchgear provision`" in str(error)
        with pytest.raises(NotFound, match="no topic 'missing'"):
            await member(transport, "missing")
        assert await transport.topics("missing") == [], "asking makes none"
        bus = Bus(by(engine, broker.url), name="test", config={}, provision="off")
        async with bus:
            with pytest.raises(NotFound):
                await bus.publish("missing", "x")
        await transport.close()
        broker.close()


async def test_larger_than_the_brokers_limit(kafka: Server, transport: KafkaTransport, namespace: str) -> None:
    topic = f"{namespace}orders"
    await make(transport, topic)
    await configure(transport.cluster, topic, {"max.message.bytes": "2000"})
    bus = Bus(kafka.url, name="test", namespace=namespace, config={})
    async with bus:
        with pytest.raises(Refused, match=r"max\.message\.bytes"):
            await bus.publish("orders", "x" * 3000)
        with pytest.raises(Refused, match="store it elsewhere and publish a reference"):
            await bus.publish("orders", "x" * 2_000_000)
        await bus.publish("orders", "x" * 100)


async def test_a_compacted_topic_takes_nothing_without_a_key(transport: KafkaTransport, namespace: str) -> None:
    topic = f"{namespace}state"
    await create(transport.cluster, topic, partitions=1, config={"cleanup.policy": "compact"})
    (error,) = await transport.send([Outgoing(topic=topic, body=b"x")], soon())
    assert isinstance(error, Refused)
    assert "compacted takes none without a key" in str(error)
    assert await transport.send([Outgoing(topic=topic, body=b"x", key=b"k")], soon()) == [None]


async def test_an_offset_that_retention_took(transport: KafkaTransport, namespace: str) -> None:
    topic = f"{namespace}t"
    await make(transport, topic)
    await send(transport, topic, *"abcde")
    source = await member(transport, topic)
    got = await take(source, 5)
    await settle(source, got[4])
    await source.close()
    admin = AIOKafkaAdminClient(bootstrap_servers=transport.cluster.at.removeprefix("kafka://"))
    await admin.start()
    await admin.delete_records({TopicPartition(topic, 0): RecordsToDelete(before_offset=3)})
    await admin.close()
    for position in ("0:2", "0:6"):
        with pytest.raises(Refused, match=r"holds offsets 3 to 5, not \d"):
            await transport.seek(topic, f"{topic}.g", position)
    await transport.seek(topic, f"{topic}.g", "0:3")
    assert bodies(await take(await member(transport, topic), 2)) == ["d", "e"]


# ---- a broker that is too old ---------------------------------------------------------------------------------------


class Old:
    """Tells its versions and that it is alone, as a broker of 2016 does: there is none here to start."""

    def __init__(self, versions: dict[int, tuple[int, int]]) -> None:
        self._versions = versions
        self._talking: set[asyncio.Task[object]] = set()

    async def hang_up(self) -> None:
        """End what clients have not ended."""
        for talk in self._talking:
            talk.cancel()
        if self._talking:
            await asyncio.wait(self._talking)

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talk = asyncio.current_task()
        assert talk is not None
        self._talking.add(talk)
        talk.add_done_callback(self._talking.discard)
        try:
            while True:
                (size,) = struct.unpack(">i", await reader.readexactly(4))
                request = await reader.readexactly(size)
                key, version, correlation = struct.unpack(">hhi", request[:8])
                if key == 3 and version <= 1:  # Metadata: one broker, which is this one
                    port = writer.get_extra_info("sockname")[1]
                    body = struct.pack(">iih9sihii", 1, 0, 9, HOST.encode(), port, -1, 0, 0)
                elif key != 18:
                    break
                elif version > 0:  # UNSUPPORTED_VERSION, in the format of version 0
                    body = struct.pack(">hi", 35, 0)
                else:
                    body = struct.pack(">hi", 0, len(self._versions)) + b"".join(
                        struct.pack(">hhh", api, *range_) for api, range_ in self._versions.items()
                    )
                writer.write(struct.pack(">ii", 4 + len(body), correlation) + body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


KAFKA_0_10 = {0: (0, 2), 1: (0, 2), 2: (0, 0), 3: (0, 1), 8: (0, 2), 9: (0, 1), 10: (0, 0), 11: (0, 0), 18: (0, 0)}


async def test_a_broker_that_is_too_old(engine: str) -> None:
    old = Old(KAFKA_0_10)
    server = await asyncio.start_server(old, HOST, 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(ConfigurationError, match=r"too old: Apache Kafka 2\.1 or newer"):
        await opened(by(engine, f"kafka://{HOST}:{port}?timeout=2"))
    server.close()
    await asyncio.sleep(0)  # who was accepted just now has come
    await old.hang_up()
    await server.wait_closed()
