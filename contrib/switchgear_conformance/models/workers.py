"""A queue through `Bus`: workers fail, hang, are closed and come back, and every message is done once."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from typing import TypedDict

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from switchgear import Retry, Topic
from switchgear.driver import Settling
from switchgear_conformance.context import Context
from switchgear_conformance.member import PATIENCE

from .play import Program, program, step

GRACE = 0.2  # seconds for a worker's end; one whose handlers hang takes all of them


def workers(c: Context, *, ordered: bool) -> SearchStrategy[Program]:
    """Programs of publishing to two workers that are not always well."""
    who = st.integers(0, 1)
    publish = step("publish", st.sampled_from("ab"), st.sampled_from([1, 2, 5]))
    fail, hang, go = step("fail", st.sampled_from([1, 2, 5])), step("hang"), step("go")
    return program(
        *[publish] * 4, fail, fail, hang, go, step("stop", who), step("start", who), step("start", who),
        first=step("open", st.just(ordered)), size=24 if c.harness.virtual else 8,
    )  # fmt: skip


class Job(TypedDict):
    key: str
    number: int


class Workers:
    """Two buses that serve one group, and a third that publishes."""

    def __init__(self, context: Context) -> None:
        self.c = context
        self.publisher = context.bus()
        self.workers: dict[int, AsyncExitStack] = {}
        self.well = asyncio.Event()
        self.well.set()
        self.failing = 0
        self.sent: list[Job] = []
        self.done: list[Job] = []
        self.running: Counter[int] = Counter()
        """By job, how many handlers are at it."""
        self.overtaken: set[int] = set()
        """Jobs that may be done twice: another worker was given them while a handler was at them."""
        self.log = context.log()
        context.closed(self._close)

    async def open(self, ordered: bool) -> None:
        """The first worker starts."""
        self.topic = Topic(
            "jobs",
            Job,
            key=lambda job: job["key"],
            order="key" if ordered else "none",
            partitions=2 if ordered else None,
        )
        await self.c.opened(self.publisher)
        await self.start(0)

    async def publish(self, key: str, count: int) -> None:
        """So many jobs of a key."""
        jobs = [Job(key=key, number=len(self.sent) + i) for i in range(count)]
        self.sent += jobs
        await self.publisher.publish_many(self.topic, jobs)

    async def fail(self, count: int) -> None:
        """The next calls of the handler raise."""
        self.failing += count

    async def hang(self) -> None:
        """Handlers wait from now on."""
        self.well.clear()

    async def go(self) -> None:
        """Handlers go on."""
        self.well.set()

    async def start(self, who: int) -> None:
        """A worker serves."""
        if who in self.workers:
            return
        bus = self.c.bus(grace=GRACE)

        @bus.subscribe(self.topic, group="workers", retry=Retry(attempts=None, base=0.01, cap=0.02), lease=self.c.lease)
        async def work(job: Job) -> None:
            self.running[job["number"]] += 1
            try:
                await self.well.wait()
            finally:
                self.running[job["number"]] -= 1
            if self.failing:
                self.failing -= 1
                raise RuntimeError("as the program says")
            self.done.append(job)
            self.log.add(job)

        stack = self.workers[who] = AsyncExitStack()
        await stack.enter_async_context(bus.serving())
        self._rebalanced()

    async def stop(self, who: int) -> None:
        """A worker is closed; where its handlers hang, they are cancelled."""
        if who in self.workers:
            await self.workers.pop(who).aclose()
            self._rebalanced()

    def _rebalanced(self) -> None:
        """Where all lanes change hands when a member comes or goes, handlers that hang may keep none."""
        if self.c.capabilities.settling is Settling.CUMULATIVE:
            self.overtaken |= set(+self.running)

    async def finish(self) -> None:
        """With workers that are well again everything is done, once."""
        self.well.set()
        await self.start(0)
        wanted = {job["number"] for job in self.sent}
        await self.log.until(
            lambda: {job["number"] for job in self.done} >= wanted, f"all {len(wanted)} jobs are done",
            PATIENCE + 2 * self.c.lease,
        )  # fmt: skip
        if self.c.virtual:
            await self.log.quiet(2 * self.c.lease)
        await self._close()
        unknown = [job for job in self.done if job not in self.sent]
        assert not unknown, f"handled, and never published: {unknown[:5]}"
        again = [n for n, times in Counter(job["number"] for job in self.done).items() if times > 1]
        again = [n for n in again if n not in self.overtaken]
        assert not again, f"handled again after the handler had returned: jobs {again[:5]}"
        if self.topic.order == "key":
            for key in "ab":
                numbers = list(dict.fromkeys(job["number"] for job in self.done if job["key"] == key))
                assert numbers == sorted(numbers), f"key {key} was done in the order {numbers[:40]}"

    async def _close(self) -> None:
        self.well.set()
        for who in list(self.workers):
            await self.stop(who)
        await self.publisher.close()
