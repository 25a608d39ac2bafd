"""Time between the first and the last message of a run."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Sequence


class Span:
    """Counts messages; its rate is that of all after the first, so that connecting and joining count on no side."""

    __slots__ = ("_began", "_n", "all_seen", "seen")

    def __init__(self, n: int) -> None:
        gc.collect()
        self._n = n
        self._began = 0.0
        self.seen = 0
        self.all_seen = asyncio.Event()

    def see(self) -> None:
        self.seen += 1
        if self.seen == 1:
            self._began = time.perf_counter()
        elif self.seen == self._n:
            self.all_seen.set()

    def rate(self) -> float:
        """Messages per second from the first until now."""
        elapsed = time.perf_counter() - self._began
        assert self.seen == self._n, f"{self.seen} messages were handled, not {self._n}"
        return (self._n - 1) / elapsed


def percentiles(milliseconds: Sequence[float]) -> dict[str, float]:
    ranked = sorted(milliseconds)
    return {name: ranked[min(len(ranked) - 1, int(len(ranked) * q))] for name, q in QUANTILES.items()}


QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}
