"""`switchgear demo` on every transport, by its URL alone; and what it says when an invariant is broken."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from .conftest import Place
from .processes import PATIENCE, Crew, until

INVARIANTS = 5


async def demo(crew: Crew, *options: str) -> str:
    member = await crew.start("demo", "switchgear.cli", "demo", *options)
    assert await member.ended(240) == 0, str(member)
    said = member.said()
    assert said.count("ok    ") == INVARIANTS, said
    assert "BROKEN" not in said
    return said


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_demo(seed: int, place: Place, tmp_path: Path) -> None:
    async with Crew(tmp_path / "crew") as crew:
        await demo(crew, "--url", place.url, "--seed", str(seed), "--failure-rate", "0.2")


@pytest.mark.memory
@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_demo_on_memory(seed: int, tmp_path: Path) -> None:
    async with Crew(tmp_path / "crew") as crew:
        await demo(crew, "--url", "memory://", "--seed", str(seed), "--failure-rate", "0.2")


@pytest.mark.sqlite
async def test_demo_without_a_url(tmp_path: Path) -> None:
    async with Crew(tmp_path / "crew") as crew:
        await demo(crew, "--orders", "50")


@pytest.mark.sqlite
async def test_broken_invariant_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody bills an order twice behind the shop's back."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    async with Crew(tmp_path / "crew") as crew:
        member = await crew.start("demo", "switchgear.cli", "demo", "--orders", "400")
        books: list[Path] = []

        def charged() -> bool:
            books[:] = tmp_path.glob("switchgear-demo-*/shop.db")
            if not books:
                return False
            with closing(sqlite3.connect(books[0], timeout=10, isolation_level=None)) as db:
                try:
                    return bool(db.execute("INSERT INTO charges SELECT * FROM charges LIMIT 1").rowcount)
                except sqlite3.OperationalError:
                    return False  # the tables are not there yet

        await until(charged, "an order is billed", PATIENCE, member)
        assert await member.ended(240) == 1, str(member)
        assert "BROKEN  each accepted order" in member.said()
