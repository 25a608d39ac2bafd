"""What is to happen later: one heap and one timer, however many messages wait."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush

from switchgear.clock import Clock, Timer


class Agenda:
    """Calls functions at instants of a scale of the clock; each can be given up until then."""

    def __init__(self, clock: Clock, now: Callable[[], float]) -> None:
        """`now` is the scale: `clock.monotonic` or `clock.now`."""
        self._clock, self._now = clock, now
        self._heap: list[tuple[float, int]] = []
        self._actions: dict[int, Callable[[], None]] = {}
        self._count = 0
        self._timer: Timer | None = None

    def at(self, when: float, action: Callable[[], None]) -> int:
        """Call `action` when `now()` has reached `when`; equal instants in the order of the calls."""
        self._count += 1
        heappush(self._heap, (when, self._count))
        self._actions[self._count] = action
        if self._heap[0][1] == self._count:
            self._arm()
        return self._count

    def cancel(self, handle: int) -> bool:
        """Give up a call; False when it has been made or given up already."""
        if self._actions.pop(handle, None) is None:
            return False
        if len(self._heap) > 2 * len(self._actions) + 64:  # what was given up must not pile up until its time
            self._heap = [item for item in self._heap if item[1] in self._actions]
            heapify(self._heap)
        return True

    def run(self, limit: int) -> float | None:
        """Make up to `limit` calls that are due; seconds to the next (0: more are due), None when nothing waits."""
        heap, now = self._heap, self._now()
        while heap:
            when, handle = heap[0]
            if handle not in self._actions:
                heappop(heap)
            elif when > now:
                return when - now
            elif limit <= 0:
                return 0.0
            else:
                heappop(heap)
                limit -= 1
                self._actions.pop(handle)()
        return None

    def clear(self) -> None:
        """Forget everything."""
        self._heap.clear()
        self._actions.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._heap:
            wait = self._heap[0][0] - self._now()
            self._timer = self._clock.call_at(self._clock.monotonic() + wait, self._due)

    def _due(self) -> None:
        self._timer = None
        self.run(1000)
        self._arm()
