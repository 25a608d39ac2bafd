"""`switchgear demo`: the shop runs, its books are right, and wrong ones show."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from typer.testing import CliRunner

import switchgear.demo.store
from switchgear import Message
from switchgear.cli.app import app
from switchgear.demo.flaky import Broken, flaky


def demo(*options: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["demo", "--orders", "60", *options])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize("seed", ["1", "2"])
def test_on_memory(seed: str) -> None:
    code, out, errors = demo("--url", "memory://", "--failure-rate", "0.4", "--seed", seed)
    assert code == 0, out + errors
    assert out.count("ok  ") == 5
    assert "60 published = 54 orders + 6 dead letters" in out


def test_with_two_processes_on_a_file(tmp_path: Path) -> None:
    code, out, errors = demo("--url", f"sqlite:///{tmp_path / 'broker.db'}", "--failure-rate", "0.3")
    assert code == 0, out + errors
    assert out.count("ok  ") == 5


def test_it_fails_when_the_books_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(self: switchgear.demo.store.Store, order_id: str, amount: int) -> None:
        with self.write() as db:  # charges, and keeps no mark of it
            db.execute("INSERT INTO charges VALUES (?, ?)", (order_id, amount))

    monkeypatch.setattr(switchgear.demo.store.Store, "charge", forgetful)
    code, out, _ = demo("--url", "memory://", "--failure-rate", "0.6")
    assert code == 1
    assert "BROKEN  each accepted order is billed exactly once: wrong for p-" in out


def test_wrong_usage() -> None:
    assert demo("--failure-rate", "1")[0] == 2
    code, _, errors = demo("--url", "memory://", "--workers", "2")
    assert code == 2
    assert "lives within one process" in errors
    code, _, errors = demo("--url", "nonsense://")
    assert code == 2
    assert "no transport serves" in errors


async def test_flaky_breaks_as_often_before_as_after() -> None:
    done: list[int] = []
    broke: list[int] = []

    async def handle(message: Message) -> object:
        done.append(1)
        return None

    seed = str(random.Random(3).random())
    broken = flaky(0.5, seed, lambda: broke.append(1))(handle)
    failed = 0
    for _ in range(1000):
        try:
            await broken(Message())
        except Broken:
            failed += 1
    assert failed == len(broke)
    assert 400 < failed < 600
    before = 1000 - len(done)
    assert 150 < before < 350
    assert 150 < failed - before < 350
