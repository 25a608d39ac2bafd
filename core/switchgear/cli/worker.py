"""One worker process: `python -m switchgear.cli.worker FD`.

The supervisor is at the other end of the socket. It sends a Job, as one line, so that no password shows in the list of
processes; we send our health, one line a second. When the socket ends the supervisor is gone, and we end as well.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from contextlib import suppress

import msgspec
import typer

from switchgear import Bus, Health
from switchgear.bus import _without_namespace
from switchgear.driver import Clocked
from switchgear.errors import ConfigurationError
from switchgear.plugins import open_transport, redact

from .execute import execute
from .logs import log_to_stderr
from .probes import overall
from .serving import serve_until_told
from .targets import load
from .workers import TERMINAL

BEAT = 1.0  # seconds between reports


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker runs."""

    targets: list[str]
    urls: list[str] = []
    workers: int = 1
    log_level: str = "info"


class Report(msgspec.Struct):
    """How a worker is."""

    health: Health
    grace: float
    """Seconds that it may take to end."""
    proven: bool
    """The job can run: every bus is ready, or waits for a broker that is away."""


def main() -> None:
    """Serve until told to stop. Exits with 0, or with TERMINAL and more."""
    sock = socket.socket(fileno=int(sys.argv[1]))
    try:
        execute(_work(sock))
    except typer.Exit as end:
        raise SystemExit(end.exit_code + TERMINAL) from None


async def _work(sock: socket.socket) -> None:
    reader, writer = await asyncio.open_connection(sock=sock)
    job = msgspec.json.decode(await reader.readline(), type=Job)
    log_to_stderr(job.log_level, worker=os.environ.get("SWITCHGEAR_WORKER", ""))
    buses = load(job.targets, job.urls)
    if job.workers > 1:
        refuse_single_process(buses)
    started = asyncio.Event()
    tasks = [asyncio.create_task(_report(writer, buses, started)), asyncio.create_task(_outlive_nobody(reader))]
    try:
        await serve_until_told(buses, started.set)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        writer.close()


def lives_here(url: str) -> bool:
    """Whether the broker is part of the process that uses it."""
    return isinstance(open_transport(_without_namespace(url)), Clocked)


def refuse_single_process(buses: list[Bus]) -> None:
    """Raises ConfigurationError for a transport that lives within one process: its workers would not share anything."""
    for bus in buses:
        if lives_here(bus.url):
            raise ConfigurationError(
                f"{redact(bus.url)} lives within one process, which --workers would divide: "
                "use --workers 1, or a broker that processes share, for example --url sqlite:///app.db"
            )


async def _report(writer: asyncio.StreamWriter, buses: list[Bus], started: asyncio.Event) -> None:
    grace = max(bus._grace for bus in buses)
    with suppress(OSError):
        while True:
            state = overall(buses, started.is_set())
            proven = all(bus.health().ready or _waits(bus) for bus in buses)
            writer.write(msgspec.json.encode(Report(state, grace, proven)) + b"\n")
            await writer.drain()
            for _ in range(10):  # what changes is told sooner: others wait for it
                await asyncio.sleep(BEAT / 10)
                if overall(buses, started.is_set()).ready != state.ready:
                    break


def _waits(bus: Bus) -> bool:
    """Whether its broker could not be reached, and may yet be."""
    link = None if bus._open is None else bus._open.link
    return link is not None and link.error is not None and link.terminal is None


async def _outlive_nobody(reader: asyncio.StreamReader) -> None:
    with suppress(OSError):
        await reader.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
