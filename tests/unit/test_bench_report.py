"""The benchmark's judgement: same-round ratios, their median, and the exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.report import as_json, tables, verdicts
from tests.bench.runner import Result
from tests.bench.workload import Requirement, Sample, Setting, Workload

ROOT = Path(__file__).parent.parent.parent


async def never(setting: Setting) -> Sample:
    raise AssertionError("a report measures nothing")


def result(requirement: Requirement) -> Result:
    sides = {"raw": never, "switchgear": never}
    workload = Workload("shovel", "sand", "rate", "msg/s", sides=sides, requirements=[requirement])
    raw = [{"rate": rate, "rss": 2**20} for rate in (100.0, 200.0, 50.0)]
    ours = [{"rate": rate, "rss": 2**21} for rate in (90.0, 220.0, 40.0)]
    return Result(workload, {"raw": raw, "switchgear": ours})


@pytest.mark.parametrize(
    ("requirement", "met"),
    [
        (Requirement("rate", over="raw", at_least=0.9), True),
        (Requirement("rate", over="raw", at_least=0.91), False),
        (Requirement("rate", over="raw", at_most=0.9), True),
        (Requirement("rate", over="raw", at_most=0.89), False),
    ],
)
def test_the_median_of_same_round_ratios_decides(requirement: Requirement, met: bool) -> None:
    """Round by round 0.9, 1.1 and 0.8."""
    (verdict,) = verdicts([result(requirement)])
    assert verdict.ratios == pytest.approx([0.9, 1.1, 0.8])
    assert verdict.ratio == pytest.approx(0.9)
    assert verdict.met is met
    assert ("NOT MET" in str(verdict)) is not met


def test_the_report_shows_every_side() -> None:
    judged = verdicts(results := [result(Requirement("rate", over="raw", at_least=1))])
    text = "\n".join(tables(results))
    assert "shovel: sand" in text
    assert "0.900" in text
    assert "2 MiB" in text
    written = json.loads(json.dumps(as_json(results, judged)))
    assert written["requirements"][0]["met"] is False
    assert written["workloads"]["shovel"]["samples"]["raw"][2]["rate"] == 50.0


def test_an_unknown_workload_is_named() -> None:
    command = [sys.executable, "-m", "tests.bench", "--only", "postal-pigeon"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert "no workload is called 'postal-pigeon'; there are import," in done.stderr
