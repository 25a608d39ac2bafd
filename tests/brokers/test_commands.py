"""Dead letters, lag, seek and replay on real brokers, with members that run meanwhile."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from switchgear import Bus, DeadLetter, Message, Reject, Retry, Topic
from tests.brokers.fixtures import Server, not_run

from . import redis_server as recipes
from .broker import Broker, NotRun

ORDERS = Topic("orders", str, order="none", partitions=2)
ACCOUNTS = Topic("accounts", str, key=lambda body: body[0], order="key", partitions=2)


@pytest.fixture(scope="module")
def redis_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One Redis for these tests."""
    try:
        broker = Broker(recipes.redis("8"), tmp_path_factory.mktemp("redis-"))
    except NotRun as reason:
        not_run(str(reason))
        return
    broker.start()
    yield Server(broker.url, broker.version)
    broker.close()


@pytest.fixture(params=["redis", pytest.param("kafka", marks=pytest.mark.kafka)])
def url(request: pytest.FixtureRequest, namespace: str) -> str:
    if request.param == "kafka":
        pytest.importorskip("aiokafka")
    server: Server = request.getfixturevalue(f"{request.param}_broker")
    return f"{server.url}?namespace={namespace}"


async def sg(url: str, *arguments: str, code: int = 0) -> Any:
    """What a command prints as JSON; with an exit code other than 0 what it says of the error."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "switchgear.cli", *arguments, "--url", url, *(["--json"] if code == 0 else []),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(60):
        out, error = await process.communicate()
    assert process.returncode == code, error.decode()
    return json.loads(out) if code == 0 else error.decode()


class Member:
    """A bus of two groups on each of two topics, of which one group fails as long as `bad` holds."""

    def __init__(self, url: str) -> None:
        self.bus = Bus(url, name="test", config={})
        self.bad = True
        self.seen: list[str] = []
        self.others: list[str] = []
        self.buried = 0
        self.bus._observers = (self,)

        @self.bus.subscribe(ORDERS, group="billing", retry=Retry(attempts=1))
        @self.bus.subscribe(ACCOUNTS, group="book", dead_letter=DeadLetter(after="park"))
        async def handle(message: Message[str]) -> None:
            assert message.attempt == 1
            self.seen.append(message.body)
            if self.bad:
                raise Reject("no")

        @self.bus.subscribe(ORDERS, group="audit")
        @self.bus.subscribe(ACCOUNTS, group="audit")
        async def other(body: str) -> None:
            self.others.append(body)

    def count(self, event: str, topic: str, group: str | None, n: int) -> None:
        self.buried += n if event == "dead_lettered" else 0


async def until(true: Any) -> None:
    async with asyncio.timeout(30):
        while not true():  # noqa: ASYNC110  (handlers make it true)
            await asyncio.sleep(0.02)


async def test_dead_letters_are_replayed_to_a_running_group_and_some_are_left(url: str) -> None:
    member = Member(url)
    async with member.bus.serving():
        await member.bus.publish_many(ORDERS, [f"m{n}" for n in range(6)])
        await until(lambda: member.buried == 6 and len(member.others) == 6)
        letters = await sg(url, "dlq", "list", "orders")
        assert len(letters) == 6
        assert (await sg(url, "dlq", "drop", "orders", "--reason", "yes"))["dropped"] == 0
        member.bad = False
        member.seen.clear()
        assert (await sg(url, "dlq", "replay", "orders", "--until", "1h"))["replayed"] == 0
        assert (await sg(url, "dlq", "replay", "orders", "--since", "1h", "--reason", "no"))["replayed"] == 6
        await until(lambda: len(member.seen) == 6)
        assert await sg(url, "dlq", "list", "orders") == []
        member.bad = True
        await member.bus.publish(ORDERS, "m6")
        await until(lambda: member.buried == 7)
        assert len(await sg(url, "dlq", "list", "orders")) == 1
    assert sorted(member.seen) == [f"m{n}" for n in range(7)]
    assert sorted(member.others) == [f"m{n}" for n in range(7)]  # no other group saw any of it


async def test_a_parked_key_is_emptied_in_order_while_more_of_it_arrives(url: str) -> None:
    member = Member(url)
    async with member.bus.serving():
        await member.bus.publish_many(ACCOUNTS, [f"a{n}" for n in range(20)])
        await until(lambda: member.buried == 20)
        member.bad = False
        member.seen.clear()
        replaying = asyncio.ensure_future(sg(url, "dlq", "replay", "accounts", "--key", "a"))
        number = 20
        while number < 26:  # while it is emptied, and in part before it begins
            await member.bus.publish(ACCOUNTS, f"a{number}")
            number += 1
            await asyncio.sleep(1.0)
        summary = await replaying
        await until(lambda: len(set(member.seen)) == number)
        assert summary["freed"] == ["a"]
        await member.bus.publish(ACCOUNTS, f"a{number}")
        await until(lambda: f"a{number}" in member.seen)
    assert list(dict.fromkeys(member.seen)) == [f"a{n}" for n in range(number + 1)]


async def test_lag_seek_and_a_range(url: str) -> None:
    member = Member(url)
    member.bad = False
    async with member.bus.serving():
        await member.bus.publish_many(ORDERS, [f"m{n}" for n in range(10)])
        await until(lambda: len(member.seen) == 10 and len(member.others) == 10)
        refused = await sg(url, "seek", "orders", "-g", "billing", "--to", "earliest", code=1)
        assert "stop it" in refused
        assert (await sg(url, "replay", "orders", "-g", "billing", "--from", "earliest", "--dry-run"))["found"] == 10
        assert (await sg(url, "replay", "orders", "-g", "billing", "--from", "1h"))["copied"] == 10
        await until(lambda: len(member.seen) == 20)
        assert len(member.others) == 10

    async def lag() -> int:
        found: list[dict[str, Any]] = await sg(url, "lag", "orders", "-g", "billing")
        return int(found[0]["lag"])

    assert await lag() == 0
    await sg(url, "seek", "orders", "-g", "billing", "--to", "earliest", "--dry-run")
    assert await lag() == 0
    moved = await sg(url, "seek", "orders", "-g", "billing", "--to", "earliest")
    assert sum(one["after"] for one in moved["lag"]) == await lag() == 10
    position = "1:1" if url.startswith("kafka") else "0-1"
    moved = await sg(url, "seek", "orders", "-g", "billing", "--to", position)
    if url.startswith("kafka"):
        assert {one["partition"]: one["before"] - one["after"] for one in moved["lag"]} == {"0": 0, "1": 1}
    else:
        assert await lag() == 10
    await sg(url, "seek", "orders", "-g", "billing", "--to", "new")
    assert await lag() == 0
