"""Medians, ratios of the same round, and whether each requirement is met."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from .runner import Result
from .workload import OURS, Requirement

PACKAGES = ("switchgear", "faststream", "redis", "hiredis", "aiokafka", "confluent-kafka", "msgspec", "pluggy")


@dataclass(frozen=True)
class Verdict:
    """A requirement and the median of our ratios."""

    workload: str
    requirement: Requirement
    ratio: float
    ratios: Sequence[float]

    @property
    def met(self) -> bool:
        return self.requirement.met(self.ratio)

    def __str__(self) -> str:
        r = self.requirement
        spread = f"{min(self.ratios):.2f} to {max(self.ratios):.2f} in {len(self.ratios)} rounds"
        state = "met" if self.met else "NOT MET"
        return f"{self.workload:<16} {r.metric:<5} / {r.over:<12} {self.ratio:8.2f}  ({spread})  {r.bound:<7} {state}"


def verdicts(results: Iterable[Result]) -> list[Verdict]:
    return [
        Verdict(result.workload.name, requirement, statistics.median(ratios), ratios)
        for result in results
        for requirement in result.workload.requirements
        if (ratios := same_round(result, requirement.metric, requirement.over))
    ]


def same_round(result: Result, metric: str, over: str) -> list[float]:
    """Our figure over the other side's, round by round."""
    pairs = zip(result.samples[OURS], result.samples[over], strict=True)
    return [ours[metric] / other[metric] for ours, other in pairs]


def tables(results: Iterable[Result]) -> Iterator[str]:
    """A table a workload: medians by side, the ratio to the first side, and the peak memory."""
    for result in results:
        workload = result.workload
        first, *_ = workload.sides
        metrics = [m for m in result.samples[first][0] if m != "rss"]
        yield f"\n{workload.name}: {workload.about} ({workload.unit}, median of {len(result.samples[first])})"
        yield f"  {'side':<14}" + "".join(f"{m:>12}" for m in metrics) + f"{'/ ' + first:>16}{'peak RSS':>12}"
        for side, samples in result.samples.items():
            medians = [statistics.median(s[m] for s in samples) for m in metrics]
            pairs = zip(samples, result.samples[first], strict=True)
            ratio = statistics.median(s[workload.metric] / f[workload.metric] for s, f in pairs)
            rss = statistics.median(s["rss"] for s in samples) / 2**20
            yield f"  {side:<14}" + "".join(f"{m:>12,.5g}" for m in medians) + f"{ratio:>16.3f}{rss:>8.0f} MiB"


def as_json(results: Sequence[Result], judged: Sequence[Verdict]) -> dict[str, Any]:
    """Everything that was measured, for later comparison."""
    return {
        "machine": {"cpus": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()},
        "versions": {name: found for name in PACKAGES if (found := installed(name))},
        "workloads": {
            r.workload.name: {"about": r.workload.about, "metric": r.workload.metric, "samples": r.samples}
            for r in results
        },
        "requirements": [
            {
                "workload": v.workload, "metric": v.requirement.metric, "over": v.requirement.over,
                "bound": v.requirement.bound, "ratio": v.ratio, "ratios": v.ratios, "met": v.met,
            }
            for v in judged
        ],
    }  # fmt: skip


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
