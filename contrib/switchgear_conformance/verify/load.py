"""What the workload consists of: publishers and consumers, each a coroutine, run in a process of its own where it can.

Run as `python -m switchgear_conformance.verify.load publish|consume` with the work as JSON in SWITCHGEAR_VERIFY.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import zlib
from itertools import count
from pathlib import Path
from typing import Literal, cast

import msgspec

from switchgear import Bus, MaybeSent, Message, Retry, Topic, TransportError
from switchgear.plugins import open_transport

from .history import ATTEMPT, BEGIN, END, FAILED, STORED, UNSURE, Journal, Lines

VARIABLE = "SWITCHGEAR_VERIFY"
GROUP = "verify"


class Job(msgspec.Struct):
    id: str
    key: str
    pad: str = ""


class Work(msgspec.Struct, kw_only=True):
    """What publishers and consumers are told."""

    url: str
    namespace: str
    folder: str
    name: str
    """Of the publisher (its keys begin with it) or the consumer; its file in the folder."""
    order: str = "key"
    keys: int = 20
    rate: float = 200.0
    """Messages a second of one publisher."""
    size: int = 20
    """Bytes of padding in a body."""
    lease: float = 5.0
    concurrency: int = 16
    seconds: float = 0.005
    """Of a handler, at most; a random part of it each time."""
    failing: float = 0.01
    """Share of the first attempts that fail."""
    seed: int = 0

    @property
    def journal(self) -> Path:
        return Path(self.folder) / f"{self.name}.jsonl"


class FailsOnPurpose(Exception):
    """Raised by some first attempts."""


def key_of(job: Job) -> str:
    return job.key


def jobs(order: str) -> Topic[Job]:
    return Topic(
        "jobs", Job, key=None if order == "none" else key_of, order=cast(Literal["none", "key", "total"], order)
    )


async def publish(work: Work, stop: asyncio.Event) -> None:
    """Publish numbered messages until told to stop; goes on from what an earlier process of this name attempted."""
    before = 0
    if work.journal.exists():
        before = sum(event.e == ATTEMPT for event in Lines(work.journal))
    journal = Journal(work.journal)
    topic = jobs(work.order)
    gate = asyncio.Semaphore(200)
    burst = max(1, round(work.rate / 50))

    async def one(job: Job) -> None:
        try:
            await bus.publish(topic, job)
        except MaybeSent:
            journal.write(UNSURE, job.id)
        except TransportError:
            journal.write(FAILED, job.id)
        else:
            journal.write(STORED, job.id)
        finally:
            gate.release()

    try:
        async with (
            Bus(work.url, name="verify", namespace=work.namespace, config={}) as bus,
            asyncio.TaskGroup() as tasks,
        ):
            for n in count(before):
                if stop.is_set():
                    break
                await gate.acquire()
                key = f"{work.name}.{n % work.keys}"
                job = Job(f"{key}/{n}", key, "x" * work.size)
                journal.write(ATTEMPT, job.id)
                tasks.create_task(one(job))
                if n % burst == 0:
                    await asyncio.sleep(burst / work.rate)
    finally:
        journal.close()


def consumer(work: Work) -> Bus:
    """The bus of one consumer."""
    journal, dice = Journal(work.journal), random.Random(f"{work.seed}/{work.name}/{os.getpid()}")
    bus = Bus(work.url, name="verify", namespace=work.namespace, config={}, grace=10.0)
    earliest = "earliest" in open_transport(work.url).capabilities.starts

    @bus.subscribe(
        jobs(work.order), group=GROUP, start="earliest" if earliest else "new", lease=work.lease,
        concurrency=work.concurrency, retry=Retry(attempts=None, base=0.05, cap=2.0), dead_letter=False,
    )  # fmt: skip
    async def handle(job: Job, message: Message[Job]) -> None:
        journal.write(BEGIN, job.id, f=message.fence, n=message.attempt)
        if work.seconds:
            await asyncio.sleep(dice.uniform(0, work.seconds))
        if message.attempt == 1 and dice.random() < work.failing:
            raise FailsOnPurpose
        journal.write(END, job.id, f=message.fence, n=message.attempt, c=zlib.crc32(message.data or b""))

    return bus


async def consume(work: Work, stop: asyncio.Event, ready: asyncio.Event) -> None:
    """Serve until told to stop."""
    async with consumer(work).serving():
        ready.set()
        await stop.wait()


async def main(role: str, work: Work) -> None:
    stop, ready = asyncio.Event(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    print("listening", flush=True)
    if role == "publish":
        await publish(work, stop)
        return
    serving = asyncio.create_task(consume(work, stop, ready))
    said = asyncio.create_task(_say_ready(ready))
    try:
        await serving
    finally:
        said.cancel()


async def _say_ready(ready: asyncio.Event) -> None:
    await ready.wait()
    print("ready", flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], msgspec.json.decode(os.environ[VARIABLE], type=Work)))
