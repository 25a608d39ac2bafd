"""Messages that wait for their time cost the app no memory, however many: neither who publishes nor who moves them on.

20,000 by default, a million with `SWITCHGEAR_FAULTS_LONG=1` (minutes for each broker).
"""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress
from pathlib import Path

import pytest

from .conftest import Place
from .due import Handling, Publishing
from .processes import Crew, until

LONG = os.environ.get("SWITCHGEAR_FAULTS_LONG") == "1"
MESSAGES, RATE = (1_000_000, 1e9) if LONG else (20_000, 4000.0)
AHEAD, SPREAD = (400.0, 100.0) if LONG else (12.0, 10.0)
"""Seconds to the first that is due, and from there to the last: longer than publishing takes."""
WATCHED = 30.0 if LONG else 3.0  # seconds in which they come before we stop looking
ALLOWED = 100 * 1024  # KiB

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]


async def test_pending_messages_cost_no_memory(any_place: Place, tmp_path: Path) -> None:
    done, published = tmp_path / "handled", tmp_path / "published"
    done.touch()
    async with Crew(tmp_path / "crew") as crew:
        consumer = await crew.start(
            "consumer", "tests.faults.due", "handle",
            given=Handling(url=any_place.url, journal=str(done), lease=30.0),
        )  # fmt: skip
        await consumer.says("serves")
        idle, began = consumer.memory("VmRSS"), time.time()
        publisher = await crew.start(
            "publisher", "tests.faults.due", "publish",
            given=Publishing(
                url=any_place.url, journal=str(published), most=MESSAGES, rate=RATE, first=began + AHEAD,
                spread=SPREAD,
            ),
        )  # fmt: skip
        most = 0
        while publisher.alive:
            with suppress(OSError, IndexError):  # it has just ended
                most = publisher.memory("VmHWM")
            await asyncio.sleep(0.1)
        assert await publisher.ended() == 0, str(publisher)
        took = time.time() - began
        waiting = consumer.memory("VmHWM")
        early = len(done.read_text().splitlines())
        assert early <= MESSAGES // 20, f"{early:,} came before all were published: too few were waiting at once"
        await asyncio.sleep(max(0.0, began + AHEAD - time.time()))
        await until(lambda: done.stat().st_size, "the first one comes", 60.0, *crew.members)
        await asyncio.sleep(WATCHED)
        moving, came = consumer.memory("VmHWM"), len(done.read_text().splitlines())
        print(
            f"{MESSAGES:,} published in {took:.0f} s by {most / 1024:.1f} MiB; who moves them on: idle "
            f"{idle / 1024:.1f} MiB, while all waited {waiting / 1024:.1f}, while {came:,} came {moving / 1024:.1f}"
        )
        assert came >= 100 * WATCHED
        assert most <= ALLOWED
        assert moving <= ALLOWED
