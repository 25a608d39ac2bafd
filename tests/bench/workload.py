"""What is measured: a workload has sides that do the same work, and ratios that must hold between them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

OURS = "switchgear"


@dataclass(frozen=True)
class Setting:
    """What a side is given."""

    url: str
    """Of the broker; "" where the workload needs none."""
    folder: Path
    """An empty folder that is deleted afterwards."""
    scale: float = 1.0
    """Factor on the number of messages."""

    def messages(self, full: int) -> int:
        """How many messages to send, in steps of 1,000."""
        return max(1000, round(full * self.scale / 1000) * 1000)


Sample: TypeAlias = Mapping[str, float]
"""Figures of one run, by metric: `rate` (messages per second), `p50` (milliseconds) and so on."""
Side: TypeAlias = Callable[[Setting], Awaitable[Sample]]


@dataclass(frozen=True)
class Requirement:
    """Our figure divided by another side's figure of the same round; the median over the rounds must be in bounds."""

    metric: str
    over: str
    at_least: float | None = None
    at_most: float | None = None

    def met(self, ratio: float) -> bool:
        return (self.at_least is None or ratio >= self.at_least) and (self.at_most is None or ratio <= self.at_most)

    @property
    def bound(self) -> str:
        return f"≥ {self.at_least:g}" if self.at_least is not None else f"≤ {self.at_most:g}"


@dataclass(frozen=True)
class Workload:
    """Sides in the order in which they run; the order is reversed in every second round."""

    name: str
    about: str
    metric: str
    unit: str
    sides: Mapping[str, Side]
    requirements: Sequence[Requirement] = ()
    broker: str | None = None
    rounds: int = 5
    prepare: Side | None = field(default=None)
    """Run once, before the first round."""
