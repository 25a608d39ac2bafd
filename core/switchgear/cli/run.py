"""`switchgear run`: serve a program's subscriptions."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .execute import execute, note
from .options import Urls

if TYPE_CHECKING:
    from switchgear import Health

    from .worker import Job
    from .workers import Workers


def run(
    targets: Annotated[
        list[str],
        typer.Argument(help="Buses, or functions that make one, for example shop.main:bus.", metavar="MODULE:BUS..."),
    ],
    url: Urls = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, help="Processes to share the work; one that dies is started again."),
    ] = None,
    reload: Annotated[bool, typer.Option("--reload", help="Start anew when a *.py file here changes.")] = False,
    health: Annotated[
        str | None,
        typer.Option(
            "--health",
            help="Answer /live and /ready over HTTP, 200 or 503, for all workers together.",
            metavar="[HOST:]PORT",
        ),
    ] = None,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], typer.Option("--log-level", help="What is logged on stderr.")
    ] = "info",
) -> None:
    """Serve the subscriptions of one or several buses until SIGTERM or Ctrl-C.

    It then stops fetching and lets handlers finish, under one deadline (the bus's grace); a second signal ends at once.
    """
    from .worker import Job

    job = Job(targets=targets, urls=url or [], workers=workers or 1, log_level=log_level)
    supervised = reload or job.workers > 1
    if code := execute(_supervised(job, health, reload) if supervised else _here(job, health)):
        raise typer.Exit(code)


async def _here(job: Job, health: str | None) -> int:
    from switchgear.plugins import redact

    from .logs import log_to_stderr
    from .probes import overall, probes
    from .serving import serve_until_told
    from .targets import load

    log_to_stderr(job.log_level)
    buses = load(job.targets, job.urls)

    started = asyncio.Event()

    def on_started() -> None:
        started.set()
        for bus in buses:
            note(f"{bus.name} serves on {redact(bus.url)}; Ctrl-C ends it")

    async with probes(health, lambda: overall(buses, started.is_set())):
        await serve_until_told(buses, on_started)
    return 0


async def _supervised(job: Job, health: str | None, reload: bool) -> int:
    from .logs import log_to_stderr
    from .probes import probes
    from .workers import Workers

    log_to_stderr(job.log_level)
    workers = Workers(job, job.workers)
    stopped = asyncio.Event()

    def stop() -> None:
        workers.kill() if stopped.is_set() else workers.stop()
        stopped.set()

    def together() -> Health:
        return workers.health()  # of the present generation

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    async with probes(health, together):
        code = await (_until_change(workers, stopped) if reload else workers.run())
        while reload and not stopped.is_set():
            note("files changed: starting anew")
            workers = Workers(job, job.workers)
            code = await _until_change(workers, stopped)
    return code


async def _until_change(workers: Workers, stopped: asyncio.Event) -> int:
    """Run the workers until a file changes, or until they are stopped; a program that fails waits for its repair."""
    from .reloading import change

    running = asyncio.create_task(workers.run())
    changed = asyncio.create_task(change(Path.cwd()))
    halted = asyncio.create_task(stopped.wait())
    try:
        await asyncio.wait({running, changed}, return_when=asyncio.FIRST_COMPLETED)
        if running.done() and not stopped.is_set():
            note("the program ended; it starts anew when a file changes")
            await asyncio.wait({changed, halted}, return_when=asyncio.FIRST_COMPLETED)
        workers.stop()
        return await running
    finally:
        for task in (changed, halted, running):
            task.cancel()
        await asyncio.wait({changed, halted, running})
