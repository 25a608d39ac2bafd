"""Lag, seek, replay and the differences of topics on the command line, over a SQLite file."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from switchgear import Bus, Message, Topic

from .conftest import Run, beside

URL = "sqlite:///broker.db"
ORDERS = Topic("orders", str, order="none")


def serve(seen: list[str], number: int, group: str = "billing") -> Bus:
    bus = Bus(URL, name="test")

    @bus.subscribe(ORDERS, group=group, start="earliest")
    async def handle(message: Message[str]) -> None:
        seen.append(message.body)

    return bus


def handled(number: int, *, publish: int = 0, group: str = "billing") -> list[str]:
    async def main() -> list[str]:
        seen: list[str] = []
        bus = serve(seen, number, group)
        async with bus.serving(), asyncio.timeout(20):
            await bus.publish_many(ORDERS, [str(n) for n in range(publish)])
            while len(seen) < number:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return seen

    return asyncio.run(main())


def lags(sg: Run, *arguments: str) -> dict[tuple[str, str], int]:
    result = sg("lag", *arguments, "--json")
    assert result.exit_code == 0, result.output
    return {(one["topic"], one["group"]): one["lag"] for one in json.loads(result.stdout)}


def test_lag_and_seek(sg: Run) -> None:
    handled(4, publish=4)
    handled(4, group="audit")
    assert lags(sg) == {("orders", "audit"): 0, ("orders", "billing"): 0}
    dry = sg("seek", "orders", "--group", "billing", "--to", "earliest", "--dry-run")
    assert dry.exit_code == 0
    assert lags(sg) == {("orders", "audit"): 0, ("orders", "billing"): 0}
    moved = sg("seek", "orders", "--group", "billing", "--to", "earliest")
    assert "all 0 4" in " ".join(moved.stdout.split())
    assert lags(sg, "orders") == {("orders", "audit"): 0, ("orders", "billing"): 4}
    assert "orders billing total 4" in " ".join(sg("lag").stdout.split())
    assert handled(4) == ["0", "1", "2", "3"]
    for to, expected in (("3", 2), ("new", 0), ("1h", 4), ("2020-01-01", 4)):
        assert sg("seek", "orders", "-g", "billing", "--to", to).exit_code == 0
        assert lags(sg, "orders", "-g", "billing") == {("orders", "billing"): expected}, to


def test_seek_refuses_a_running_group_and_what_is_not_there(sg: Run) -> None:
    async def main() -> Any:
        async with serve([], 0).serving():
            return await beside("seek", "orders", "-g", "billing", "--to", "earliest")

    result = asyncio.run(main())
    assert result.returncode == 1
    assert "stop it" in result.stderr
    assert sg("seek", "orders", "-g", "nobody", "--to", "new").exit_code == 1
    assert sg("seek", "cats", "-g", "billing", "--to", "new").exit_code == 1
    assert sg("seek", "orders", "-g", "billing", "--to", "yesterday").exit_code == 2
    assert sg("lag", "cats").exit_code == 1
    assert sg("lag", "-g", "nobody").exit_code == 1


def test_a_range_reaches_one_running_group(sg: Run) -> None:
    handled(4, publish=4)
    handled(4, group="audit")

    async def main() -> tuple[list[str], list[str]]:
        mine: list[str] = []
        other: list[str] = []
        async with serve(mine, 0).serving(), serve(other, 0, "audit").serving(), asyncio.timeout(20):
            dry = await beside("replay", "orders", "-g", "billing", "--from", "earliest", "--dry-run")
            assert dry.stdout == "4 would be copied to group billing\n"
            result = await beside("replay", "orders", "-g", "billing", "--from", "1h")
            assert result.returncode == 0, result.stderr
            assert result.stdout == "4 copied to group billing\n"
            assert "out of order" in result.stderr
            while len(mine) < 4:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return mine, other

    mine, other = asyncio.run(main())
    assert sorted(mine) == ["0", "1", "2", "3"]
    assert other == []
    none = sg("replay", "orders", "-g", "billing", "--from", "earliest", "--until", "1d")
    assert none.stdout == "0 copied to group billing\n"


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("orders", "-g", "nobody", "--from", "earliest"), 1, "no group 'nobody' reads"),
        (("cats", "-g", "billing", "--from", "earliest"), 1, "no topic 'cats'"),
        (("orders", "-g", "billing", "--from", "new"), 2, "--from new"),
        (("orders", "--from", "earliest"), 2, "--group"),
    ],
)
def test_replay_refuses(sg: Run, arguments: tuple[str, ...], code: int, text: str) -> None:
    handled(1, publish=1)
    result = sg("replay", *arguments)
    assert result.exit_code == code
    assert text in result.stderr


def test_replay_on_a_transport_that_cannot_be_read_names_the_alternative(
    sg: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    handled(1, publish=1)
    monkeypatch.setattr("switchgear.letters.Browsable", bytes)  # which no transport is
    result = sg("replay", "orders", "-g", "billing", "--from", "earliest")
    assert result.exit_code == 2
    assert "switchgear seek" in result.stderr


def test_topics_that_differ_from_what_a_program_declares(sg: Run, here: Path) -> None:
    (here / "sg_shop.py").write_text(
        "from switchgear import Bus, Topic\n"
        f"bus = Bus({URL!r})\n"
        "@bus.subscribe(Topic('orders', str, order='none', retention=60), group='billing')\n"
        "async def bill(order: str) -> None: ...\n"
    )
    result = sg("topics", "--diff", "sg_shop:bus")
    assert result.exit_code == 1
    assert "orders exists True False" in " ".join(result.stdout.split())
    assert "orders billing exists True False" in " ".join(result.stdout.split())
    assert sg("topics", "cats", "--diff", "sg_shop:bus").exit_code == 0
    assert sg("provision", "sg_shop:bus").exit_code == 0
    assert sg("topics", "--diff", "sg_shop:bus").exit_code == 0
