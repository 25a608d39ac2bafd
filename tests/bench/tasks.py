"""Many tasks that publish at once, each awaiting one publish after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from .clock import Span
from .orders import Order, order

TASKS = 200
ORDERS = [order(n) for n in range(1000)]


async def from_tasks(n: int, publish: Callable[[Order], Awaitable[object]]) -> float:
    """Messages per second when `TASKS` tasks await one publish after the other."""
    span = Span(n)

    async def task(first: int) -> None:
        for i in range(first, n, TASKS):
            await publish(ORDERS[i % 1000])
            span.see()

    await asyncio.gather(*(task(first) for first in range(TASKS)))
    return span.rate()
