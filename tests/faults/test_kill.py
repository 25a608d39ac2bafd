"""SIGKILL at any moment: nothing acknowledged is lost, and keys keep their order."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
from pathlib import Path

import pytest

from .conftest import LEASE, Place, Places
from .consuming import Consuming
from .oracle import Oracle
from .processes import PATIENCE, Crew, Member, drained, until
from .publishing import Publishing

LANES, KILLS = 4 if os.environ.get("SWITCHGEAR_FAULTS_FULL") == "1" else 2, 5
"""10 kills of each kind: five in a row, with key order and without at once; with `SWITCHGEAR_FAULTS_FULL=1` 20."""


class Scene:
    """A publisher and two consumers on one broker."""

    def __init__(self, place: Place, crew: Crew, order: str, seed: int) -> None:
        self.place, self.crew, self.order, self.dice = place, crew, order, random.Random(seed)
        self.oracle = Oracle(crew.folder)
        self.publisher: Member
        self.consumers: list[Member] = []

    async def publish(self) -> None:
        self.publisher = await self.crew.start(
            "publisher", "tests.faults.publishing",
            given=Publishing(url=self.place.url, journal=str(self.oracle.published_path), order=self.order),
        )  # fmt: skip

    async def consume(self) -> Member:
        given = Consuming(journal=str(self.oracle.handled_path), order=self.order, lease=LEASE, work=0.02, failing=0.02)
        member = await self.crew.consumer(self.place.url, given)
        self.consumers.append(member)
        return member

    async def begin(self) -> None:
        self.oracle.published_path.touch()
        await asyncio.gather(self.publish(), self.consume(), self.consume())
        await self.moving()

    async def moving(self) -> None:
        """Wait until something more is stored and handled."""
        self.oracle.look()
        stored, seen = len(self.oracle.stored), len(self.oracle.seen)
        await until(
            lambda: len(self.oracle.look().stored) > stored and len(self.oracle.seen) > seen,
            f"messages are stored and handled again: {self.oracle}", PATIENCE, *self.crew.members,
        )  # fmt: skip

    async def kill_consumer(self) -> None:
        """The one that handled last, so that on brokers with one active member it is that one."""
        last = self.oracle.look().handled[-1].pid
        victim = next((c for c in self.consumers if c.pid == last and c.alive), self.consumers[0])
        await victim.kill()
        self.consumers.remove(victim)
        await self.consume()

    async def kill_publisher(self) -> None:
        await self.publisher.kill()
        await self.publish()

    async def kill_broker(self) -> None:
        server = self.place.server
        if server is None:  # the processes that have the file open are the broker
            await asyncio.gather(*(member.kill() for member in (self.publisher, *self.consumers)))
            self.consumers.clear()
            await asyncio.gather(self.publish(), self.consume(), self.consume())
            return
        server.kill()
        await asyncio.sleep(self.dice.uniform(0, 0.5))
        server.start()

    async def finish(self) -> None:
        """Let the publisher end and the consumers handle the rest."""
        self.publisher.signal(signal.SIGTERM)
        assert await self.publisher.ended() == 0
        await drained(self.oracle, *self.crew.members)
        print(self.oracle)
        self.oracle.judge(ordered=self.order == "key")


@pytest.mark.parametrize("victim", ["consumer", "publisher", "broker"])
async def test_sigkill(victim: str, places: Places, tmp_path: Path) -> None:
    async def run(lane: int) -> None:
        seed = 1000 * lane + 7
        async with Crew(tmp_path / f"lane-{lane}") as crew:
            scene = Scene(places(), crew, "none" if lane == LANES - 1 else "key", seed)
            try:
                await scene.begin()
                for _ in range(KILLS):
                    await asyncio.sleep(scene.dice.uniform(0.1, 1.5))
                    await getattr(scene, f"kill_{victim}")()
                    if victim != "consumer":
                        await scene.moving()
                await scene.finish()
            except BaseException as error:
                error.add_note(f"seed {seed}, order {scene.order}: {scene.oracle}")
                raise
            intact(scene.place)

    await asyncio.gather(*map(run, range(LANES)))


def intact(place: Place) -> None:
    """The file is whole, whoever died in the middle of writing."""
    if place.server is None:
        with sqlite3.connect(place.url.removeprefix("sqlite:///")) as db:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        db.close()
