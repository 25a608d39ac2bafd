"""Messages for later: `python -m tests.faults.due publish` stores them, `… handle` handles them.

What each does is in FAULTS, as JSON. The times that they write down are of the machine's clock, as the broker's are.
"""

# ruff: noqa: ASYNC110  (what it waits for tells nobody)

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from datetime import UTC, datetime

import msgspec

from switchgear import Bus, MaybeSent, Topic, TransportError

from .oracle import Journal

GROUP = "crew"


class Job(msgspec.Struct):
    n: int
    due: float
    """Unix seconds."""


later = Topic("later", Job, order="none", partitions=4)


class Publishing(msgspec.Struct, kw_only=True):
    url: str
    journal: str
    """Gets `+ n due` for each message that is stored, `? n due` for each that may be."""
    most: int
    first: float
    """When the first is due, unix seconds."""
    spread: float
    """Seconds from the first to the last."""
    rate: float = 2000.0
    """Messages a second, at most."""
    at_once: int = 500


class Handling(msgspec.Struct, kw_only=True):
    url: str
    journal: str
    """Gets `n at` for each message that is handled."""
    lease: float = 3.0


async def publish(given: Publishing) -> None:
    """Store all, in an order that has nothing to do with when they are due."""
    journal = Journal(given.journal)
    numbers = enumerate(random.Random(1).sample(range(given.most), given.most))
    began = time.time()

    async def some() -> None:
        for i, n in numbers:
            await asyncio.sleep(max(0.0, began + i / given.rate - time.time()))
            due = given.first + given.spread * n / given.most
            try:
                await bus.publish(later, Job(n, due), delay=datetime.fromtimestamp(due, UTC), timeout=120)
            except MaybeSent:
                journal.write("?", n, f"{due:.6f}")
            except TransportError as error:
                print(f"message {n} is not stored: {error}", flush=True)
            else:
                journal.write("+", n, f"{due:.6f}")

    async with Bus(given.url, name="publisher") as bus, asyncio.TaskGroup() as tasks:
        for _ in range(given.at_once):
            tasks.create_task(some())


async def handle(given: Handling) -> None:
    """Serve until killed; says "up" when all that moves messages works."""
    journal = Journal(given.journal)
    bus = Bus(given.url, name="consumer", grace=3.0)

    @bus.subscribe(later, group=GROUP, start="earliest", lease=given.lease, concurrency=64)
    async def take(job: Job) -> None:
        journal.write(job.n, f"{time.time():.6f}")

    async with bus.serving(), bus._core() as core:
        print("serves", flush=True)
        delays = core.delays
        while delays.emulated and not (delays.consumers and all(c.state == "active" for c in delays.consumers)):
            await asyncio.sleep(0.01)
        print("up", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    given = os.environ["FAULTS"]
    if sys.argv[1] == "publish":
        asyncio.run(publish(msgspec.json.decode(given, type=Publishing)))
    else:
        asyncio.run(handle(msgspec.json.decode(given, type=Handling)))
