"""A member starts no handler once it is not known whether its lanes are still its own."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from typing import Any

import pytest

from switchgear import Batch, Message
from switchgear.consumer import Consumer
from tests.support.log import Group, Host, Member, program
from tests.support.serving import a_bus, consumer_of, loose, until
from tests.support.virtual import virtual


async def joined(log: Group, handle: Any, **more: Any) -> tuple[Consumer, Member]:
    consumer = Consumer(program(handle, **more), Host(log))
    consumer.start()
    await consumer.ready
    (source,) = log.sources
    assert isinstance(source, Member)
    return consumer, source


def now() -> float:
    return asyncio.get_running_loop().time()


def filled(n: int) -> Group:
    log = Group()
    for i in range(n):
        log.append(f"k{i % 3}", b"%d" % i)
    return log


@virtual
async def test_nothing_is_begun_after_the_end_and_all_goes_on_once_it_is_renewed() -> None:
    log, began = filled(20), list[tuple[float, bytes]]()

    async def handle(message: Message[Any]) -> None:
        began.append((now(), message.body))
        await asyncio.sleep(0.5)

    consumer, source = await joined(log, handle, concurrency=2)
    source.give(0)
    consumer.valid_until = source.valid_until = end = now() + 1.2
    await asyncio.sleep(10)
    assert len(began) == 6
    assert max(at for at, _ in began) <= end
    await until(lambda: log.partitions[0].committed == 6)  # what ran is finished, and settled
    source.valid_until = now() + 1000
    renewed = now()
    await until(lambda: log.partitions[0].committed == 20)
    assert min(at for at, _ in began[6:]) - renewed < 0.05
    assert len({body for _, body in began}) == len(began) == 20
    await consumer.stop(now() + 5)


@virtual
async def test_lanes_lost_meanwhile_are_forgotten_and_others_go_on() -> None:
    log, began = Group(partitions=2), list[bytes]()
    for n in range(8):
        log.append(None, b"%d" % n, partition=n % 2)

    async def handle(message: Message[Any]) -> None:
        began.append(message.body)

    consumer, source = await joined(log, handle)
    consumer.valid_until = source.valid_until = now() - 1
    source.give(0, 1)
    await asyncio.sleep(5)
    assert not began
    assert len(consumer.lanes.held) == 8
    await source.take(1, lost=True)
    source.valid_until = now() + 1000
    await until(lambda: log.partitions[0].committed == 4)
    assert sorted(began) == [b"0", b"2", b"4", b"6"]
    assert not consumer.lanes.held
    assert log.partitions[1].committed == 0
    await consumer.stop(now() + 5)


@virtual
async def test_the_source_is_asked_only_when_what_it_told_has_passed() -> None:
    log, began, asked = filled(200), list[bytes](), 0

    class Counting(Member):
        @property
        def valid_until(self) -> float:  # type: ignore[override]
            nonlocal asked
            asked += 1
            return now() + 1000

    log.open = lambda revoked: Counting(log, revoked)  # type: ignore[method-assign]

    async def handle(message: Message[Any]) -> None:
        began.append(message.body)

    consumer, source = await joined(log, handle)
    source.give(0)
    await until(lambda: len(began) == 200)
    assert asked <= 2  # isinstance asks, too
    await consumer.stop(now() + 5)


@virtual
async def test_of_many_workers_one_waits_for_the_proof() -> None:
    log, began, asked = Group(), list[bytes](), 0
    for n in range(1000):
        log.append(None, b"%d" % n)

    class Counting(Member):
        until = -math.inf

        @property
        def valid_until(self) -> float:  # type: ignore[override]
            nonlocal asked
            asked += 1
            return self.until

    log.open = lambda revoked: Counting(log, revoked)  # type: ignore[method-assign]

    async def handle(message: Message[Any]) -> None:
        began.append(message.body)
        await asyncio.sleep(1)

    consumer, source = await joined(log, handle, concurrency=500)
    assert isinstance(source, Counting)
    source.give(0)
    await asyncio.sleep(10)
    assert not began
    assert asked < 2 * 500 + 10 / 0.01 + 100
    source.until = math.inf
    await asyncio.sleep(0.5)
    assert len(began) == 500
    await until(lambda: log.partitions[0].committed == 1000)
    await consumer.stop(now() + 5)


@virtual
async def test_workers_that_wait_for_the_proof_end_with_the_consumer() -> None:
    log, began = filled(20), list[bytes]()

    async def handle(message: Message[Any]) -> None:
        began.append(message.body)

    consumer, source = await joined(log, handle, concurrency=8)
    consumer.valid_until = source.valid_until = -math.inf
    source.give(0)
    await asyncio.sleep(5)
    stopping = now()
    await consumer.stop(now() + 30)
    assert now() - stopping < 0.5
    assert not began
    assert log.partitions[0].committed == 0


@virtual
async def test_at_most_once_what_came_is_ours_for_good() -> None:
    log, began = filled(5), list[bytes]()

    async def handle(message: Message[Any]) -> None:
        began.append(message.body)

    consumer, source = await joined(log, handle, delivery="at_most_once")
    source.valid_until = now() - 1
    source.give(0)
    await until(lambda: len(began) == 5)
    await consumer.stop(now() + 5)


@dataclass
class Proof:
    """Membership as the test decides it."""

    valid_until: float = -math.inf


@virtual
async def test_batches_wait_too() -> None:
    bus, events, _ = a_bus()
    got: list[int] = []

    @bus.subscribe(loose, group="g", batch=Batch(5))
    async def handle(batch: list[dict[str, Any]]) -> None:
        got.extend(o["n"] for o in batch)

    async with bus.serving():
        consumer, proof = consumer_of(bus, "loose"), Proof()
        consumer.membership, consumer.valid_until = proof, proof.valid_until
        for n in range(7):
            await bus.publish(loose, {"n": n})
        await asyncio.sleep(5)
        assert not got
        proof.valid_until = math.inf
        await until(lambda: events["handled"] == 7)
    assert sorted(got) == list(range(7))


@virtual
async def test_nothing_is_pulled_meanwhile() -> None:
    bus, _, _ = a_bus()
    async with bus, bus.consumer(loose, group="g") as messages:
        consumer, proof = consumer_of(bus, "loose"), Proof()
        consumer.membership, consumer.valid_until = proof, proof.valid_until
        await bus.publish(loose, {"n": 1})
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await anext(messages)
        proof.valid_until = math.inf
        message = await anext(messages)
        assert message.body == {"n": 1}
        await message.ack()
