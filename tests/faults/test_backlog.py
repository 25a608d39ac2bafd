"""A large backlog and slow handlers: memory stays flat, also while keys are held by retries.

By default 100,000 messages and 6 s; `SWITCHGEAR_FAULTS_FULL=1` takes a million and 60 s.
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import msgspec
import pytest

from .conftest import Place
from .consuming import Consuming
from .oracle import Oracle, now
from .processes import Crew, more

FULL = os.environ.get("SWITCHGEAR_FAULTS_FULL") == "1"
MESSAGES, SECONDS = (1_000_000, 60) if FULL else (100_000, 6)
ENOUGH = SECONDS * 500  # messages handled before memory is looked at
KEYS, SIZE = 1000, 256
ALLOWED = 50 * 1024  # KiB over idle

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def fill(path: Path) -> None:
    with path.open("w") as file:
        for n in range(MESSAGES):
            head = f'{{"id":"k{n % KEYS}/{n}","key":"k{n % KEYS}","pad":"'
            file.write(head + "x" * (SIZE - len(head) - 2) + '"}\n')


async def test_memory_stays_flat(place: Place, tmp_path: Path) -> None:
    file = tmp_path / "backlog.jsonl"
    fill(file)
    async with Crew(tmp_path / "crew") as crew:
        oracle = Oracle(crew.folder)
        work = Consuming(
            journal=str(oracle.handled_path), group="idle", lease=30, concurrency=16, work=0.01, steady=True, grace=3
        )
        waiting = await crew.consumer(place.url, work)
        await asyncio.sleep(1)
        idle = waiting.memory("VmRSS")
        await waiting.kill()
        publisher = await crew.start(
            "publish", "switchgear.cli", "publish", "jobs", "--file", str(file), "--key-field", "key", "--json",
            "--url", place.url,
        )  # fmt: skip
        assert await publisher.ended(600) == 0, str(publisher)
        assert json.loads(publisher.said().strip().splitlines()[-1])["stored"] == MESSAGES
        for group, stuck in (("plain", 0.0), ("held", 0.01)):
            given = msgspec.structs.replace(work, group=group, stuck=stuck)
            before = len(oracle.look().handled)
            consumer = await crew.consumer(place.url, given)
            began = now()
            await asyncio.sleep(SECONDS)
            await more(oracle, max(0, ENOUGH - len(oracle.look().handled) + before), consumer)
            peak = consumer.memory("VmHWM")
            handled, took = len(oracle.look().handled) - before, now() - began
            await consumer.kill()
            print(
                f"{MESSAGES:,} messages, {stuck:.0%} of the keys held: idle {idle / 1024:.1f} MiB, peak "
                f"{peak / 1024:.1f} MiB (+{(peak - idle) / 1024:.1f}), {handled / took:,.0f} messages/s"
            )
            assert ("Broken" in consumer.said()) == bool(stuck), "keys are held when and only when they are to be"
            assert peak - idle <= ALLOWED
