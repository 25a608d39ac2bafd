"""Serving until told to stop: signals, one deadline over all, the exit code."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .errors import ConfigurationError, Misuse

if TYPE_CHECKING:
    from .bus import Bus

log = logging.getLogger("switchgear")


async def serve(buses: Sequence[Bus], *, on_started: Callable[[], object] | None = None) -> None:
    """Serve all buses until SIGTERM or SIGINT, or until one fails for good; then drain them all, each within its grace.

    A second signal ends the process at once (exit code 128 + signal). Raises what failed for good.
    """
    if not buses:
        raise ConfigurationError("nothing to run: give at least one bus")
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def signalled(number: int) -> None:
        if stop.is_set():
            os._exit(128 + number)
        log.info("%s: draining", signal.Signals(number).name)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled, number)
    started: list[asyncio.Future[None]] = [loop.create_future() for _ in buses]
    tasks = [loop.create_task(_one(bus, stop, begun)) for bus, begun in zip(buses, started, strict=True)]
    stopping = loop.create_task(stop.wait())
    ready: asyncio.Future[Any] = loop.create_task(asyncio.wait(started))
    try:
        waited: list[asyncio.Future[Any]] = [ready, stopping, *tasks]
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if ready.done() and not stop.is_set():
            gc.collect()
            gc.freeze()  # what start-up made lives as long as the process: collections need not look at it again
            if on_started is not None:
                on_started()
        await asyncio.wait([stopping, *tasks], return_when=asyncio.FIRST_COMPLETED)
        stop.set()
        for task, begun in zip(tasks, started, strict=True):
            if not begun.done():
                task.cancel()
        await asyncio.wait(tasks)
        ready.cancel()
        for task in tasks:
            if not task.cancelled():
                task.result()
    finally:
        stopping.cancel()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


async def _one(bus: Bus, stop: asyncio.Event, started: asyncio.Future[None]) -> None:
    async with bus._core() as core, bus.serving():
        if not started.done():
            started.set_result(None)
        stopped = asyncio.ensure_future(stop.wait())
        failed = asyncio.ensure_future(core.failed.wait())
        await asyncio.wait([stopped, failed], return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        failed.cancel()


def run(*buses: Bus) -> None:
    """Serve these buses in this process until SIGTERM or SIGINT; returns after a clean drain.

    After a terminal failure the error is logged and the process exits with 1; so it does when a `def` handler was still
    running at the deadline (its message comes again). Raises Misuse inside a running event loop.
    """
    if asyncio._get_running_loop() is not None:
        raise Misuse("an event loop is running here: use `async with bus.serving():` instead of run()")
    try:
        asyncio.run(serve(buses))
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except ConfigurationError:
        raise
    except Exception as error:
        log.error("ended: %s: %s", type(error).__name__, error)
        print(f"switchgear: {type(error).__name__}: {error}", file=sys.stderr)
        raise SystemExit(1) from error
    finally:
        if any(bus._abandoned for bus in buses):
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)  # a thread that cannot be stopped would keep the process alive
