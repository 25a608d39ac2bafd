"""Time, in one place, so that a test can own it.

Two scales: `now` is unix seconds (what messages carry), `monotonic` is the event loop's clock (leases, deadlines).
"""

import asyncio
import time
from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """A call that has been arranged and can be given up."""

    def cancel(self) -> None: ...


class Clock(Protocol):
    """What the core and embedded transports ask for time; `testing` substitutes one that a test advances."""

    def now(self) -> float:
        """Unix seconds."""
        ...

    def monotonic(self) -> float:
        """Seconds on the event loop's clock."""
        ...

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        """Call `callback` on the loop when `monotonic()` has reached `when`."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds` of this clock."""
        ...


class LoopClock:
    """The real time of the running event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.now = time.time
        self.monotonic = self._loop.time

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        return self._loop.call_at(when, callback)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
