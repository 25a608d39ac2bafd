"""SIGTERM under load: nothing lost, nothing twice, out within the deadline; a second signal ends at once."""

from __future__ import annotations

import asyncio
import random
import signal
from pathlib import Path

import pytest

from .conftest import ENDLESS, LEASE, Place
from .consuming import Consuming
from .oracle import Oracle
from .processes import Crew, drained, more
from .publishing import Publishing

GRACE = 20.0


@pytest.mark.parametrize("order", ["none", "key"])
async def test_sigterm_under_load(order: str, place: Place, tmp_path: Path) -> None:
    seed = 11
    dice = random.Random(seed)
    async with Crew(tmp_path / "crew") as crew:
        oracle = Oracle(crew.folder)
        oracle.published_path.touch()
        given = Consuming(
            journal=str(oracle.handled_path), order=order, lease=ENDLESS, work=0.01, failing=0.02, grace=GRACE
        )
        consumers = [await crew.consumer(place.url, given) for _ in range(2)]
        publisher = await crew.start(
            "publisher", "tests.faults.publishing",
            given=Publishing(url=place.url, journal=str(oracle.published_path), order=order, rate=1500),
        )  # fmt: skip
        for _ in range(4):
            await more(oracle, 500, *crew.members)
            await asyncio.sleep(dice.uniform(0, 0.3))
            last = oracle.look().handled[-1].pid
            busy = next(c for c in consumers if c.pid == last)
            consumers.remove(busy)
            busy.signal(signal.SIGTERM)
            assert await busy.ended() == 0, str(busy)
            assert "still running at the deadline" not in busy.said()
            consumers.append(await crew.consumer(place.url, given))
        publisher.signal(signal.SIGTERM)
        assert await publisher.ended() == 0, str(publisher)
        await drained(oracle, *crew.members)
        for consumer in consumers:
            consumer.signal(signal.SIGTERM)
        assert [await consumer.ended() for consumer in consumers] == [0, 0]
        oracle.look()
        print(f"seed {seed}: {oracle}")
        oracle.judge(ordered=order == "key", exactly_once=True)


async def test_handler_past_the_grace_is_given_back(place: Place, tmp_path: Path) -> None:
    """It is cancelled at the deadline, and its message goes to the next member at once, not after its lease."""
    async with Crew(tmp_path / "crew") as crew:
        oracle = Oracle(crew.folder)
        oracle.published_path.touch()
        slow = Consuming(journal=str(oracle.handled_path), lease=ENDLESS, work=3600, steady=True, grace=1, tell=True)
        consumer = await crew.consumer(place.url, slow)
        given = Publishing(url=place.url, journal=str(oracle.published_path), most=40)
        assert await (await crew.start("publisher", "tests.faults.publishing", given=given)).ended() == 0
        await consumer.says("begun")
        consumer.signal(signal.SIGTERM)
        assert await consumer.ended() == 0, str(consumer)
        await crew.consumer(place.url, Consuming(journal=str(oracle.handled_path), lease=ENDLESS))
        await drained(oracle, *crew.members)
        oracle.judge(ordered=True, exactly_once=True)


async def test_second_signal_ends_at_once(place: Place, tmp_path: Path) -> None:
    async with Crew(tmp_path / "crew") as crew:
        oracle = Oracle(crew.folder)
        oracle.published_path.touch()
        slow = Consuming(journal=str(oracle.handled_path), lease=LEASE, work=3600, steady=True, grace=3600, tell=True)
        consumer = await crew.consumer(place.url, slow)
        given = Publishing(url=place.url, journal=str(oracle.published_path), most=40)
        assert await (await crew.start("publisher", "tests.faults.publishing", given=given)).ended() == 0
        await consumer.says("begun")
        consumer.signal(signal.SIGTERM)
        await consumer.says("SIGTERM: draining")
        consumer.signal(signal.SIGTERM)
        assert await consumer.ended() == 128 + signal.SIGTERM  # to drain takes an hour
        await crew.consumer(place.url, Consuming(journal=str(oracle.handled_path), lease=LEASE))
        await drained(oracle, *crew.members)
        oracle.judge(ordered=True)
