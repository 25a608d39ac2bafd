"""Exactly once on a real Kafka: output, position and note are stored together, or none of them is."""

from __future__ import annotations

import asyncio
import secrets
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Collection
from typing import Any

import pytest

pytest.importorskip("confluent_kafka")

from switchgear import Bus, Topic
from switchgear.driver import Delivery, Outgoing, Resource, Settlement, Subscription, Verdict
from switchgear.errors import Lost, Refused, Unsupported
from switchgear.plugins import open_transport
from switchgear_kafka.cluster import Committed, Reader, TopicPartition
from switchgear_kafka.confluent.source import GroupSource
from switchgear_kafka.transport import KafkaTransport
from tests.brokers.fixtures import Server

pytestmark = pytest.mark.kafka
COUNT = 60


def soon(seconds: float = 10.0) -> float:
    return asyncio.get_running_loop().time() + seconds


async def opened(url: str) -> KafkaTransport:
    transport = open_transport(url, [])
    assert isinstance(transport, KafkaTransport)
    await transport.connect(soon())
    return transport


@pytest.fixture
def url(kafka_broker: Server) -> str:
    return f"{kafka_broker.url}?client=confluent"


@pytest.fixture
async def transport(url: str) -> AsyncIterator[KafkaTransport]:
    transport = await opened(url)
    yield transport
    await transport.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}, "closed, and tasks go on"


class Chain:
    """Two topics, and a member that reads the first."""

    def __init__(self, transport: KafkaTransport, source: str, to: str) -> None:
        self.transport, self.source, self.to = transport, source, to
        self.revoked: list[bool] = []
        self.marks: list[bytes | None] = []

    async def member(self, transport: KafkaTransport | None = None) -> Reader:
        async def revoked(_: object, lost: bool) -> None:
            self.revoked.append(lost)

        return await (transport or self.transport).subscribe(
            Subscription(
                topics={self.source: None}, group=f"{self.source}.g", consumer=f"m-{secrets.token_hex(4)}",
                start="earliest", lease=6.0,
            ),
            revoked,
        )  # fmt: skip

    async def seen(self) -> list[bytes | None]:
        """What a reader without a group finds in the second topic, once all before now is decided."""
        mark = Outgoing(topic=self.to, body=secrets.token_bytes(8), key=b"k")
        assert list(await self.transport.send([mark], soon())) == [None]
        self.marks.append(mark.body)
        async with asyncio.timeout(30):
            while True:
                found = [d.body async for d, _ in self.transport.browse(self.to, "earliest", None)]
                if mark.body in found:
                    return [body for body in found if body not in self.marks]
                await asyncio.sleep(0.02)

    async def store(self, *bodies: str) -> None:
        batch = [Outgoing(topic=self.source, body=body.encode(), key=b"k") for body in bodies]
        assert list(await self.transport.send(batch, soon())) == [None] * len(batch)

    def outputs(self, *bodies: str) -> list[Outgoing]:
        return [Outgoing(topic=self.to, body=body.encode(), key=b"k") for body in bodies]


@pytest.fixture
async def chain(transport: KafkaTransport, namespace: str) -> Chain:
    topics = [f"{namespace}orders", f"{namespace}shipped"]
    await transport.provision([Resource(kind="topic", name=name, partitions=1) for name in topics], True)
    return Chain(transport, *topics)


async def take(source: Reader, count: int, within: float = 30.0) -> list[Delivery]:
    out: list[Delivery] = []
    async with asyncio.timeout(within):
        while len(out) < count:
            out += await source.receive(100)
    assert len(out) == count, [d.body for d in out]
    return out


def acked(delivery: Delivery, note: str = "") -> list[Settlement]:
    return [Settlement(delivery, Verdict.ACK, note=note)]


async def test_output_position_and_note_are_there_together(chain: Chain) -> None:
    source = await chain.member()
    await chain.store("1", "2", "3")
    got = await take(source, 3)
    await chain.transport.commit(source, acked(got[1], "a note"), chain.outputs("a", "b"), soon())
    assert await chain.seen() == [b"a", b"b"]
    assert source.note(got[1].lane) == "a note"
    await source.close()
    heir = await chain.member()
    (again,) = await take(heir, 1)
    assert again.body == b"3"
    assert heir.note(again.lane) == "a note"


async def test_where_one_is_too_large_nothing_is_begun(chain: Chain) -> None:
    source = await chain.member()
    await chain.store("1")
    (got,) = await take(source, 1)
    outputs = chain.outputs("a", "." * (chain.transport.capabilities.body + 1), "b")
    with pytest.raises(Refused, match="leaves room"):
        await chain.transport.commit(source, acked(got), outputs, soon())
    assert await chain.seen() == []


async def test_what_the_broker_refuses_takes_all_with_it(chain: Chain) -> None:
    narrow = f"{chain.to}.narrow"
    await chain.transport.provision([Resource(kind="topic", name=narrow, partitions=1)], True)
    await chain.transport.cluster.configure(narrow, {"max.message.bytes": "2000"})
    source = await chain.member()
    await chain.store("1")
    (got,) = await take(source, 1)
    big = Outgoing(topic=narrow, body=b"." * 5000, key=b"k")
    with pytest.raises(Refused, match=r"max\.message\.bytes"):
        await chain.transport.commit(source, acked(got), [*chain.outputs("a"), big], soon())
    assert await chain.seen() == []
    await chain.transport.commit(source, acked(got), chain.outputs("b"), soon())
    assert await chain.seen() == [b"b"], "the source can't commit any more"


async def test_a_member_that_lost_its_partition_commits_nothing(chain: Chain, url: str) -> None:
    zombie = await chain.member()
    assert isinstance(zombie, GroupSource)
    await chain.store("1")
    (late,) = await take(zombie, 1)
    before = zombie._reader.consumer.consumer_group_metadata()
    other = await opened(url)
    try:
        joining = asyncio.create_task(chain.member(other))
        while not joining.done():  # its rebalance takes the partition
            await zombie.receive(0)
            await asyncio.sleep(0.02)
        heir = joining.result()
        with pytest.raises(Lost, match="no longer assigned"):
            await chain.transport.commit(zombie, acked(late), chain.outputs("zombie"), soon())
        # Where it has not noticed, the broker tells by the round of the group in which it was a member.
        queues = await chain.transport.split(chain.outputs("zombie"), [None])
        offsets = {TopicPartition(chain.source, 0): Committed(1, "")}
        with pytest.raises(Lost, match="gone on without us"):
            await zombie._transactions.commit(queues, offsets, before, soon())
        await zombie.close()
        (taken,) = await take(heir, 1)
        await other.commit(heir, acked(taken), chain.outputs("heir"), soon())
        assert await chain.seen() == [b"heir"]
    finally:
        await other.close()


async def test_of_an_open_transaction_nobody_sees_anything(chain: Chain, transport: KafkaTransport) -> None:
    source = await chain.member()
    assert isinstance(source, GroupSource)
    reader = await transport.subscribe(
        Subscription(topics={chain.to: None}, group=None, consumer="reader", start="earliest"), never
    )
    await chain.store("1")
    (got,) = await take(source, 1)
    transactions = source._transactions
    begun, go_on = asyncio.Event(), threading.Event()
    loop, again = asyncio.get_running_loop(), transactions._again

    def slow(call: Callable[[float], Any], until: float, *enough: Callable[[Any], bool]) -> None:
        if getattr(call, "__name__", "") == "commit_transaction":
            loop.call_soon_threadsafe(begun.set)
            assert go_on.wait(20)
        again(call, until, *enough)

    transactions._again = slow  # type: ignore[method-assign]
    committing = asyncio.create_task(transport.commit(source, acked(got), chain.outputs("a"), soon(20)))
    await begun.wait()  # all is stored, and nothing decided
    assert await reader.receive(10) == []
    assert [d async for d in transport.browse(chain.to, "earliest", None)] == []
    go_on.set()
    await committing
    assert [d.body for d in await take(reader, 1)] == [b"a"]


async def never(_lanes: Collection[str], _lost: bool) -> None:
    raise AssertionError("nothing is taken from a reader without a group")


async def test_aiokafka_says_which_client_can(kafka_broker: Server, namespace: str) -> None:
    bus = Bus(kafka_broker.url, namespace=namespace)

    @bus.subscribe(Topic("orders", str), group="g", to=Topic("shipped", str), delivery="exactly_once")
    async def ship(order: str) -> str:
        return order

    with pytest.raises(Unsupported, match=r"\?client=confluent"):
        async with bus.serving():
            pass


RELAY = """
import asyncio, sys
from switchgear import Bus, Topic

bus = Bus(sys.argv[1], namespace=sys.argv[2])

@bus.subscribe(
    Topic("orders", str), group="g", to=Topic("shipped", str), delivery="exactly_once", start="earliest", lease=2.0
)
async def ship(order: str) -> str:
    print(order, flush=True)
    return order

bus.run()
"""


async def relay(url: str, namespace: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", RELAY, url, namespace, stdout=asyncio.subprocess.PIPE
    )


async def test_though_members_are_killed_each_message_has_one_output(url: str, namespace: str) -> None:
    orders, shipped = Topic("orders", str), Topic("shipped", str)
    bus = Bus(url, namespace=namespace)
    seen: list[str] = []
    everything, end = asyncio.Event(), asyncio.Event()
    sent = [f"{n:03}" for n in range(COUNT)]

    @bus.subscribe(shipped, group="reader", start="earliest")
    async def read(order: str) -> None:
        seen.append(order)
        if set(seen) >= set(sent):
            everything.set()
        if order == "end":
            end.set()

    async with bus.serving():
        await bus.publish_many(orders, [])
        for kill in range(3):
            child = await relay(url, namespace)
            assert child.stdout is not None
            await bus.publish_many(orders, sent[kill * COUNT // 3 : (kill + 1) * COUNT // 3])
            for _ in range(5 + 4 * kill):
                assert await asyncio.wait_for(child.stdout.readline(), 60)
            await asyncio.sleep(0.04 * kill)
            child.kill()
            await child.communicate()
        last = await relay(url, namespace)
        try:
            await asyncio.wait_for(everything.wait(), 90)
            await bus.publish(shipped, "end")
            await asyncio.wait_for(end.wait(), 60)
        finally:
            last.send_signal(signal.SIGTERM)
            await last.communicate()
    assert sorted(one for one in seen if one != "end") == sent
