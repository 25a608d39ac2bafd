"""A consumer of confluent-kafka that a loop can use: all of it happens in one thread."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from queue import Empty
from typing import Final, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Message
from confluent_kafka import TopicPartition as Native

from switchgear_kafka.cluster import STALE, TopicPartition
from switchgear_kafka.membership import Tenure

from .calling import Answers, Calls, Unheard
from .cluster import ConfluentCluster
from .connection import connection
from .consuming import consuming, heartbeat
from .failures import failure
from .sharing import place, share

T = TypeVar("T")
WAIT = 1.0  # seconds that a read waits for the first message
AHEAD = 500  # messages that are read before they are asked for, so that each partition has its share
STEP = 0.03  # of which one call of the client takes so much
SESSION, BEAT = 45.0, 5.0  # of members by KIP-848, whose heartbeats the broker times: its defaults
LEAVE = 3.0  # seconds to leave the group and close connections
_WORTH_TELLING: Final = frozenset({
    KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED, KafkaError.INVALID_SESSION_TIMEOUT,
    KafkaError.INCONSISTENT_GROUP_PROTOCOL, KafkaError.FENCED_INSTANCE_ID, KafkaError._MAX_POLL_EXCEEDED,
    KafkaError.INVALID_GROUP_ID, KafkaError.UNSUPPORTED_VERSION, KafkaError._FATAL, KafkaError._UNSUPPORTED_FEATURE,
    KafkaError.UNSUPPORTED_ASSIGNOR, KafkaError.UNRELEASED_INSTANCE_ID,
})  # fmt: skip


class OutOfRangeAt(Exception):
    """The broker has nothing at our position of a partition."""

    def __init__(self, tp: TopicPartition) -> None:
        self.tp = tp


class Reader:
    """A consumer, its thread, and what it has given that nobody took yet."""

    def __init__(self, cluster: ConfluentCluster, group: str, lease: float = 30.0, *, alone: bool = False) -> None:
        """`alone`: the group is none, and whether there may be one does not matter."""
        self._telling = _WORTH_TELLING - ({KafkaError.GROUP_AUTHORIZATION_FAILED} if alone else set())
        self._cluster = cluster
        self._loop = asyncio.get_running_loop()
        self._config = consuming(cluster, group, lease)
        self._consumer: Consumer | None = None
        # the last heartbeat may be as old as two are apart
        self.tenure = Tenure(min(lease - 2 * heartbeat(lease), SESSION - 2 * BEAT))
        self._reads = ThreadPoolExecutor(1, "switchgear-kafka-read")
        self._calls, self._answers = Calls(), Answers()
        self.inside = False
        """Whether that thread waits in a callback."""
        self._late: Exception | None = None
        """What a read found that nobody asked for."""
        self._paused: set[TopicPartition] = set()
        self.next: dict[TopicPartition, int] = {}
        """Where the client goes on, by partition that is assigned."""
        self._spare: list[Message] = []
        """Taken while nobody had room."""
        self._heard = time.monotonic()
        self.since = self._began = -math.inf
        """When the read before this one began: what this one tells has happened later."""
        self._error: KafkaError | None = None
        self.closed = False
        self.epoch = 0
        """How often what is assigned has changed."""

    async def open(self) -> None:
        """Make the client; with OAuth that waits for a token. Raises TransportError, ConfigurationError."""
        config = {**connection(self._cluster.settings, self._hear), **self._config, "on_commit": self._answers.told}
        try:
            self._consumer = await self.reading(lambda: Consumer(config))
        except KafkaException as error:
            raise failure(self._cluster.at, error) from error

    @property
    def consumer(self) -> Consumer:
        """The client, once it is open."""
        assert self._consumer is not None
        return self._consumer

    def _hear(self, error: KafkaError) -> None:
        if error.code() in self._telling or error.fatal():
            self._error = error

    def reading(self, call: Callable[[], T]) -> asyncio.Future[T]:
        """Run in the thread that reads."""
        return self._loop.run_in_executor(self._reads, call)

    def between(self, call: Callable[[], T]) -> asyncio.Future[T]:
        """Run in the thread that reads, between two reads or inside its callback."""
        asked = self._calls.put(call)
        if not (self.inside or self.closed):
            self._reads.submit(self._idle)
        return asyncio.wrap_future(asked)

    async def commit(self, natives: list[Native]) -> Sequence[Native]:
        """Commit, and what the broker says of each partition. Raises KafkaException."""
        consumer = self.consumer
        if self.inside:  # no other answer arrives there
            return await self.between(lambda: consumer.commit(offsets=natives, asynchronous=False)) or ()

        def send() -> Future[Sequence[Native]]:
            consumer.commit(offsets=natives, asynchronous=True)
            return self._answers.expect(natives)

        try:
            return await asyncio.wrap_future(await self.between(send))
        except Unheard:
            return await self.commit(natives)

    def interrupted(self, lost: bool) -> None:
        """A rebalance begins: what is being committed is committed again inside it, or, once all is lost, refused."""
        self.inside = True
        self._answers.interrupt(KafkaException(KafkaError(KafkaError._ASSIGNMENT_LOST)) if lost else Unheard())

    def _idle(self) -> None:
        """Where nobody reads: make the calls that wait, and hear the answers to commits."""
        self._calls.every()
        if self._answers and not self.closed:
            try:
                self._take(1, STEP)
            except (KafkaException, OutOfRangeAt) as error:
                self._late = error
            if self._answers and not self.closed:
                with suppress(RuntimeError):  # closed meanwhile
                    self._reads.submit(self._idle)

    def on_loop(self, awaitable: Awaitable[T], within: float) -> T:
        """From a callback in the thread that reads, have something done on the loop, and calls for it meanwhile."""
        self.inside = True
        asked = asyncio.run_coroutine_threadsafe(_run(awaitable), self._loop)
        asked.add_done_callback(lambda _: self._calls.wake())
        until = time.monotonic() + within
        try:
            while not asked.done():
                self.tenure.awake()
                try:
                    self._calls.next(STEP)
                except Empty:
                    if time.monotonic() >= until:
                        asked.cancel()
                        raise TimeoutError from None
        finally:
            self.inside = False
        return asked.result()

    def tell(self, call: Callable[[], None]) -> None:
        """From a callback in the thread that reads, have the loop call this before what is read arrives there."""
        self._loop.call_soon_threadsafe(call)

    def changed(self, tps: Collection[TopicPartition]) -> None:
        """These were given or taken: what was read of them does not count."""
        self._spare = [one for one in self._spare if place(one) not in tps]
        self.epoch += 1

    def awaken(self, tps: Collection[TopicPartition]) -> None:
        """These are assigned. What was paused when it was taken stays so in the client, whoever had it meanwhile."""
        self._paused.difference_update(tps)
        if tps:
            self.consumer.resume([Native(*tp) for tp in tps])

    async def fetch(
        self, limit: int, wanted: Collection[TopicPartition] | None, every: Collection[TopicPartition]
    ) -> list[Message]:
        """What is there of these partitions (None: of all), else what comes within a second. Raises KafkaException."""
        if self.closed:
            return []
        return await self.reading(lambda: self._fetch(limit, wanted, every))

    def _fetch(
        self, limit: int, wanted: Collection[TopicPartition] | None, every: Collection[TopicPartition]
    ) -> list[Message]:
        if (late := self._late) is not None:
            self._late = None
            raise late
        if limit <= 0:
            if len(self._spare) >= AHEAD:
                self._pause(set(every))
            self._take(1, 0.0)
            return []
        held = set[TopicPartition]() if wanted is None else set(every) - set(wanted)
        self._pause(held)
        ours = any(place(one) not in held for one in self._spare) if held else bool(self._spare)
        self._take(max(limit, AHEAD - len(self._spare)), 0.0 if ours else WAIT if wanted is None else STEP)
        taken, self._spare = share(self._spare, limit, held)
        return taken

    def _take(self, limit: int, wait: float) -> None:
        found = self._read(limit, wait)  # which may change what is spare
        self._spare += found

    def _pause(self, held: set[TopicPartition]) -> None:
        try:
            if more := held - self._paused:
                self.consumer.pause([Native(*tp) for tp in more])
                self._paused |= more
            if less := self._paused - held:
                self.consumer.resume([Native(*tp) for tp in less])
                self._paused -= less
        except KafkaException:  # one of them is ours no more: a rebalance is about to be told
            return

    def _read(self, limit: int, wait: float) -> list[Message]:
        """Never waits for a batch to fill; what it took across a rebalance is given back."""
        epoch, until = self.epoch, time.monotonic() + wait
        while True:
            self.since, self._began = self._began, time.monotonic()
            self.tenure.awake()
            self._calls.every()
            found = self.consumer.consume(limit, 0.0)
            if not found and wait:
                found = self.consumer.consume(1, STEP)
                if found and limit > 1:
                    found += self.consumer.consume(limit - 1, 0.0)
            if self.epoch != epoch:
                self._back(found)
                return []
            if found:
                self._heard = time.monotonic()
                return self._good(found)
            if self._error is not None:
                raise KafkaException(self._error)
            if time.monotonic() >= until or self.closed:
                return []

    def _good(self, found: Sequence[Message]) -> list[Message]:
        good: list[Message] = []
        for message in found:
            error = message.error()
            if error is None:
                good.append(message)
                self.next[place(message)] = (message.offset() or 0) + 1
            elif error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
                self._spare += good
                raise OutOfRangeAt(place(message))
            elif error.code() in self._telling or error.fatal():
                self._spare += good
                raise KafkaException(error)
        return good

    def _back(self, messages: Sequence[Message]) -> None:
        """Read these again: nobody can tell any more which came before the rebalance, and which after it."""
        for tp in {place(message) for message in messages if message.error() is None}:
            if tp in self.next:  # it is ours, and what it has given to nobody begins there
                self.consumer.seek(Native(*tp, self.next[tp]))

    async def go_on(self, tp: TopicPartition, offset: int, *, stepwise: bool) -> None:
        """Go on there, also where the client has stopped for want of a position."""

        def seek() -> None:
            self.next[tp] = offset
            if stepwise:
                self.consumer.incremental_unassign([Native(*tp)])
                self.consumer.incremental_assign([Native(*tp, offset)])
            else:
                self.consumer.assign([Native(*one, at) for one, at in self.next.items()])

        await self.reading(seek)

    async def alive(self) -> bool:
        """False when nothing came for a while and no broker answers. The client tries again for ever."""
        if self.closed or time.monotonic() - self._heard < STALE:
            return True
        if await self._cluster.reachable(self._loop.time() + STALE):
            self._heard = time.monotonic()
            return True
        return self.closed

    async def stop(self) -> None:
        """Leave the group and close, within bounds."""
        if self.closed:
            return
        self.closed = True
        if self._consumer is not None:
            closing = self.reading(self._consumer.close)
            await asyncio.wait([closing], timeout=LEAVE)
            if closing.done() and not closing.cancelled():
                closing.exception()  # what fails at the end fails for nobody
        self._reads.shutdown(wait=False, cancel_futures=True)


async def _run(awaitable: Awaitable[T]) -> T:
    return await awaitable
