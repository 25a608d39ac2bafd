"""Key order on Redis has one active member a group: the other stands by, says so, and takes over."""

from __future__ import annotations

import asyncio
import json
import signal
import urllib.request
from pathlib import Path

import pytest

from tests.brokers.fixtures import OwnRedis
from tests.support.ports import free_port

from .conftest import ENDLESS, LEASE
from .consuming import Consuming
from .oracle import Oracle, now
from .processes import PATIENCE, Crew, Member, drained, until
from .publishing import Publishing

pytestmark = pytest.mark.redis


def health(port: int) -> dict[str, str]:
    """What `/ready` tells of each subscription; an HTTP error when it is not ready."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=60) as answer:
        return dict(json.load(answer)["detail"])


async def test_standby_takes_over(own_redis: OwnRedis, tmp_path: Path) -> None:
    url = own_redis().url
    async with Crew(tmp_path / "crew") as crew:
        oracle = Oracle(crew.folder)
        oracle.published_path.touch()

        async def consumer(lease: float) -> tuple[Member, int]:
            given = Consuming(journal=str(oracle.handled_path), lease=lease, work=0.01)
            port = free_port()
            return await crew.consumer(url, given, "--health", f"127.0.0.1:{port}"), port

        async def first_of(member: Member, since: float) -> float:
            """Seconds until the first handler of `member` returned."""
            await until(
                lambda: any(h.pid == member.pid for h in oracle.look().handled),
                f"{member.pid} works",
                PATIENCE,
                *crew.members,
            )
            return next(h.at for h in oracle.handled if h.pid == member.pid) - since

        active, port = await consumer(LEASE)
        publisher = await crew.start(
            "publisher", "tests.faults.publishing", given=Publishing(url=url, journal=str(oracle.published_path))
        )
        await until(lambda: oracle.look().handled, "something is handled", PATIENCE, *crew.members)
        standby, standby_port = await consumer(ENDLESS)
        await standby.says("standby")
        assert (await asyncio.to_thread(health, port))["jobs → crew"] == "active"
        assert "standby" in (await asyncio.to_thread(health, standby_port))["jobs → crew"]
        explained = await crew.start(
            "explain", "switchgear.cli", "explain", "tests.faults.consuming:create", "--url", url,
            given=Consuming(journal=str(oracle.handled_path)),
        )  # fmt: skip
        assert await explained.ended() == 0, str(explained)
        assert "standby" in explained.said()

        died = now()
        await active.kill()
        took = await first_of(standby, died)
        print(f"takeover after a death: {took:.2f} s")

        third, _ = await consumer(ENDLESS)
        await third.says("standby")
        standby.signal(signal.SIGTERM)
        assert await standby.ended() == 0, str(standby)
        left = now()
        took = await first_of(third, left)
        print(f"takeover after a clean leave, before the lease ended: {took:.2f} s")

        publisher.signal(signal.SIGTERM)
        assert await publisher.ended() == 0
        await drained(oracle, *crew.members)
        print(oracle)
        oracle.judge(ordered=True)
        again = [h for h in oracle.handled if h.id in oracle.duplicates and h.pid == third.pid]
        assert not again, f"handled again after a clean leave: {again[:5]}"
        fences = [max(h.fence for h in oracle.handled if h.pid == m.pid) for m in (active, standby, third)]
        assert fences == sorted(set(fences)), f"fences must rise with each handover: {fences}"
