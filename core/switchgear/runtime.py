"""Serving until told to stop: signals, one deadline over all, the exit code."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .errors import ConfigurationError, Misuse

if TYPE_CHECKING:
    from .bus import Bus

log = logging.getLogger("switchgear")


async def serve(buses: Sequence[Bus], *, on_started: Callable[[], object] | None = None) -> None:
    """Serve all buses until SIGTERM or SIGINT, or until one fails for good; then drain them all, each within its grace
    from that moment.

    A second signal ends the process at once (exit code 128 + signal). Raises what failed for good (of several the
    first, the others are logged), ConfigurationError where there is nothing to serve, Misuse outside the main thread.
    """
    if not buses:
        raise ConfigurationError("nothing to run: give at least one bus")
    if not any(bus._all() for bus in buses):
        which = ", ".join(repr(bus.name) for bus in buses)
        raise ConfigurationError(f"nothing to run: {which} has no subscription; are its handlers imported?")
    if threading.current_thread() is not threading.main_thread():
        raise Misuse("serving until a signal belongs in the main thread: use `async with bus.serving():` elsewhere")
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def end() -> None:
        if not stop.is_set():
            for bus in buses:
                bus._end_at = loop.time() + bus._grace  # one deadline for all that follows
            stop.set()

    def signalled(number: int) -> None:
        if stop.is_set():
            os._exit(128 + number)
        log.info("%s: draining", signal.Signals(number).name)
        end()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled, number)
    started = [asyncio.Event() for _ in buses]
    tasks = [loop.create_task(_one(bus, stop, begun)) for bus, begun in zip(buses, started, strict=True)]
    stopping = loop.create_task(stop.wait())
    ready = loop.create_task(_all(started))
    try:
        await asyncio.wait([ready, stopping, *tasks], return_when=asyncio.FIRST_COMPLETED)
        if ready.done() and not stop.is_set():
            gc.collect()
            gc.freeze()  # what start-up made lives as long as the process: collections need not look at it again
            if on_started is not None:
                on_started()
        await asyncio.wait([stopping, *tasks], return_when=asyncio.FIRST_COMPLETED)
        end()
        for task, begun in zip(tasks, started, strict=True):
            if not begun.is_set():
                task.cancel()
        await asyncio.wait(tasks)
    finally:
        everything: list[asyncio.Task[Any]] = [*tasks, stopping, ready]
        for one in everything:
            one.cancel()
        await asyncio.wait(everything)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
        for bus in buses:
            bus._end_at = None
    failures = [task.exception() for task in tasks if not task.cancelled()]
    failed = [failure for failure in failures if failure is not None]
    for other in failed[1:]:
        log.error("failed as well: %s: %s", type(other).__name__, other)
    if failed:
        raise failed[0]


async def _all(events: Sequence[asyncio.Event]) -> None:
    for event in events:
        await event.wait()


async def _one(bus: Bus, stop: asyncio.Event, started: asyncio.Event) -> None:
    async with bus._core() as core, bus.serving():
        started.set()
        waits = [asyncio.ensure_future(event.wait()) for event in (stop, core.failed)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()


def run(*buses: Bus) -> None:
    """Serve these buses in this process until SIGTERM or SIGINT; returns after a clean drain.

    After a terminal failure the error is logged and the process exits with 1; so it does when a `def` handler was still
    running at the deadline (its message comes again). Raises ConfigurationError where there is nothing to run, Misuse
    inside a running event loop or outside the main thread.
    """
    if asyncio._get_running_loop() is not None:
        raise Misuse("an event loop is running here: use `async with bus.serving():` instead of run()")
    try:
        asyncio.run(serve(buses))
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except (ConfigurationError, Misuse):
        raise
    except Exception as error:
        log.error("ended: %s: %s", type(error).__name__, error)
        print(f"switchgear: {type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201  (logging may be off)
        raise SystemExit(1) from error
    finally:
        if any(bus._abandoned for bus in buses):
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)  # a thread that cannot be stopped would keep the process alive
