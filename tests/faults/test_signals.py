"""SIGTERM under load: nothing lost, nothing twice, out within the deadline; a second signal ends at once."""

from __future__ import annotations

import asyncio
import random
import signal
from pathlib import Path

import pytest

from .conftest import LEASE, Place
from .consuming import Consuming
from .oracle import Oracle, now
from .processes import Crew, drained, more
from .publishing import Publishing

GRACE = 5.0


@pytest.mark.parametrize("order", ["none", "key"])
async def test_sigterm_under_load(order: str, place: Place, tmp_path: Path) -> None:
    seed = 11
    dice = random.Random(seed)
    async with Crew(tmp_path / "crew") as crew:
        oracle = Oracle(crew.folder)
        oracle.published_path.touch()
        given = Consuming(
            journal=str(oracle.handled_path), order=order, lease=LEASE, work=0.01, failing=0.02, grace=GRACE
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
            assert await busy.ended(GRACE + 1) == 0, str(busy)
            consumers.append(await crew.consumer(place.url, given))
        publisher.signal(signal.SIGTERM)
        assert await publisher.ended() == 0, str(publisher)
        await drained(oracle, *crew.members)
        for consumer in consumers:
            consumer.signal(signal.SIGTERM)
        assert [await consumer.ended(GRACE + 1) for consumer in consumers] == [0, 0]
        oracle.look()
        print(f"seed {seed}: {oracle}")
        oracle.judge(ordered=order == "key", exactly_once=True)


async def test_handler_past_the_grace_is_given_back(place: Place, tmp_path: Path) -> None:
    """It is cancelled at the deadline, and its message goes to the next member at once, not after its lease."""
    async with Crew(tmp_path / "crew") as crew:
        oracle = Oracle(crew.folder)
        oracle.published_path.touch()
        slow = Consuming(journal=str(oracle.handled_path), lease=60, work=60, steady=True, grace=1)
        consumer = await crew.consumer(place.url, slow)
        given = Publishing(url=place.url, journal=str(oracle.published_path), most=40)
        assert await (await crew.start("publisher", "tests.faults.publishing", given=given)).ended() == 0
        await asyncio.sleep(0.5)  # some are being handled; it does not matter which
        consumer.signal(signal.SIGTERM)
        assert await consumer.ended(1 + 2) == 0, str(consumer)
        await crew.consumer(place.url, Consuming(journal=str(oracle.handled_path), lease=60))
        await drained(oracle, *crew.members)
        oracle.judge(ordered=True, exactly_once=True)


async def test_second_signal_ends_at_once(place: Place, tmp_path: Path) -> None:
    async with Crew(tmp_path / "crew") as crew:
        oracle = Oracle(crew.folder)
        oracle.published_path.touch()
        slow = Consuming(journal=str(oracle.handled_path), lease=LEASE, work=60, steady=True, grace=30)
        consumer = await crew.consumer(place.url, slow)
        given = Publishing(url=place.url, journal=str(oracle.published_path), most=40)
        assert await (await crew.start("publisher", "tests.faults.publishing", given=given)).ended() == 0
        await asyncio.sleep(0.5)
        consumer.signal(signal.SIGTERM)
        await consumer.says("SIGTERM: draining")
        began = now()
        consumer.signal(signal.SIGTERM)
        assert await consumer.ended(5) == 128 + signal.SIGTERM
        assert now() - began < 0.5
        await crew.consumer(place.url, Consuming(journal=str(oracle.handled_path), lease=LEASE))
        await drained(oracle, *crew.members)
        oracle.judge(ordered=True)
