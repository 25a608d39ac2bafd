"""A broker that restarts or hangs, and a member that hangs beyond its lease."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.brokers.fixtures import OwnRedis

from .conftest import LEASE, Place
from .consuming import Consuming
from .oracle import Handled, Oracle
from .processes import PATIENCE, Crew, Member, drained, more, until
from .publishing import Publishing

ROUNDS = 2


@pytest.mark.redis
@pytest.mark.parametrize("what", ["restart", "pause"])
async def test_broker_goes_away(what: str, own_redis: OwnRedis, tmp_path: Path) -> None:
    broker = own_redis()
    async with Crew(tmp_path / "crew") as crew:
        oracle = Oracle(crew.folder)
        oracle.published_path.touch()
        given = Consuming(journal=str(oracle.handled_path), lease=LEASE, work=0.01)
        consumers = [await crew.consumer(broker.url, given) for _ in range(2)]
        publisher = await crew.start(
            "publisher", "tests.faults.publishing", given=Publishing(url=broker.url, journal=str(oracle.published_path))
        )
        await more(oracle, 200, *crew.members)
        if what == "restart":
            broker.stop()
            await asyncio.sleep(1)
            broker.start()
        else:
            broker.pause()
            await asyncio.sleep(LEASE + 2)
            broker.resume()
        stored = len(oracle.look().stored)
        await more(oracle, 500, *crew.members)
        assert len(oracle.stored) > stored
        assert all(member.alive for member in (publisher, *consumers))
        publisher.signal(signal.SIGTERM)
        assert await publisher.ended() == 0
        await drained(oracle, *crew.members)
        print(oracle)
        oracle.judge(ordered=True)
        assert not oracle.failed | oracle.unsure, "the outage was shorter than the timeout of publish"


ANYWHERE = [
    *(pytest.param(name, marks=getattr(pytest.mark, name)) for name in ("sqlite", "redis", "kafka")),
    pytest.param("kafka+confluent", marks=pytest.mark.kafka),
]


@pytest.mark.parametrize("any_place", ANYWHERE, indirect=True)
async def test_zombie_harms_nobody(any_place: Place, tmp_path: Path) -> None:
    """A member that was stopped beyond its lease wakes up amid handlers: its settlements are refused."""
    place = any_place
    async with Crew(tmp_path / "crew") as crew:
        oracle = Oracle(crew.folder)
        oracle.published_path.touch()
        given = Consuming(journal=str(oracle.handled_path), lease=LEASE, work=0.02)
        zombie = await crew.consumer(place.url, given)
        publisher = await crew.start(
            "publisher",
            "tests.faults.publishing",
            given=Publishing(url=place.url, journal=str(oracle.published_path), rate=2000, at_once=500),
        )
        await more(oracle, 200, *crew.members)
        heir = await crew.consumer(place.url, given)
        for _ in range(ROUNDS):
            await freeze(zombie, place)
            begun = frozenset(oracle.look().attempted)  # by the one that stands still, or not yet
            await asyncio.sleep(LEASE + 0.5)
            await more(oracle, 500, *crew.members)
            await taken_over(oracle, begun, heir)
            zombie.signal(signal.SIGCONT)
            await more(oracle, 500, *crew.members)
            zombie, heir = heir, zombie
        publisher.signal(signal.SIGTERM)
        assert await publisher.ended() == 0
        await drained(oracle, *crew.members)
        assert all(member.alive for member in (zombie, heir))
        print(oracle)
        oracle.judge(ordered=True)
        late = stale(oracle)
        print(f"{len(late)} handlers returned after their key had gone to another member")
        assert len(late) <= ROUNDS * given.concurrency, f"a member that lost its keys began new handlers: {late[:10]}"


async def taken_over(oracle: Oracle, begun: frozenset[str], heir: Member) -> None:
    """Wait until the heir has handled all that the other may have been at: only then is what it says late."""
    await until(lambda: not begun & oracle.look().lost, "the heir takes over", PATIENCE, heir)


async def freeze(member: Member, place: Place) -> None:
    """SIGSTOP; not in the middle of a write to a file, since nobody could write until the process goes on or ends."""
    while True:
        member.signal(signal.SIGSTOP)
        if place.server is not None:
            return
        with closing(sqlite3.connect(place.url.removeprefix("sqlite:///"), timeout=0.5, isolation_level=None)) as db:
            try:
                db.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                member.signal(signal.SIGCONT)
                await asyncio.sleep(0.05)
            else:
                return


def stale(oracle: Oracle) -> list[Handled]:
    """What was handled under a fence older than one seen before for its key; it must have been handled before."""
    highest: dict[str, int] = {}
    first: set[str] = set()
    late: list[Handled] = []
    for one in oracle.handled:
        if one.fence < highest.get(one.key, 0):
            assert one.id in first, f"{one} was handled first under an old fence"
            late.append(one)
        else:
            highest[one.key] = one.fence
        first.add(one.id)
    return late
