"""Plain functions beside the loop: in a thread, with the caller's context variables."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from contextvars import copy_context
from functools import partial
from typing import Any


def in_thread(pool: Executor, fn: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
    """Begin `fn(*args)` in the pool, in a copy of the context. Cancelling the future does not stop what has begun."""
    return asyncio.get_running_loop().run_in_executor(
        pool, partial(copy_context().run, without_stop_iteration, fn, *args)
    )


def without_stop_iteration(fn: Callable[..., Any], *args: Any) -> Any:
    """Call it; a StopIteration becomes a RuntimeError, as a coroutine does it: no future can carry one (PEP 479)."""
    try:
        return fn(*args)
    except StopIteration as error:
        raise RuntimeError(f"{fn!r} raised StopIteration") from error
