"""Plain functions beside the loop: in a thread, with the caller's context variables.

A thread cannot be stopped. What waits for one outlives its cancellation: it goes on waiting, and is cancelled when the
function has returned, so that nobody lets go of a message that is still being handled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from functools import partial
from typing import Any


@dataclass(frozen=True, slots=True)
class Patience:
    """How long whoever waits for a thread goes on doing so."""

    left: asyncio.Future[None]
    """Done when the process is about to end: then the thread is left alone."""
    outlived: Callable[[], None]
    """Told when a call goes on although it was cancelled."""


patience: ContextVar[Patience | None] = ContextVar("switchgear_patience", default=None)
"""That of the subscription whose handler is running."""


def in_thread(pool: Executor, fn: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
    """Begin `fn(*args)` in the pool, in a copy of the context. Cancelling the future does not stop what has begun."""
    return asyncio.get_running_loop().run_in_executor(
        pool, partial(copy_context().run, without_stop_iteration, fn, *args)
    )


async def call_in_thread(pool: Executor, fn: Callable[..., Any], *args: Any) -> Any:
    """Call `fn(*args)` in the pool, in a copy of the context; see `outlive`."""
    return await outlive(pool.submit(partial(copy_context().run, without_stop_iteration, fn, *args)))


async def outlive(call: Future[Any]) -> Any:
    """The result of a call in a pool. A cancellation is raised when the call has ended, whatever it came to.

    At once only if the call had not begun, or when nobody is to wait any more (`Patience.left`).
    """
    waits = patience.get()
    future = asyncio.wrap_future(call)
    both = (future,) if waits is None else (future, waits.left)
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError as error:
            if call.cancel():
                raise
            if cancelled is None and waits is not None:
                waits.outlived()
            cancelled = error
        if waits is not None and waits.left.done() and not future.done():
            future.add_done_callback(_see)
            raise cancelled or asyncio.CancelledError
    if cancelled is not None:
        _see(future)
        raise cancelled
    return future.result()


def without_stop_iteration(fn: Callable[..., Any], *args: Any) -> Any:
    """Call it; a StopIteration becomes a RuntimeError, as a coroutine does it: no future can carry one (PEP 479)."""
    try:
        return fn(*args)
    except StopIteration as error:
        raise RuntimeError(f"{fn!r} raised StopIteration") from error


def _see(future: asyncio.Future[Any]) -> None:
    """An error that nobody is told of any more."""
    if not future.cancelled():
        future.exception()
