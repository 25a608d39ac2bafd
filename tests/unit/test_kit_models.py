"""The kit's models: programs are made up from a seed, made short, and printed as code that fails again."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from hypothesis import strategies as st

from switchgear.errors import ConfigurationError
from switchgear_conformance.models.groups import Groups
from switchgear_conformance.models.play import Program, made_up, program, step
from switchgear_conformance.models.queue import Queue
from switchgear_conformance.models.replay import replay
from switchgear_conformance.models.shorten import shorten, simpler
from switchgear_conformance.mutants.table import mutant
from switchgear_conformance.schemes import installed

BUG = "loses-what-was-extended"
HARNESS = f"""
from dataclasses import dataclass, replace
from switchgear_conformance.harness import harness
from switchgear_conformance.mutants.plugin import mutant_url

@dataclass
class Place:
    url: str = mutant_url({BUG!r}, "memory://broken")
    version: str = "0"
    def close(self): pass

broken = replace(harness("memory"), name={BUG!r}, start=lambda setup: Place())
"""


@pytest.fixture
def broken(tmp_path: Path) -> Generator[None]:
    """A harness of the bug's name, as an installed package brings it."""
    (tmp_path / "broken_harness.py").write_text(HARNESS)
    info = tmp_path / "broken_harness-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-harness\nVersion: 0\n")
    (info / "entry_points.txt").write_text(f"[switchgear.harnesses]\n{BUG} = broken_harness:broken\n")
    with installed(tmp_path):
        importlib.invalidate_caches()
        yield
    sys.modules.pop("broken_harness", None)


def test_what_a_failed_model_prints_fails_again(broken: None) -> None:
    (failed,) = [r for r in mutant(BUG, numbers={75}, shorten=True).results if r.id == "75.driver"]
    code = failed.detail[failed.detail.index("from switchgear_conformance.models.queue") :]
    steps = [line.strip() for line in code.splitlines() if line.strip().startswith("await m.")]
    assert [s.partition("(")[0].removeprefix("await m.") for s in steps] == [
        "open", "send", "receive", "extend", "release", "finish"
    ]  # fmt: skip
    with pytest.raises(AssertionError, match="never handed out"):
        _pasted(code)()
    right = code.replace(repr(BUG), "'memory'")
    assert right != code
    _pasted(right)()


def _pasted(code: str) -> Callable[[], None]:
    names: dict[str, Callable[[], None]] = {}
    exec(code, names)
    return names["test_queue_machine"]


def test_replay_says_what_is_missing() -> None:
    async def nothing(m: Queue) -> None: ...

    with pytest.raises(ConfigurationError, match="'typo'"):
        replay(Queue, nothing, harness="typo")
    with pytest.raises(AssertionError, match="no server"):
        replay(Queue, nothing, harness="memory", gates=("ctl:proxy",))


def test_a_model_takes_what_is_allowed() -> None:
    async def moved(m: Groups) -> None:
        await m.open()
        await m.join(0)
        await m.send(3)
        await m.read(0, 40)
        await m.seek(0, "earliest")  # refused, while somebody reads
        await m.move(0, "earliest")
        await m.seek(1, "earliest")  # nobody's
        await m.finish()
        assert m.positions.keys() == {0, 1, 2, 3}

    replay(Groups, moved, harness="memory")


PROGRAMS = program(step("go", st.integers(0, 9)), step("stay"), first=step("open"), size=12)


def test_a_seed_makes_the_same_programs() -> None:
    first = made_up(PROGRAMS, 20, 7)
    assert made_up(PROGRAMS, 20, 7) == first != made_up(PROGRAMS, 20, 8)
    assert len(first) == 20
    assert all(steps[0] == ("open",) and 2 <= len(steps) <= 13 for steps in first)
    assert max(map(len, first)) > 6


async def test_shortening_leaves_what_is_needed() -> None:
    asked: list[Program] = []

    async def fails(steps: Program) -> bool:
        asked.append(steps)
        return ("a",) in steps and any(s[0] == "b" and s[1] >= 5 and s[2] for s in steps)

    noise: Program = tuple(("c", i) for i in range(20))
    long: Program = (*noise, ("a",), *noise, ("b", 900, (1, 2, 3)), *noise)
    assert await shorten(long, fails) == (("a",), ("b", 5, (1,)))
    assert len(asked) < 150


@pytest.mark.parametrize("value", [True, 7, b"abc", (1, 2), [1, 2]])
def test_simpler_values_are_of_the_same_type(value: object) -> None:
    assert [type(v) for v in simpler(value)] == [type(value)] * len(list(simpler(value)))
    assert value not in list(simpler(value))


@pytest.mark.parametrize("value", [None, False, 1, 0, "text", b"a", 2.5, {"a": 1}])
def test_others_stay(value: object) -> None:
    assert list(simpler(value)) == []
