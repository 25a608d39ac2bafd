"""The reading client of a subscription: made, asked whether it is alive, and stopped within bounds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka import TopicPartition as Native

from . import log
from .cluster import FETCH_BYTES, STALE, TopicPartition
from .lanes import offset_of
from .records import Fetched, KafkaDelivery, deliveries
from .security import connection
from .wire import Wire, hang_up

WAIT = 1.0  # seconds that a read waits for the first record
SOME = 0.1  # or where partitions are left out, which may be wanted again soon
FETCH = 0.25  # seconds for which a broker waits for records: what a leader asks for a rebalance waits behind it
HEARTBEAT = 0.3  # seconds: by its answers a member hears that others join, who wait for it
LEAVE = 2.0  # seconds to leave the group and close connections
JOIN_MARGIN = 10.0  # seconds by which a request outlives the longest that the group makes it wait

MOST_IDLE = 3600.0  # seconds without a read after which the client leaves; a source is called once a second
NOWHERE = Native("", -1)
"""A partition that nobody has: asking for it shows that we are alive and takes nothing."""


def make(wire: Wire, group: str | None, lease: float = 30.0) -> AIOKafkaConsumer:
    """A consumer that commits nothing by itself and goes nowhere where it has no position."""
    settings = wire.settings
    tuning = settings.tuning
    return AIOKafkaConsumer(
        **connection(settings), client_id="switchgear", group_id=group, group_instance_id=tuning.group_instance_id,
        client_rack=tuning.client_rack, enable_auto_commit=False, auto_offset_reset="none",
        isolation_level="read_committed", fetch_max_bytes=FETCH_BYTES, fetch_max_wait_ms=round(FETCH * 1000),
        session_timeout_ms=round(lease * 1000),
        heartbeat_interval_ms=round(min(HEARTBEAT, lease / 5) * 1000),
        rebalance_timeout_ms=round(tuning.rebalance * 1000), max_poll_interval_ms=round(MOST_IDLE * 1000),
        request_timeout_ms=round((max(tuning.rebalance, lease) + JOIN_MARGIN) * 1000),
    )  # fmt: skip


class Reader:
    """A consumer whose reads can be given up, and which knows when no broker answers."""

    def __init__(self, wire: Wire, group: str | None, lease: float = 30.0) -> None:
        self.consumer = make(wire, group, lease)
        self._wire = wire
        self._next: dict[TopicPartition, int] = {}
        """Where to go on: the client's own positions run ahead of what it has handed out when it chokes on a record."""
        self._loop = asyncio.get_running_loop()
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self._arriving: asyncio.Future[None] | None = None
        """Done when something is fetched."""
        self._heard = time.monotonic()

    @property
    def closed(self) -> bool:
        """Whether it was stopped."""
        return self._closed.done()

    def seek(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Go on there."""
        for tp, offset in offsets.items():
            self._next[tp] = offset
            self.consumer.seek(Native(*tp), offset)

    async def wait(self, event: asyncio.Event) -> bool:
        """Whether the event happens within a receive's time."""
        waiting = asyncio.ensure_future(event.wait())
        try:
            await self._first(waiting, WAIT)
        finally:
            waiting.cancel()
        return event.is_set()

    async def fetch(
        self, limit: int, wanted: Sequence[TopicPartition] | None
    ) -> Mapping[Native, Sequence[KafkaDelivery]]:
        """What is there of these partitions (None: of all), else what comes within a second at most.

        With `limit=0` nothing is taken; that we asked keeps the membership. Raises what the client raises.
        """
        try:
            batch = await self._fetch(limit, wanted)
        except UnicodeDecodeError:
            return await self._reread(limit, wanted)
        fetcher: Any = self.consumer._fetcher
        for tp, taken in batch.items():
            self._next[TopicPartition(*tp)] = offset_of(taken[-1]) + 1
            if tp in fetcher._records:  # else the client hands out all that it has of one before it looks at the next
                fetcher._records.move_to_end(tp)
        return batch

    async def _reread(
        self, limit: int, wanted: Sequence[TopicPartition] | None
    ) -> Mapping[Native, Sequence[KafkaDelivery]]:
        """The same without the client, which chokes on a header's name and has lost what it took with it."""
        batch: dict[Native, Sequence[KafkaDelivery]] = {}
        for native in self.consumer.assignment():
            tp = TopicPartition(*native)
            if tp not in self._next:
                continue
            offset = self._next[tp]
            if limit > 0 and (wanted is None or tp in wanted):
                records, offset = await log.read(self._wire, tp, offset, limit)
                if records:
                    batch[native] = deliveries(tp, records)
                    limit -= len(records)
            self.seek({tp: offset})
        return batch

    async def _fetch(
        self, limit: int, wanted: Sequence[TopicPartition] | None
    ) -> Mapping[Native, Sequence[KafkaDelivery]]:
        fetcher: Any = self.consumer._fetcher
        if not isinstance(fetcher._records, Fetched):
            fetcher._records = Fetched(fetcher._records)
        some = () if wanted is None else [Native(*tp) for tp in wanted] or (NOWHERE,)
        if limit <= 0:
            await self.consumer.getmany(NOWHERE, timeout_ms=0)
            return {}
        getmany: Any = self.consumer.getmany  # of what `Fetched` makes
        batch: Mapping[Native, Sequence[KafkaDelivery]]
        until = self._loop.time() + (WAIT if wanted is None else SOME)
        while True:
            batch = await getmany(*some, timeout_ms=0, max_records=limit)
            if batch or self._loop.time() >= until:
                return batch
            await self._arrival(fetcher, until)
            if self.closed:
                return {}

    async def _arrival(self, fetcher: Any, until: float) -> None:
        """Until something is fetched, or `until` on the loop's clock, or this is closed.

        The client would wait, too, in tasks of its own; each turn of the loop is a part of every latency.
        """
        arrival: asyncio.Future[None] = fetcher._create_fetch_waiter()
        self._arriving = arrival
        timer = self._loop.call_at(until, _done, arrival)
        try:
            await arrival
        finally:
            timer.cancel()

    async def alive(self) -> bool:
        """False when no broker has answered for a while. The client itself tries again for ever and tells nobody."""
        consumer = self.consumer
        now, wall = time.monotonic(), time.time()
        polled = [consumer.last_poll_timestamp(tp) or 0 for tp in consumer.assignment()]
        if polled and wall - max(polled) / 1000 < STALE:
            self._heard = now
        if now - self._heard < STALE or self.closed:
            return True
        asked = consumer._client.force_metadata_update()
        await self._first(asked, STALE)
        if asked.done() and asked.result():
            self._heard = time.monotonic()
            return True
        if not self.closed:
            hang_up(consumer._client)
        return self.closed

    async def _first(self, other: asyncio.Future[Any], within: float | None) -> None:
        """Until it is done, or this is closed."""
        both: tuple[asyncio.Future[Any], ...] = (other, self._closed)
        await asyncio.wait(both, timeout=within, return_when=asyncio.FIRST_COMPLETED)

    async def stop(self) -> None:
        """Leave the group and close; pending reads return."""
        if not self.closed:
            self._closed.set_result(None)
            if self._arriving is not None:
                _done(self._arriving)
            await asyncio.sleep(0)
            await _stop(self.consumer)


def _done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _stop(consumer: AIOKafkaConsumer) -> None:
    """By force where the brokers do not answer in time, so that no task is left."""
    stopping = asyncio.ensure_future(consumer.stop())
    await asyncio.wait([stopping], timeout=LEAVE)
    if stopping.done():
        if not stopping.cancelled():
            stopping.exception()  # what fails at the end fails for nobody
        return
    coordinator, fetcher = consumer._coordinator, consumer._fetcher
    tasks: list[asyncio.Future[Any]] = [stopping]
    for owner, name in (
        (coordinator, "_coordination_task"), (coordinator, "_heartbeat_task"), (coordinator, "_commit_refresh_task"),
        (fetcher, "_fetch_task"),
    ):  # fmt: skip
        task = getattr(owner, name, None)
        if task is not None:
            tasks.append(task)
    tasks += getattr(fetcher, "_pending_tasks", ())
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks, timeout=1.0)
    closing = asyncio.ensure_future(consumer._client.close())
    tasks.append(closing)
    await asyncio.wait([closing], timeout=1.0)
    closing.cancel()
    for task in tasks:
        if task.done() and not task.cancelled():
            task.exception()  # seen
