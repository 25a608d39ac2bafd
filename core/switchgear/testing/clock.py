"""A clock that stands still until it is advanced."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Awaitable, Callable
from functools import partial

ROUNDING = 1e-6  # seconds; unix time has a resolution of 2.4e-7, so what is due in a minute may fall behind it by that


def resolve(future: asyncio.Future[None]) -> None:
    """Let go whoever awaits it; no harm if nobody does any more."""
    if not future.done():
        future.set_result(None)


class Alarm:
    """A timer of a `VirtualClock`."""

    __slots__ = ("callback", "cancelled", "when")

    def __init__(self, when: float, callback: Callable[[], object]) -> None:
        self.when, self.callback, self.cancelled = when, callback, False

    def cancel(self) -> None:
        self.cancelled = True


class VirtualClock:
    """See `switchgear.clock.Clock`. It begins at the present and moves only with `advance`."""

    def __init__(self) -> None:
        self._start_wall = time.time()
        self._start = asyncio.get_running_loop().time()
        self._passed = 0.0
        self._alarms: list[tuple[float, int, Alarm]] = []
        self._count = itertools.count()

    def now(self) -> float:
        return self._start_wall + self._passed

    def monotonic(self) -> float:
        return self._start + self._passed

    def call_at(self, when: float, callback: Callable[[], object]) -> Alarm:
        alarm = Alarm(when, callback)
        heapq.heappush(self._alarms, (when, next(self._count), alarm))
        if when <= self.monotonic():
            asyncio.get_running_loop().call_soon(self._fire)
        return alarm

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        alarm = self.call_at(self.monotonic() + seconds, partial(resolve, future))
        try:
            await future
        finally:
            alarm.cancel()

    def _fire(self) -> None:
        while self._alarms and self._alarms[0][0] <= self.monotonic():
            _, _, alarm = heapq.heappop(self._alarms)
            if not alarm.cancelled:
                alarm.callback()

    async def advance(self, seconds: float, settle: Callable[[], Awaitable[None]]) -> None:
        """Let `seconds` pass: every alarm in its order, and after each instant whatever follows from it (`settle`)."""
        target = self._passed + seconds
        while True:
            while self._alarms and self._alarms[0][2].cancelled:
                heapq.heappop(self._alarms)
            if not self._alarms or self._alarms[0][0] - self._start > target + ROUNDING:
                break
            self._passed = max(self._passed, self._alarms[0][0] - self._start)
            self._fire()
            await settle()
        self._passed = max(self._passed, target)
        await settle()
