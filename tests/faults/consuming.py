"""A consumer: `switchgear run tests.faults.consuming:create`; what it does is in FAULTS, as JSON."""

from __future__ import annotations

import asyncio
import os
import random
import zlib

import msgspec

from switchgear import Bus, Message, Retry

from .jobs import GROUP, Job, jobs
from .oracle import Journal, now


class Consuming(msgspec.Struct, kw_only=True):
    journal: str
    order: str = "key"
    group: str = GROUP
    lease: float = 3.0
    concurrency: int = 16
    work: float = 0.0
    """Seconds that a handler takes, at most: a random part of it each time; exactly so if `steady`."""
    steady: bool = False
    failing: float = 0.0
    """Share of the first attempts that fail."""
    stuck: float = 0.0
    """Share of the keys whose messages always fail."""
    grace: float = 10.0
    write: bool = True
    tell: bool = False
    """Whether a handler says that it has begun."""


class Broken(Exception):
    """A failure on purpose."""


def create() -> Bus:
    given = msgspec.json.decode(os.environ["FAULTS"], type=Consuming)
    journal, pid, dice = Journal(given.journal), os.getpid(), random.Random()
    bus = Bus(name="consumer", grace=given.grace)

    @bus.subscribe(
        jobs(given.order), group=given.group, start="earliest", lease=given.lease, concurrency=given.concurrency,
        retry=Retry(attempts=None, base=0.05, cap=2.0), dead_letter=False,
    )  # fmt: skip
    async def handle(job: Job, message: Message[Job]) -> None:
        if given.tell:
            print("begun", job.id, flush=True)
        if given.stuck and zlib.crc32(job.key.encode()) % 10_000 < given.stuck * 10_000:
            raise Broken
        if given.work:
            await asyncio.sleep(given.work if given.steady else dice.uniform(0, given.work))
        if message.attempt == 1 and dice.random() < given.failing:
            raise Broken
        if given.write:
            journal.write(pid, job.id, message.fence, zlib.crc32(message.data or b""), f"{now():.6f}")

    return bus
