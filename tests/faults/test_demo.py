"""`switchgear demo` on every transport, by its URL alone, also while the broker is killed and restarted; and what it
says when an invariant is broken."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.brokers.fixtures import OwnRedis
from tests.brokers.kafka_fixtures import OwnKafka

from .conftest import Place
from .processes import PATIENCE, Crew, Member, until

INVARIANTS = 5
FULL = os.environ.get("SWITCHGEAR_FAULTS_FULL") == "1"
ORDERS = 4000 if FULL else 1500
"""Where the broker is killed: work for some seconds."""


async def demo(crew: Crew, *options: str) -> str:
    member = await crew.start("demo", "switchgear.cli", "demo", *options)
    return await closed(member)


async def closed(member: Member) -> str:
    """What it said, once it has ended with its books in order."""
    assert await member.ended(240) == 0, str(member)
    said = member.said()
    assert said.count("ok    ") == INVARIANTS, said
    assert "BROKEN" not in said
    return said


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_demo(seed: int, place: Place, tmp_path: Path) -> None:
    async with Crew(tmp_path / "crew") as crew:
        await demo(crew, "--url", place.url, "--seed", str(seed), "--failure-rate", "0.2")


@pytest.mark.memory
@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_demo_on_memory(seed: int, tmp_path: Path) -> None:
    async with Crew(tmp_path / "crew") as crew:
        await demo(crew, "--url", "memory://", "--seed", str(seed), "--failure-rate", "0.2")


@pytest.mark.kafka
async def test_demo_on_kafka(own_kafka: OwnKafka, tmp_path: Path) -> None:
    url = own_kafka().url
    for seed in (1, 2, 3) if FULL else (1,):
        async with Crew(tmp_path / f"crew-{seed}") as crew:
            await demo(crew, "--url", url, "--seed", str(seed), "--failure-rate", "0.2")


@pytest.mark.parametrize(
    "broker", [pytest.param("redis", marks=pytest.mark.redis), pytest.param("kafka", marks=pytest.mark.kafka)]
)
async def test_demo_while_the_broker_is_killed_and_restarted(
    broker: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start: OwnRedis | OwnKafka = request.getfixturevalue(f"own_{broker}")
    server, seed = start(), 17
    dice = random.Random(seed)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    async with Crew(tmp_path / "crew") as crew:
        options = ("--url", server.url, "--failure-rate", "0.2", "--orders", str(ORDERS))
        shop = await crew.start("demo", "switchgear.cli", "demo", *options)
        for end, share in ((server.kill, 0.05), (server.stop, 0.35), (server.kill, 0.65)):
            bills = ORDERS * dice.uniform(share, share + 0.1)
            await until(charged(tmp_path, bills), f"{bills:.0f} orders are billed", PATIENCE, shop)
            assert shop.alive, f"it was over before the broker: {shop}"
            await asyncio.to_thread(end)
            await asyncio.sleep(dice.uniform(0.0, 2.0))
            await asyncio.to_thread(server.start)
        print(f"seed {seed}: {(await closed(shop)).splitlines()[-6:]}")


def charged(folder: Path, bills: float) -> Callable[[], bool]:
    """Whether so many orders are billed in the books of the shop below the folder."""

    def look() -> bool:
        for book in folder.glob("switchgear-demo-*/shop.db"):
            with closing(sqlite3.connect(book, timeout=10)) as db:
                try:
                    return bool(db.execute("SELECT count(*) FROM charges").fetchone()[0] >= bills)
                except sqlite3.OperationalError:
                    return False  # the tables are not there yet
        return False

    return look


@pytest.mark.sqlite
async def test_demo_without_a_url(tmp_path: Path) -> None:
    async with Crew(tmp_path / "crew") as crew:
        await demo(crew, "--orders", "50")


@pytest.mark.sqlite
async def test_broken_invariant_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody bills an order twice behind the shop's back."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    async with Crew(tmp_path / "crew") as crew:
        member = await crew.start("demo", "switchgear.cli", "demo", "--orders", "400")
        books: list[Path] = []

        def charged() -> bool:
            books[:] = tmp_path.glob("switchgear-demo-*/shop.db")
            if not books:
                return False
            with closing(sqlite3.connect(books[0], timeout=10, isolation_level=None)) as db:
                try:
                    return bool(db.execute("INSERT INTO charges SELECT * FROM charges LIMIT 1").rowcount)
                except sqlite3.OperationalError:
                    return False  # the tables are not there yet

        await until(charged, "an order is billed", PATIENCE, member)
        assert await member.ended(240) == 1, str(member)
        assert "BROKEN  each accepted order" in member.said()
