"""Messages that leave on schedule, and how long each takes to its handler."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable

from .clock import percentiles
from .orders import Order, order
from .workload import Sample

RATE = 1000  # messages a second
FULL = 4000
WARM_UP = 200


class Stopwatch:
    """Publishes on schedule, whatever the earlier publishes are doing, and notes when each arrives."""

    def __init__(self, n: int) -> None:
        self._sent = [0.0] * (n + WARM_UP)
        self._late: list[float] = []
        self._all = asyncio.Event()

    def arrived(self, order: Order) -> None:
        self._late.append((time.perf_counter() - self._sent[int(order.id[2:])]) * 1000)
        if len(self._late) == len(self._sent):
            self._all.set()

    async def run(self, publish: Callable[[Order], Awaitable[object]]) -> Sample:
        """Percentiles in milliseconds, without the warm-up. Fails where the rate was not kept."""
        messages = [order(i) for i in range(len(self._sent))]
        pending: set[asyncio.Future[object]] = set()

        def sent(task: asyncio.Future[object]) -> None:
            if task.exception() is None:  # a failure stays, to be raised
                pending.discard(task)

        gc.collect()
        began = time.perf_counter()
        for i, message in enumerate(messages):
            early = began + i / RATE - time.perf_counter()
            if early > 0:
                await asyncio.sleep(early)
            self._sent[i] = time.perf_counter()
            task = asyncio.ensure_future(publish(message))
            pending.add(task)
            task.add_done_callback(sent)
        took = time.perf_counter() - began
        await asyncio.gather(*pending)
        await asyncio.wait_for(self._all.wait(), 30)
        rate = len(messages) / took
        assert rate > 0.97 * RATE, f"{rate:.0f} messages a second were sent, not {RATE}"
        return percentiles(self._late[WARM_UP:])
