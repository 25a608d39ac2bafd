"""One attempt's time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def bounded(seconds: float, handle: Callable[[T], Awaitable[R]]) -> Callable[[T], Awaitable[R]]:
    """The handler (of a message or of a batch) whose attempt is cancelled after `seconds` and fails with TimeoutError.

    A `def` handler can't be cancelled: it keeps its message, its key and its thread until it returns, and the attempt
    fails then (see `threads.outlive`).
    """

    async def call(asked: T) -> R:
        scope = asyncio.timeout(seconds)
        try:
            async with scope:
                return await handle(asked)
        except TimeoutError:
            if scope.expired():
                raise TimeoutError(f"the handler took longer than its timeout of {seconds:g} s") from None
            raise

    return call
