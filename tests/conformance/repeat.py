"""Run the catalogue many times and count: `python -m tests.conformance.repeat NAME RUNS`.

A case is flaky when one run finds another outcome than the run before it. The counts are added to `runs.json`, so that
they grow with every session; a flaky outcome stays there, with its seed, until its cause is found and noted.
"""

from __future__ import annotations

import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from switchgear_conformance.harness import harness
from switchgear_conformance.report import Report
from switchgear_conformance.runner import run

TALLY = Path(__file__).with_name("runs.json")


def main(name: str, runs: int) -> int:
    flaky = 0
    known: dict[str, str] = {}
    for i in range(runs):
        began = time.perf_counter()
        report = run(harness(name))
        outcomes = {r.id: r.outcome.value for r in report.results}
        odd = {id: reason(report, id) for id, o in outcomes.items() if known.get(id, o) != o or o == "failed"}
        known = known or outcomes
        add(name, report, odd)
        flaky += len(odd)
        took = time.perf_counter() - began
        print(
            f"{name} run {i + 1}: {len(outcomes)} cases in {took:.0f} s, seed {report.seed}; odd: {odd or 'none'}",
            flush=True,
        )
    return 1 if flaky else 0


def reason(report: Report, id: str) -> str:
    return next(f"{r.outcome}: {r.reason}" for r in report.results if r.id == id)


def add(name: str, report: Report, odd: dict[str, str]) -> None:
    """Add one run to the tally."""
    tally = json.loads(TALLY.read_text()) if TALLY.exists() else {}
    mine = tally.setdefault(name, {"runs": 0, "cases": 0, "flaky": []})
    mine["runs"] += 1
    mine["cases"] += len(report.results)
    mine["last"] = datetime.now(UTC).date().isoformat()
    for id, why in odd.items():
        mine["flaky"].append({"case": id, "seed": report.seed, "date": mine["last"], "outcome": why})
    TALLY.write_text(json.dumps(tally, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
