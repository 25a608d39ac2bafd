"""One message in ten is poison, and for a while nobody takes dead letters; the consumer is killed meanwhile.

For 4 seconds by default, for a minute and also in key order with `SWITCHGEAR_FAULTS_FULL=1`.
"""

# ruff: noqa: ASYNC240  (a file is the gate)

from __future__ import annotations

import asyncio
import json
import os
import signal
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.ports import free_port

from .conftest import Place
from .jobs import GROUP, TOPIC
from .oracle import Oracle
from .poisoned import Poisoned, graves, poison
from .processes import PATIENCE, Crew, Member, more, until
from .publishing import Publishing

FULL = os.environ.get("SWITCHGEAR_FAULTS_FULL") == "1"
DOWN = 60.0 if FULL else 4.0  # seconds
WARNINGS = 30  # each second, at most, of a consumer that tries again and again


@asynccontextmanager
async def down(place: Place, gate: Path) -> AsyncIterator[None]:
    """While this lasts, no dead letter can be stored: Kafka refuses it as too large, elsewhere the driver fails."""
    if not place.url.startswith("kafka"):
        gate.touch()
        yield
        gate.unlink()
        return
    from aiokafka.admin import AIOKafkaAdminClient
    from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

    admin = AIOKafkaAdminClient(bootstrap_servers=place.url.removeprefix("kafka://"))
    await admin.start()

    async def most(size: int) -> None:
        wanted = {"max.message.bytes": str(size)}
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, graves.name, configs=wanted)])

    try:
        await most(1)
        yield
        await most(1 << 20)
    finally:
        await admin.close()


def told(port: int) -> str:
    """What `/ready` says of the subscription."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=30) as answer:
            detail = json.load(answer)["detail"]
    except urllib.error.HTTPError as error:
        detail = json.load(error)["detail"]
    return str(detail[f"{TOPIC} → {GROUP}"])


@pytest.mark.timeout(600)
@pytest.mark.parametrize("order", ["none", "key"] if FULL else ["none"])
async def test_dead_letters_cannot_be_stored(order: str, any_place: Place, tmp_path: Path) -> None:
    place, gate, buried = any_place, tmp_path / "gate", tmp_path / "buried"
    buried.touch()
    async with Crew(tmp_path / "crew") as crew:
        oracle = Oracle(crew.folder)
        oracle.published_path.touch()
        given = Poisoned(
            url=place.url, handled=str(oracle.handled_path), buried=str(buried), gate=str(gate), order=order
        )

        async def serving(what: str) -> tuple[Member, int]:
            port = free_port()
            member = await crew.start(
                what, "switchgear.cli", "run", f"tests.faults.poisoned:{what}", "--url", place.url, "--health",
                f"127.0.0.1:{port}", given=given,
            )  # fmt: skip
            await member.says("serves on")
            return member, port

        await serving("office")
        consumer, port = await serving("create")
        publisher = await crew.start(
            "publisher", "tests.faults.publishing",
            given=Publishing(url=place.url, journal=str(oracle.published_path), order=order, keys=200, rate=300),
        )  # fmt: skip
        await more(oracle, 300, *crew.members)
        await until(buried.read_text, "a dead letter is stored", PATIENCE, *crew.members)
        async with down(place, gate):
            await consumer.says("cannot be written")
            await until(has(port, graves.name), "health tells of the dead letters", 30.0, consumer)
            before = letters(buried)
            already = warnings(consumer)
            await asyncio.sleep(DOWN / 2)
            assert letters(buried) <= before, "dead letters are stored: nothing is down"
            said = (warnings(consumer) - already) / (DOWN / 2)
            await consumer.kill()  # what it has acknowledged is gone for good
            consumer, port = await serving("create")
            await consumer.says("cannot be written")
            await asyncio.sleep(DOWN / 2)
            missing = len({id for id in oracle.look().stored if poison(id)} - letters(buried))
        publisher.signal(signal.SIGTERM)
        assert await publisher.ended() == 0, str(publisher)

        def outstanding() -> set[str]:
            oracle.look()
            return {id for id in oracle.lost if not poison(id)} | {id for id in oracle.stored if poison(id)} - letters(
                buried
            )

        await until(lambda: not outstanding(), "all that is stored is handled or buried", PATIENCE, *crew.members)
        await until(lambda: told(port) == "active", "health is well again", 30.0, consumer)
        print(
            f"{oracle}; {len(letters(buried))} dead letters, {missing} of them missing at the end of {DOWN:g} s; "
            f"{said:.1f} warnings a second"
        )
        assert missing, "nothing was poison meanwhile: that proves nothing"
        assert not {id for id in letters(buried) if not poison(id)}, "buried alive"
        assert letters(buried) <= oracle.attempted
        assert said <= WARNINGS


def has(port: int, text: str) -> Callable[[], bool]:
    return lambda: text in told(port)


def letters(path: Path) -> set[str]:
    """The messages that were buried."""
    return set(path.read_text().split())


def warnings(member: Member) -> int:
    return member.said().count("cannot be written")
