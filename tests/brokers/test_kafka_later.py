"""Retries and delays on Kafka, which has neither: copies to the group alone, and delay topics."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise
from typing import Any

import pytest

pytest.importorskip("aiokafka")

from switchgear import Bus, DeadLetter, Message, RetryAfter, Topic
from switchgear.driver import Provisioner
from tests.brokers.fixtures import Server

pytestmark = pytest.mark.kafka
MAILS = Topic("mails", str, order="none", partitions=2)
LATE = 2.0  # seconds that a message may come after its time


def bus_of(url: str, namespace: str, **more: Any) -> Bus:
    return Bus(url, name="test", namespace=namespace, config={}, **more)


async def until(condition: Any, within: float = 30.0) -> None:
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110  (it happens elsewhere)
            await asyncio.sleep(0.02)


async def test_a_failed_message_blocks_nobody_and_comes_back_to_its_group_alone(kafka: Server, namespace: str) -> None:
    bus = bus_of(kafka.url, namespace)
    mine: list[tuple[str, int, str, float]] = []
    theirs: list[str] = []
    buried: list[tuple[str, str, str]] = []

    @bus.subscribe(MAILS, group="sender", dead_letter=DeadLetter(topic="graves"))
    async def send(message: Message[str]) -> None:
        mine.append((message.body, message.attempt, message.id, time.time()))
        if message.body == "bad" and message.attempt < 3:
            raise RetryAfter(1.5)
        if message.body == "worse":
            raise RetryAfter(0.2) if message.attempt < 5 else ValueError("for good")

    @bus.subscribe(MAILS, group="archive")
    async def keep(mail: str) -> None:
        theirs.append(mail)

    @bus.subscribe(Topic("graves", str, order="none"), group="digger")
    async def bury(message: Message[str]) -> None:
        said = message._attributes().extensions
        buried.append((message.body, said["sgtopic"], said["sgposition"]))

    async with bus.serving():
        await bus.publish(MAILS, "bad")
        await bus.publish(MAILS, "worse")
        await bus.publish_many(MAILS, [f"good {n}" for n in range(20)])
        await until(lambda: len(theirs) == 22)
        await until(lambda: len([m for m in mine if m[0] == "bad"]) == 3)
        await until(lambda: buried)
        transport = bus.transport
        assert isinstance(transport, Provisioner)
        names = {info.name.removeprefix(namespace) for info in await transport.topics(namespace)}
        lag = await transport.lag([f"{namespace}mails"], f"{namespace}sender")  # type: ignore[attr-defined]
    assert len(mine) == 20 + 3 + 5
    tries = [m for m in mine if m[0] == "bad"]
    assert [attempt for _, attempt, _, _ in tries] == [1, 2, 3]
    assert len({id_ for _, _, id_, _ in tries}) == 1
    assert all(1.45 <= after[3] - before[3] < 1.5 + LATE for before, after in pairwise(tries))
    assert [attempt for body, attempt, _, _ in mine if body == "worse"] == [1, 2, 3, 4, 5]
    assert len(buried) == 1
    assert buried[0][:2] == ("worse", "mails")
    assert sorted(theirs).count("bad") == 1
    assert {"sg.retry.mails.sender", "sg.retry.mails.archive", "sg.delay.1s", "sg.delay.6h"} <= names
    assert set(lag.values()) <= {0, 1, 2}  # what the last commit did not cover yet


async def test_a_delayed_message_waits_on_the_broker(kafka: Server, namespace: str) -> None:
    due: dict[str, float] = {}
    came: dict[str, float] = {}

    def member() -> Bus:
        bus = bus_of(kafka.url, namespace)

        @bus.subscribe(MAILS, group="sender")
        async def send(message: Message[str]) -> None:
            came[message.body] = time.time()
            assert message.attempt == 1
            assert not {name for name in message._attributes().extensions if name.startswith("sg")}

        return bus

    async with member().serving():
        pass  # there is a group
    publisher = bus_of(kafka.url, namespace)
    async with publisher:
        for body, delay in (("soon", 0.3), ("later", 3.2), ("last", 6.4), ("never", 7200.0)):
            due[body] = time.time() + delay
            await publisher.publish(MAILS, body, delay=delay)
    async with member().serving():
        up = time.time()
        await until(lambda: len(came) == 3)
    for body, at in came.items():
        assert at >= due[body], f"{body} came {due[body] - at:.3f} s early"
        assert at < max(due[body], up) + LATE + 3.0, f"{body} came {at - due[body]:.3f} s late"  # joining takes a while
