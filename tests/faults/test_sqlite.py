"""What only a file can do: fill up, be shared by processes, wake them up, cost nothing while nothing happens."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import statistics
from contextlib import closing
from pathlib import Path

import pytest

from switchgear import Bus, NotSent

from .conftest import ENDLESS
from .consuming import Consuming
from .jobs import Job, jobs
from .oracle import Oracle, now
from .processes import Crew, drained
from .publishing import Publishing

pytestmark = pytest.mark.sqlite

SAMPLES = 500
FULL = os.environ.get("SWITCHGEAR_FAULTS_FULL") == "1"
IDLE = 10.0  # seconds


async def test_many_processes_on_one_file(tmp_path: Path) -> None:
    """Three publishers and three consumers; each publisher has keys of its own."""
    url = f"sqlite:///{tmp_path / 'broker.db'}"
    async with Crew(tmp_path / "crew") as crew:
        handled = tmp_path / "handled"
        oracles: list[Oracle] = []
        for n in range(3):
            folder = tmp_path / f"publisher-{n}"
            folder.mkdir()
            oracle = Oracle(folder)
            oracle.published_path.touch()
            oracle.handled_path.symlink_to(handled)
            oracles.append(oracle)
            await crew.consumer(url, Consuming(journal=str(handled), lease=ENDLESS, failing=0.01))
        publishers = [
            await crew.start(
                "publisher", "tests.faults.publishing",
                given=Publishing(
                    url=url, journal=str(oracle.published_path), prefix=f"p{n}k", rate=3000, most=10_000, at_once=300
                ),
            )
            for n, oracle in enumerate(oracles)
        ]  # fmt: skip
        for publisher in publishers:
            assert await publisher.ended(240) == 0, str(publisher)
        together = Oracle(tmp_path)
        for oracle in oracles:
            await drained(oracle, *crew.members)
            together.attempted |= oracle.attempted
            together.stored |= oracle.stored
        together.look()
        print(together)
        together.judge(ordered=True, exactly_once=True)
        assert len(together.stored) == 30_000
        assert len(together.pids) == 3


async def test_full_file_and_recovery(tmp_path: Path) -> None:
    """Past `max_page_count` publishing fails and says why; consuming what is there makes it possible again."""
    path = tmp_path / "broker.db"
    url = f"sqlite:///{path}?retention=0"
    topic = jobs("key")
    async with Bus(url, name="publisher") as bus:
        await bus.publish(topic, Job("k0/0", "k0"))
    with closing(sqlite3.connect(path)) as db:
        (pages,) = db.execute("PRAGMA page_count").fetchone()
    oracle = Oracle(tmp_path)
    stored = {"k0/0"}
    async with Bus(f"{url}&max_page_count={pages + 200}", name="publisher") as bus:
        failure: Exception | None = None
        for n in range(1, 10_000):
            try:
                await bus.publish(topic, Job(f"k0/{n}", "k0", "x" * 2000), timeout=3)
            except NotSent as error:
                failure = error
                break
            stored.add(f"k0/{n}")
        assert failure is not None, "it never became full"
        assert "max_page_count" in str(failure)
        assert len(stored) > 100
        with pytest.raises(NotSent, match="full"):
            await bus.publish(topic, Job("k1/0", "k1", "x" * 2000), timeout=6)  # longer than any back-off
    async with Crew(tmp_path / "crew") as crew:
        oracle.expected = set(stored)
        given = Consuming(journal=str(oracle.handled_path), lease=ENDLESS)
        await crew.consumer(f"{url}&max_page_count={pages + 200}", given)
        await drained(oracle, *crew.members)
        oracle.judge(ordered=True, exactly_once=True)
    async with Bus(f"{url}&max_page_count={pages + 400}", name="publisher") as bus:  # somebody made room
        for n in range(5):
            await bus.publish(topic, Job(f"k2/{n}", "k2", "x" * 2000))
            oracle.expected.add(f"k2/{n}")
    async with Crew(tmp_path / "crew") as crew:
        await crew.consumer(url, Consuming(journal=str(oracle.handled_path), lease=ENDLESS))
        await drained(oracle, *crew.members)
    oracle.judge(ordered=True, exactly_once=True)


async def test_wakes_up_other_processes(tmp_path: Path) -> None:
    """From the commit in this process to the handler in another one."""
    url = f"sqlite:///{tmp_path / 'broker.db'}"
    topic = jobs("none")
    async with Crew(tmp_path / "crew") as crew:
        oracle = Oracle(crew.folder)
        await crew.consumer(url, Consuming(journal=str(oracle.handled_path), order="none", lease=ENDLESS))
        committed: dict[str, float] = {}
        async with Bus(url, name="publisher") as bus:
            for n in range(SAMPLES):
                id = f"k{n}/{n}"
                await bus.publish(topic, Job(id, "k"))
                committed[id] = now()
                oracle.expected.add(id)
                await asyncio.sleep(0.01 + (n % 10) / 1000)
        await drained(oracle, *crew.members)
        oracle.judge(ordered=False, exactly_once=True)
        latencies = sorted((h.at - committed[h.id]) * 1000 for h in oracle.handled)
        p50, p99 = statistics.median(latencies), latencies[int(SAMPLES * 0.99) - 1]
        print(f"wake-up of another process, ms: p50 {p50:.1f}, p99 {p99:.1f}, most {latencies[-1]:.1f}; n={SAMPLES}")
        assert p50 <= 250, "who is not woken looks once a second"
        if FULL:  # on a machine that does nothing else
            assert p99 <= 50


async def test_costs_nothing_while_idle(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'broker.db'}"
    async with Crew(tmp_path / "crew") as crew:
        member = await crew.consumer(url, Consuming(journal=str(tmp_path / "handled")))
        await asyncio.sleep(1)
        before, began = member.cpu, now()
        await asyncio.sleep(IDLE)
        took = now() - began
        share = (member.cpu - before) / took
        print(f"idle: {share:.2%} of a core over {took:.0f} s")
        assert share <= 0.02
