"""A bus on Kafka: order inside partitions, members that come, go and die, a broker that restarts."""

# ruff: noqa: ASYNC110  (what they wait for happens elsewhere)

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aiokafka")

from switchgear import Bus, DeadLetter, Message, Reject, Retry, Topic
from tests.brokers.broker import Broker
from tests.brokers.fixtures import Server
from tests.brokers.kafka_fixtures import by

pytestmark = pytest.mark.kafka
Order = dict[str, Any]
ORDERS = Topic("orders", Order, key=lambda order: str(order["key"]), partitions=4)
ROOT = Path(__file__).parents[2]

MEMBER = """
import asyncio, sys
from switchgear import Bus, Message, Topic

url, namespace, path = sys.argv[1:]
orders = Topic("orders", dict, key=lambda order: str(order["key"]), partitions=4)
bus = Bus(url, name="member", namespace=namespace, config={})

@bus.subscribe(orders, group="billing", concurrency=16, start="earliest", lease=3.0)
async def handle(order: dict, message: Message) -> None:
    await asyncio.sleep(0.002)
    with open(path, "a") as file:
        file.write(f"{order['key']} {order['n']} {message.fence}\\n")

async def main() -> None:
    async with bus.serving():
        print("up", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


def bus_of(url: str, namespace: str, **more: Any) -> Bus:
    return Bus(url, name="test", namespace=namespace, config={}, **more)


async def until(condition: Any, within: float = 30.0) -> None:
    async with asyncio.timeout(within):
        while not condition():
            await asyncio.sleep(0.02)


async def lag(bus: Bus, namespace: str) -> int:
    async with bus._core() as core:
        found = await core.transport.lag([f"{namespace}orders"], f"{namespace}billing")  # type: ignore[attr-defined]
        return sum(found.values())


async def test_keys_keep_their_order_with_many_handlers_in_one_partition(kafka: Server, namespace: str) -> None:
    one = Topic("orders", Order, key=lambda order: str(order["key"]), partitions=1)
    bus = bus_of(kafka.url, namespace)
    seen: dict[str, list[int]] = defaultdict(list)
    at_work, most, failed = 0, 0, 0

    @bus.subscribe(one, group="billing", concurrency=20, start="earliest", retry=Retry(base=0.01, cap=0.02))
    async def handle(order: Order, message: Message[Order]) -> None:
        nonlocal at_work, most, failed
        at_work += 1
        most = max(most, at_work)
        await asyncio.sleep(0.003 * (order["n"] % 3))
        at_work -= 1
        if order["n"] % 10 == 3 and message.attempt == 1:
            failed += 1
            raise ConnectionError("again, please")
        seen[order["key"]].append(order["n"])

    async with bus.serving():
        await bus.publish_many(one, [{"key": f"k{n % 8}", "n": n} for n in range(400)])
        await until(lambda: sum(map(len, seen.values())) == 400)
    assert all(numbers == sorted(numbers) for numbers in seen.values())
    assert most >= 4, "the keys of a partition were handled one by one"
    assert failed == 40
    assert await lag(bus, namespace) == 0


async def test_a_topic_that_somebody_else_made_keeps_its_partitions(kafka: Server, namespace: str) -> None:
    from switchgear_kafka.topics import create

    bus = bus_of(kafka.url, namespace)
    undeclared = Topic("orders", Order, key=lambda order: str(order["key"]))
    async with bus:
        async with bus._core() as core:
            await create(core.transport.cluster, f"{namespace}orders", partitions=3)  # type: ignore[attr-defined]
        await bus.publish(undeclared, {"key": "k", "n": 1})
        async with bus._core() as core:
            assert (await core.plan(undeclared)).partitions == 3


async def test_a_dead_letter_is_written_and_the_partition_goes_on(kafka: Server, namespace: str) -> None:
    bus = bus_of(kafka.url, namespace)
    seen: list[int] = []

    @bus.subscribe(ORDERS, group="billing", start="earliest", dead_letter=DeadLetter(after="continue"))
    async def handle(order: Order) -> None:
        if order["n"] == 1:
            raise Reject("not this one")
        seen.append(order["n"])

    async with bus.serving():
        for n in range(3):
            await bus.publish(ORDERS, {"key": "k", "n": n})
        await until(lambda: seen == [0, 2])
        async with bus._core() as core:
            letters = core.transport.browse(f"{namespace}sg.dlq.orders.billing", "earliest", None)  # type: ignore[attr-defined]
            ((letter, headers),) = [found async for found in letters]
    assert json.loads(letter.body or b"")["n"] == 1
    assert dict(headers)["ce_sgreason"] == b"not this one"
    assert letter.key == b"k"


async def test_request_and_broadcast(kafka: Server, namespace: str) -> None:
    server, client = bus_of(kafka.url, namespace), bus_of(kafka.url, namespace)
    prices, news = Topic("prices", Order), Topic("news", Order)
    heard: list[Order] = []

    @server.subscribe(prices, group="pricing")
    async def price(order: Order) -> Order:
        return {"price": order["n"] * 2}

    @server.subscribe(news, group=None)
    async def listen(order: Order) -> None:
        heard.append(order)

    async with server.serving(), client:
        answer = await client.request(prices, {"n": 21}, reply=Order, timeout=20)
        assert answer == {"price": 42}
        await client.publish(news, {"n": 1})
        await until(lambda: heard == [{"n": 1}])


async def test_members_come_go_and_are_killed_under_load(kafka: Server, namespace: str, tmp_path: Path) -> None:
    bus = bus_of(kafka.url, namespace)
    script, log = tmp_path / "member.py", tmp_path / "handled"
    script.write_text(MEMBER)
    log.touch()
    members: list[asyncio.subprocess.Process] = []

    async def join() -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(script), kafka.url, namespace, str(log), cwd=ROOT,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        members.append(process)
        assert process.stdout is not None
        async with asyncio.timeout(40):
            assert await process.stdout.readline() == b"up\n"
        return process

    def handled() -> list[tuple[str, int, int]]:
        rows = (line.split() for line in log.read_text().splitlines())
        return [(key, int(n), int(fence)) for key, n, fence in rows]

    published = 0
    stop = asyncio.Event()

    async def publish() -> None:
        nonlocal published
        while not stop.is_set():
            batch = [{"key": f"k{n % 40}", "n": n} for n in range(published, published + 40)]
            await bus.publish_many(ORDERS, batch)
            published += len(batch)
            await asyncio.sleep(0.05)

    try:
        async with bus:
            publishing = asyncio.create_task(publish())
            first = await join()
            await until(lambda: len(handled()) > 100)
            second = await join()
            first.kill()
            await first.wait()
            third = await join()
            second.send_signal(signal.SIGINT)
            await second.wait()
            done = len(handled())
            await until(lambda: len(handled()) > done + 200)
            stop.set()
            await publishing
            await until(lambda: len({(key, n) for key, n, _ in handled()}) == published, 60)
            assert third.returncode is None
    finally:
        stop.set()
        for process in members:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
            await process.wait()
    firsts: dict[str, list[int]] = defaultdict(list)
    fences: dict[str, int] = defaultdict(int)
    for key, n, fence in handled():
        if n not in firsts[key]:
            firsts[key].append(n)
        assert fence >= 1
        fences[key] = max(fences[key], fence)
    assert all(numbers == sorted(numbers) for numbers in firsts.values()), "a key's messages changed places"
    assert sum(map(len, firsts.values())) == published, "a message is lost"
    assert max(fences.values()) >= 3, "handovers did not raise the fence"


async def test_a_restart_of_the_broker_loses_nothing(shaky_kafka: Broker, engine: str, namespace: str) -> None:
    bus = bus_of(by(engine, shaky_kafka.url), namespace)
    seen: dict[str, list[int]] = defaultdict(list)
    acknowledged: list[int] = []
    stop = asyncio.Event()

    @bus.subscribe(ORDERS, group="billing", start="earliest", concurrency=16)
    async def handle(order: Order) -> None:
        await asyncio.sleep(0.001)
        if order["n"] not in seen[order["key"]]:
            seen[order["key"]].append(order["n"])

    async def publish() -> None:
        n = 0
        while not stop.is_set():
            await bus.publish(ORDERS, {"key": f"k{n % 5}", "n": n}, timeout=60)
            acknowledged.append(n)
            n += 1

    async with bus.serving():
        publishing = asyncio.create_task(publish())
        await until(lambda: len(acknowledged) > 100)
        await asyncio.to_thread(shaky_kafka.kill)
        await asyncio.to_thread(shaky_kafka.start)
        before = len(acknowledged)
        await until(lambda: len(acknowledged) > before + 100, 60)
        stop.set()
        await publishing
        await until(lambda: sum(map(len, seen.values())) == len(acknowledged), 60)
        await until(lambda: bus.health().ready, 30)
    assert all(numbers == sorted(numbers) for numbers in seen.values())
