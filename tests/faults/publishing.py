"""A publisher: `python -m tests.faults.publishing`; what it does is in FAULTS, as JSON. SIGTERM ends it cleanly."""

from __future__ import annotations

import asyncio
import os
import signal
from itertools import count
from pathlib import Path

import msgspec

from switchgear import Bus, MaybeSent, Topic, TransportError

from .jobs import Job, jobs
from .oracle import ATTEMPTED, FAILED, STORED, UNSURE, Journal, Lines


class Publishing(msgspec.Struct, kw_only=True):
    url: str
    journal: str
    order: str = "key"
    keys: int = 20
    prefix: str = "k"
    """Of the keys' names."""
    rate: float = 500.0
    """Messages a second."""
    at_once: int = 100
    """Calls of `publish` that may wait at once."""
    most: int = 1_000_000
    timeout: float = 30.0
    size: int = 20
    """Bytes of padding."""


async def publish(given: Publishing) -> None:
    """Go on from the numbers that earlier publishers with this journal attempted."""
    journal = Journal(given.journal)
    topic = jobs(given.order)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    before = sum(line.startswith(ATTEMPTED) for line in Lines(Path(given.journal)))
    gate = asyncio.Semaphore(given.at_once)
    burst = max(1, round(given.rate / 100))
    async with Bus(given.url, name="publisher") as bus, asyncio.TaskGroup() as tasks:
        for n in count(before):
            if stop.is_set() or n >= given.most:
                break
            await gate.acquire()
            key = f"{given.prefix}{n % given.keys}"
            job = Job(id=f"{key}/{n}", key=key, pad="x" * given.size)
            tasks.create_task(_one(bus, topic, job, journal, gate, given.timeout))
            if n % burst == 0:
                await asyncio.sleep(burst / given.rate)


async def _one(
    bus: Bus, topic: Topic[Job], job: Job, journal: Journal, gate: asyncio.Semaphore, timeout: float
) -> None:
    journal.write(ATTEMPTED, job.id)
    try:
        await bus.publish(topic, job, timeout=timeout)
    except MaybeSent:
        journal.write(UNSURE, job.id)
    except TransportError:
        journal.write(FAILED, job.id)
    else:
        journal.write(STORED, job.id)
    finally:
        gate.release()


if __name__ == "__main__":
    asyncio.run(publish(msgspec.json.decode(os.environ["FAULTS"], type=Publishing)))
