"""Publishing many values: a bounded number at once, in the order of the input, with flat memory."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from switchgear import Bus, Topic
from switchgear.errors import CodecError, TransportError, Unavailable
from switchgear.knobs import PublishOptions
from switchgear.topic import check_topic_name

from .execute import describe, note
from .kept import Kept
from .lines import Record
from .stored import connected, planned, stored_topic

AT_ONCE = 1000  # publishes in flight: two of the largest batches that a transport prefers
SHOWN = 3  # reasons that are shown at the end; all of them are in the file


@dataclass(frozen=True, slots=True)
class Job:
    """What one command publishes, and how."""

    url: str | None
    topic: str
    key: str | None
    key_field: str | None
    rate: float | None
    """Messages a second."""
    timeout: float
    """Seconds."""


@dataclass(slots=True)
class Summary:
    """What became of the lines."""

    stored: int = 0
    failed: int = 0
    line: int = 0
    """The last line that was tried."""
    seconds: float = 0.0
    reasons: list[str] = field(default_factory=list[str])
    stopped: str = ""
    """Why the rest was not tried."""
    interrupted: bool = False
    lines_file: Path | None = None
    reasons_file: Path | None = None

    @property
    def text(self) -> str:
        return f"{self.stored:,} stored, {self.failed:,} failed"

    def as_dict(self) -> dict[str, object]:
        return {
            "stored": self.stored,
            "failed": self.failed,
            "lines_file": self.lines_file and str(self.lines_file),
            "reasons_file": self.reasons_file and str(self.reasons_file),
            "not_tried_from": self.line + 1 if self.stopped else None,
            "seconds": round(self.seconds, 3),
        }


@asynccontextmanager
async def session(job: Job) -> AsyncGenerator[tuple[Bus, Topic[Any]]]:
    """An open bus and the topic to publish to; says so when no group reads it."""
    check_topic_name(job.topic)
    async with Bus(job.url, name="switchgear") as bus:
        await connected(bus, job.timeout)
        exists = await _look(bus, job.topic)
        # A topic that exists keeps the order that it was made with; only a new one gets its order from us.
        new = job.key_field is not None and not exists
        yield bus, Topic(job.topic, msgspec.Raw, order="key" if new else None)


async def _look(bus: Bus, topic: str) -> bool:
    info = await stored_topic(bus, topic)
    if info is None or not info.groups:
        note(
            f"no group reads {topic} yet: what is published now reaches only groups that start at 'earliest' "
            "(switchgear provision creates groups ahead of the first message)"
        )
    return info is not None or await planned(bus, topic)


async def send(bus: Bus, topic: Topic[Any], record: Record, job: Job) -> str:
    """Publish one record; returns its id."""
    options: PublishOptions = {"timeout": job.timeout}
    key = record.key if job.key is None else job.key
    if key is not None:
        options["key"] = key
    return await bus.publish(topic, msgspec.Raw(record.body), **options)


class Sender:
    """Takes records in order, publishes up to AT_ONCE at a time, and keeps what failed."""

    def __init__(self, bus: Bus, topic: Topic[Any], job: Job, kept: Kept) -> None:
        self.summary = Summary()
        self._bus, self._topic, self._job, self._kept = bus, topic, job, kept
        self._ready: deque[Record] = deque()
        self._turn = asyncio.Lock()  # held while reading on, and while waiting for the rate
        self._slot = 0.0
        self._sending: set[asyncio.Task[None]] = set()

    async def run(self, records: AsyncIterator[Sequence[Record]]) -> Summary:
        """Publish them all. An interrupt stops the reading and lets what is on its way arrive.

        Raises what would fail for every line alike (a wrong name, a wrong URL), OSError when reading fails.
        """
        begun = time.monotonic()
        await self._step(records)  # the first alone: what is wrong with all of them shows here, and the topic is made
        workers = {asyncio.create_task(self._work(records)) for _ in range(AT_ONCE)}
        try:
            await self._watch(workers)
        except asyncio.CancelledError:
            self._stop("interrupted")
            self.summary.interrupted = True
            await self._end(workers, self._sending)
            if (task := asyncio.current_task()) is not None:
                task.uncancel()
        finally:
            await self._end(workers, set())
        self.summary.seconds = time.monotonic() - begun
        self.summary.lines_file, self.summary.reasons_file = self._kept.lines_file, self._kept.reasons_file
        return self.summary

    async def _watch(self, workers: set[asyncio.Task[None]]) -> None:
        done, _ = await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
        for worker in done:
            worker.result()

    async def _end(self, workers: set[asyncio.Task[None]], spared: set[asyncio.Task[None]]) -> None:
        for worker in workers - spared:
            worker.cancel()
        await asyncio.wait(workers)

    def _stop(self, why: str) -> None:
        self.summary.stopped = self.summary.stopped or why

    async def _work(self, records: AsyncIterator[Sequence[Record]]) -> None:
        while await self._step(records):
            pass

    async def _step(self, records: AsyncIterator[Sequence[Record]]) -> bool:
        """Publish the next record; False when there is none."""
        record = await self._next(records)
        if record is None:
            return False
        self.summary.line = record.line
        if record.reason:
            self._fail(record, record.reason)
            return True
        me = asyncio.current_task()
        assert me is not None
        self._sending.add(me)
        try:  # nothing was awaited since the record was taken, so calls have the order of the lines
            await send(self._bus, self._topic, record, self._job)
            self.summary.stored += 1
        except Unavailable as error:
            self._fail(record, describe(error))
            self._stop("the broker cannot be reached")
        except (TransportError, CodecError) as error:
            self._fail(record, describe(error))
        finally:
            self._sending.discard(me)
        return True

    async def _next(self, records: AsyncIterator[Sequence[Record]]) -> Record | None:
        if self._ready and self._job.rate is None and not self.summary.stopped:
            return self._ready.popleft()
        async with self._turn:
            while not self._ready and not self.summary.stopped:
                try:
                    self._ready.extend(await anext(records))
                except StopAsyncIteration:
                    return None
            if self._job.rate is not None:
                await self._pace(1 / self._job.rate)
            return None if self.summary.stopped else self._ready.popleft()

    async def _pace(self, gap: float) -> None:
        now = asyncio.get_running_loop().time()
        self._slot = max(self._slot + gap, now - 0.1)  # up to a tenth of a second is caught up, no more
        if self._slot > now:
            await asyncio.sleep(self._slot - now)

    def _fail(self, record: Record, reason: str) -> None:
        self._kept.add(record.line, record.text, reason)
        self.summary.failed += 1
        if len(self.summary.reasons) < SHOWN:
            self.summary.reasons.append(f"line {record.line}: {reason}")
