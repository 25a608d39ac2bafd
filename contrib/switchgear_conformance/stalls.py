"""How long a thread was held up, apart from the time for which the scheduler had no processor for it.

Run as a program (it imports nothing of this package) it is the control: a process that does nothing but sleep, and
says at the end of its input how long it was held up all the same.
"""

from __future__ import annotations

import select
import sys
import time

TICK = 0.002  # seconds


class Stalls:
    """Told to look often: what lies between two looks beyond a tick is a stall."""

    def __init__(self) -> None:
        self.worst = 0.0
        """Seconds."""
        self._last, self._queued = time.perf_counter(), queued()

    def look(self) -> None:
        now, waited = time.perf_counter(), queued()
        self.worst = max(self.worst, now - self._last - (waited - self._queued) - TICK)
        self._last, self._queued = now, waited


def queued() -> float:
    """Seconds that this thread could have run and had no processor; 0.0 where the system does not tell."""
    try:
        with open("/proc/thread-self/schedstat", "rb") as file:  # noqa: PTH123  (quick, 500 times a second)
            return int(file.read().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


def main() -> None:
    stalls = Stalls()
    while not select.select([sys.stdin], [], [], TICK)[0]:
        stalls.look()
    print(stalls.worst)


if __name__ == "__main__":
    main()
