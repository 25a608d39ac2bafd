"""Storing records with librdkafka's producer, driven from the loop: no call of it waits."""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial
from typing import Any, Final, cast

from confluent_kafka import KafkaError, KafkaException, Message
from confluent_kafka import Producer as Client

from switchgear.errors import MaybeSent, NotSent, Refused, SwitchgearError, TransportError, Unavailable
from switchgear_kafka.cluster import Queues, Record, TopicPartition, lane

from .cluster import ConfluentCluster
from .connection import connection, made
from .failures import error_of, failure
from .names import Names

MARGIN = 0.2  # seconds, at most, before the caller's deadline that sending ends
SOON, LATER = 0.0003, 0.005  # seconds between two looks for what was stored: at first, and after a while
ASK = 1.0  # seconds to find out whether any broker is there
_TOO_LARGE: Final = frozenset({KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE})
_BEHIND: Final = frozenset({
    KafkaError._PURGE_QUEUE, KafkaError._GAPLESS_GUARANTEE, KafkaError._FATAL, KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER
})  # fmt: skip
"""Not stored, since an earlier batch was not."""
_UNKNOWN: Final = frozenset({
    KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT, KafkaError._MSG_TIMED_OUT, KafkaError._TIMED_OUT,
    KafkaError._TRANSPORT, KafkaError.REQUEST_TIMED_OUT, KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
    KafkaError.NETWORK_EXCEPTION, KafkaError._DESTROY,
})  # fmt: skip
"""It may have been stored."""


def producing(cluster: ConfluentCluster) -> dict[str, Any]:
    """The configuration of any producer: nothing times out by itself, and no gap is ever left."""
    tuning = cluster.settings.tuning
    found: dict[str, Any] = {
        "acks": tuning.acks, "compression.type": tuning.compression, "linger.ms": 0, "batch.size": 256 << 10,
        "message.max.bytes": 1_000_000_000, "queue.buffering.max.messages": 1_000_000,
        "socket.timeout.ms": round(max(cluster.patience, 1.0) * 1000),
        "request.timeout.ms": round(max(cluster.patience, 1.0) * 900),
    }  # fmt: skip
    if tuning.acks == "all":
        found |= {"enable.idempotence": True, "enable.gapless.guarantee": True, "message.timeout.ms": 0}
    else:
        found |= {"retries": 0, "message.timeout.ms": 0}
    return found


class Producer:
    """Of one connection; one `send` at a time."""

    def __init__(self, cluster: ConfluentCluster) -> None:
        self._cluster = cluster
        self._client: Client | None = None
        self._lock = asyncio.Lock()
        self._names = Names()
        self._down = False
        """No broker was there when the client last tried."""
        self._refused: KafkaError | None = None
        """Why the client gets no id to send under, if it was told."""

    def _hear(self, error: KafkaError) -> None:
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            self._down = True
        elif error.code() == KafkaError.CLUSTER_AUTHORIZATION_FAILED:
            self._refused = error

    def _poll(self, client: Client, wait: float = 0.0) -> None:
        """Have outcomes told. A fatal error is told by every call; what it means for each record its report says."""
        try:
            client.poll(wait)
        except KafkaException as error:
            self._hear(error_of(error))

    async def _open(self) -> Client:
        if self._client is None:
            settings = self._cluster.settings
            config = {**connection(settings, self._hear), **producing(self._cluster)}
            try:
                self._client = await made(settings, lambda: Client(config))
            except KafkaException as error:
                raise failure(self._cluster.at, error) from error
        return self._client

    def _drop(self) -> None:
        """What it still has goes nowhere; the next send begins with another, under another producer id."""
        client, self._client = self._client, None
        if client is not None:
            client.purge()
            self._poll(client)

    async def send(self, queues: Queues, deadline: float) -> dict[int, int | TransportError]:
        """Store what is queued for each partition; once a batch failed, no later record of its partition is stored."""
        loop = asyncio.get_running_loop()
        deadline -= min(MARGIN, 0.1 * (deadline - loop.time()))  # outcomes are worth more than the last moment
        async with self._lock:
            if self._client is not None:
                self._poll(self._client)
            if self._down or self._client is None:
                if not await self._cluster.reachable(min(loop.time() + ASK, deadline)):
                    gone = Unavailable(f"{self._cluster.at}: no broker can be reached")
                    return {record.place: gone for queue in queues.values() for record in queue}
                self._down = False
            found: dict[int, int | TransportError] = {}
            for tp, queue in queues.items():
                self._fit(tp, queue, found)
            try:
                outcomes = await self._deliver(queues, deadline)
                found |= self._judge(queues, outcomes)
                await self._singly(queues, outcomes, found, deadline)
            except BaseException:  # cancelled: what was under way may have been stored
                self._drop()
                raise
        return found

    def _fit(self, tp: TopicPartition, queue: deque[Record], found: dict[int, int | TransportError]) -> None:
        """Take out what can't be carried, and what follows of its key."""
        fit = self._names.fit
        if all(map(fit, queue)):
            return
        failed: set[bytes] = set()
        records = list(queue)
        queue.clear()
        for record in records:
            if record.key is not None and record.key in failed:
                found[record.place] = NotSent(
                    f"{self._where(tp)}: not stored, since an earlier message of its key was not"
                )
            elif fit(record):
                queue.append(record)
            else:
                found[record.place] = Refused(f"{self._where(tp)}: a header has a name that is no text")
                if record.key is not None:
                    failed.add(record.key)

    async def _deliver(self, queues: Queues, deadline: float) -> dict[int, int | KafkaError]:
        """Hand over to the client and wait for all reports; by place the offset or the error."""
        client, loop = await self._open(), asyncio.get_running_loop()
        outcomes: dict[int, int | KafkaError] = {}

        def report(place: int, error: KafkaError | None, message: Message) -> None:
            outcomes[place] = (message.offset() or 0) if error is None else error

        count = 0
        for (topic, partition), queue in queues.items():
            for record in queue:
                while True:
                    try:
                        client.produce(
                            topic,
                            record.value,
                            record.key,
                            partition,
                            headers=cast("Any", record.headers) or None,
                            on_delivery=partial(report, record.place),
                        )
                        break
                    except BufferError:
                        self._poll(client)
                        await asyncio.sleep(LATER)
                    except KafkaException as error:  # a fatal error, before this record
                        outcomes[record.place] = error_of(error)
                        break
                count += 1
        pause = SOON
        while len(outcomes) < count:
            self._poll(client)
            if len(outcomes) >= count:
                break
            if loop.time() >= deadline or self._refused is not None:
                client.purge()
                while len(outcomes) < count:
                    self._poll(client, 0.01)
                break
            await asyncio.sleep(pause)
            pause = min(pause * 1.2, LATER)
        if (refused := self._refused) is not None:
            self._refused = None
            queued = [
                n for n, one in outcomes.items() if not isinstance(one, int) and one.code() == KafkaError._PURGE_QUEUE
            ]
            outcomes.update(dict.fromkeys(queued, refused))
        if any(not isinstance(one, int) for one in outcomes.values()):
            self._drop()
        return outcomes

    def _judge(self, queues: Queues, outcomes: dict[int, int | KafkaError]) -> dict[int, int | TransportError]:
        """Our outcomes; what is behind a record that was refused is certainly not stored."""
        found: dict[int, int | TransportError] = {}
        for tp, queue in queues.items():
            refused = False
            for record in queue:
                outcome = outcomes[record.place]
                if isinstance(outcome, int):
                    found[record.place] = outcome
                elif refused and outcome.code() in _BEHIND:
                    found[record.place] = NotSent(f"{self._where(tp)}: not stored, since an earlier message was not")
                else:
                    found[record.place] = self._failed(tp, outcome)
                    refused = refused or outcome.code() not in _UNKNOWN
        return found

    async def _singly(
        self, queues: Queues, outcomes: dict[int, int | KafkaError], found: dict[int, int | TransportError],
        deadline: float,
    ) -> None:  # fmt: skip
        """Where a batch was too large, its records and those behind it one by one: so only what is too large fails."""
        for tp, queue in queues.items():
            codes = {one.code() for r in queue if not isinstance(one := outcomes[r.place], int)}
            if not codes & _TOO_LARGE or codes & (_UNKNOWN - _BEHIND):
                continue
            failed: set[bytes] = set()
            for record in [r for r in queue if not isinstance(outcomes[r.place], int)]:
                if record.key is not None and record.key in failed:
                    found[record.place] = NotSent(
                        f"{self._where(tp)}: not stored, since an earlier message of its key was not"
                    )
                    continue
                again: Queues = {tp: deque([record])}
                found.update(self._judge(again, await self._deliver(again, deadline)))
                if not isinstance(found[record.place], int) and record.key is not None:
                    failed.add(record.key)

    def _failed(self, tp: TopicPartition, error: KafkaError) -> TransportError:
        if error.code() in _UNKNOWN:
            return MaybeSent(f"{self._where(tp)}: the broker did not confirm it before the timeout ({error.name()})")
        ours: SwitchgearError = failure(self._where(tp), error)
        ours.__cause__ = KafkaException(error)
        return ours if isinstance(ours, TransportError) else Refused(str(ours))

    def _where(self, tp: TopicPartition) -> str:
        return f"{self._cluster.at}: {lane(tp)}"

    async def close(self) -> None:
        """Forget what was not delivered, and close."""
        self._drop()
