"""Rounds of fresh processes, the sides taking turns."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from .brokers import BROKERS
from .child import PREPARE
from .workload import Sample, Workload

ROOT = Path(__file__).parent.parent.parent
PATIENCE = 180
"""Seconds that one measurement may take."""


class SideFailed(Exception):
    """A measurement did not come to its end; the text ends with the child's own."""


@dataclass
class Result:
    """The samples of a workload by side; the n-th of each side are of the same round."""

    workload: Workload
    samples: dict[str, list[Sample]]


def measure(workload: Workload, rounds: int, scale: float, tell: Callable[[str], None]) -> Result:
    """Run every side `rounds` times. Raises SideFailed."""
    result = Result(workload, {side: [] for side in workload.sides})
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sg-bench-")))
        url = stack.enter_context(BROKERS[workload.broker](folder)) if workload.broker else ""
        if workload.prepare:
            child(workload.name, PREPARE, url, scale)
        for round in range(rounds):
            sides = list(workload.sides)
            for side in sides if round % 2 == 0 else reversed(sides):
                sample = child(workload.name, side, url, scale)
                result.samples[side].append(sample)
                tell(f"{workload.name} {round + 1}/{rounds} {side}: {sample[workload.metric]:,.4g} {workload.unit}")
    return result


def child(workload: str, side: str, url: str, scale: float) -> Sample:
    with tempfile.TemporaryDirectory(prefix="sg-bench-") as folder:
        command = [sys.executable, "-m", "tests.bench.child", workload, side, url, folder, str(scale)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            raise SideFailed(f"{workload}, side {side}: no result within {PATIENCE} s") from None
    if done.returncode != 0:
        raise SideFailed(f"{workload}, side {side}: exit {done.returncode}\n{done.stderr[-2000:]}")
    sample: Sample = json.loads(done.stdout.splitlines()[-1])
    return sample
