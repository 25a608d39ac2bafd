"""Storing records: one request a broker for all of a batch, resent under its sequence number until it is answered.

The client's own producer retries without an end and does not tell what became of a record, so that a definite outcome
would be lost; and a refused batch leaves a gap in its sequence numbers, after which the broker takes nothing more of
that partition. Here a sequence number is used up only by what was, or may have been, stored (KIP-98).
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from aiokafka import codec
from aiokafka import errors as kafka
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.protocol.transaction import InitProducerIdRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from switchgear.errors import (
    ConfigurationError,
    MaybeSent,
    NotSent,
    Refused,
    SwitchgearError,
    TransportError,
    Unavailable,
)

from .cluster import Queues, Record, TopicPartition
from .failures import CONNECT, failure, for_code
from .wire import Wire

BATCH = 256 << 10  # bytes of a record batch
MARGIN = 0.2  # seconds, at most, before the caller's deadline that sending ends
PAUSE = 0.1  # seconds before a batch without an answer is sent again
SEQUENCES = 1 << 31  # after the highest comes 0
CODECS: Final = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}

_STORED: Final = (kafka.NoError, kafka.DuplicateSequenceNumber)
_UNKNOWN: Final = (kafka.RequestTimedOutError, kafka.NotEnoughReplicasAfterAppendError)
"""The leader may have it."""
_MOVED: Final = (kafka.NotLeaderForPartitionError, kafka.LeaderNotAvailableError, kafka.UnknownTopicOrPartitionError)
_TOO_LARGE: Final = (kafka.MessageSizeTooLargeError, kafka.RecordListTooLargeError)
_ORPHANED: Final = (kafka.OutOfOrderSequenceNumber, kafka.UnknownProducerId, kafka.InvalidProducerEpoch,
                    kafka.InvalidProducerIdMapping)  # fmt: skip
"""The broker knows our sequence no more: a new producer id begins a new one."""


class Batch(msgspec.Struct):
    """Records of one partition that are stored together, or not at all."""

    tp: TopicPartition
    records: list[Record]
    data: bytearray
    sequence: int
    unsure: bool = False
    """It was sent, and no answer came."""
    offset: int = -1
    error: SwitchgearError | None = None


class Producer:
    """Of one connection; one `send` at a time."""

    def __init__(self, wire: Wire) -> None:
        tuning = wire.settings.tuning
        self._wire = wire
        self._idempotent = tuning.acks == "all"
        self._codec = CODECS[tuning.compression]
        if self._codec > CODECS["gzip"] and not codec.has_lz4():  # one library for all three
            raise ConfigurationError(
                f"{wire.at}: compression={tuning.compression} takes a library that is missing: "
                "pip install 'switchgear[kafka]'"
            )
        self._id: tuple[int, int] | None = None if self._idempotent else (-1, -1)
        self._sequences: dict[TopicPartition, int] = {}
        self._lock = asyncio.Lock()

    async def send(self, queues: Queues, deadline: float) -> dict[int, int | TransportError]:
        """Store what is queued for each partition, in order; by place the offset, or what happened instead.

        Once a batch of a partition failed, the rest of that partition is not stored.
        """
        outcomes: dict[int, int | TransportError] = {}
        now = asyncio.get_running_loop().time()
        deadline -= min(MARGIN, 0.1 * (deadline - now))  # outcomes are worth more than the last moment
        async with self._lock:
            single: set[TopicPartition] = set()
            try:
                while queues:
                    try:
                        await self._identify(deadline)
                    except TransportError as error:
                        outcomes.update((record.place, error) for queue in queues.values() for record in queue)
                        break
                    packed = [self._pack(tp, queue, tp in single, outcomes) for tp, queue in list(queues.items())]
                    batches = [batch for batch in packed if batch.records]
                    for batch in packed:
                        if not batch.records:
                            del queues[batch.tp]
                    await self._deliver(batches, deadline)
                    for batch in batches:
                        self._judge(batch, queues, single, outcomes)
                    if any(batch.unsure and batch.error is not None for batch in batches):
                        self._renew()
            except BaseException:  # cancelled: what was under way may have been stored
                self._renew()
                raise
        return outcomes

    def _renew(self) -> None:
        """Nobody knows any more what the broker expects next: begin anew under another id."""
        if self._idempotent:
            self._id = None
            self._sequences.clear()

    async def _identify(self, deadline: float) -> None:
        if self._id is not None:
            return
        wire = self._wire

        async def ask() -> tuple[int, int]:
            response = await wire.client.send(wire.anyone(), InitProducerIdRequest(None, -1))
            if response.error_code:
                raise kafka.for_code(response.error_code)
            return response.producer_id, response.producer_epoch

        self._id = await wire.insist(ask, "a producer id", deadline)

    def _pack(
        self, tp: TopicPartition, queue: deque[Record], single: bool, outcomes: dict[int, int | TransportError]
    ) -> Batch:
        """The next batch of a partition, out of its queue; empty where the whole queue can't be carried."""
        assert self._id is not None
        id, epoch = self._id
        sequence = self._sequences.get(tp, 0) if self._idempotent else -1
        builder = DefaultRecordBatchBuilder(
            2, self._codec, is_transactional=0, producer_id=id, producer_epoch=epoch, base_sequence=sequence,
            batch_size=BATCH,
        )  # fmt: skip
        records: list[Record] = []
        append = builder.append
        while queue and (not single or not records):
            record = queue[0]
            try:
                if append(len(records), None, record.key, record.value, record.headers) is None:
                    break
            except UnicodeEncodeError:
                self._uncarried(tp, queue, outcomes)
                continue
            records.append(queue.popleft())
        return Batch(tp, records, builder.build(), sequence)

    def _uncarried(self, tp: TopicPartition, queue: deque[Record], outcomes: dict[int, int | TransportError]) -> None:
        """The first record has a header whose name is no text: it is refused, and what follows of its key not sent."""
        first = queue.popleft()
        outcomes[first.place] = Refused(f"{self._wire.at}: {tp.topic!r}: a header has a name that is no text")
        for record in [r for r in queue if first.key is not None and r.key == first.key]:
            queue.remove(record)
            outcomes[record.place] = NotSent(
                f"{self._wire.at}: {tp.topic!r}: not stored, since an earlier message of its key was not"
            )

    async def _deliver(self, batches: Sequence[Batch], deadline: float) -> None:
        """Send until each is answered, or its failure is certain, or time is up."""
        loop = asyncio.get_running_loop()
        cluster = self._wire.client.cluster
        waiting = list(batches)
        while waiting:
            by_leader: dict[int, list[Batch]] = defaultdict(list)
            for batch in waiting:
                leader = cluster.leader_for_partition(batch.tp)
                if leader is not None and leader != -1:
                    by_leader[leader].append(batch)
                elif not batch.unsure:
                    batch.error = NotSent(f"{self._where(batch)}: the partition has no leader at the moment")
            if len(by_leader) == 1:  # without tasks: a turn of the loop is a part of every latency
                ((node, mine),) = by_leader.items()
                await self._ask(node, mine, deadline)
            elif by_leader:
                await asyncio.gather(*(self._ask(node, mine, deadline) for node, mine in by_leader.items()))
            waiting = [b for b in waiting if b.offset < 0 and b.error is None]
            for batch in waiting:
                if not self._idempotent or loop.time() + PAUSE >= deadline:
                    batch.error = MaybeSent(f"{self._where(batch)}: the broker did not confirm it before the timeout")
            waiting = [b for b in waiting if b.error is None]
            if waiting or any(b.error is not None for b in batches):
                refreshed = self._wire.client.force_metadata_update()
                if waiting:
                    await asyncio.wait([refreshed], timeout=PAUSE)
                    await asyncio.sleep(PAUSE)

    async def _ask(self, node: int, batches: Sequence[Batch], deadline: float) -> None:
        """One request to one leader. A batch of which it is not known what became is left `unsure`, without error."""
        client, loop = self._wire.client, asyncio.get_running_loop()
        topics: dict[str, list[tuple[int, bytearray]]] = defaultdict(list)
        for batch in batches:
            topics[batch.tp.topic].append((batch.tp.partition, batch.data))
        patience = max(1, round(min(deadline - loop.time(), self._wire.patience) * 900))  # the broker answers first
        request = ProduceRequest(None, -1 if self._idempotent else 1, patience, list(topics.items()))
        response: Any = None
        written = False
        try:
            async with asyncio.timeout_at(deadline):
                if await client.ready(node):
                    written = True
                    response = await client.send(node, request)
        except CONNECT as error:
            if written:
                certain = failure(self._wire.at, error) if isinstance(error, kafka.IncompatibleBrokerVersion) else None
                for batch in batches:
                    batch.unsure, batch.error = True, certain
                return
        if not written:
            for batch in batches:
                if not batch.unsure:
                    batch.error = Unavailable(f"{self._where(batch)}: its leader, broker {node}, cannot be reached")
            return
        asked = {batch.tp: batch for batch in batches}
        for topic, partitions in response.topics:
            for partition, code, offset, *_ in partitions:
                self._answered(asked[TopicPartition(topic, partition)], for_code(code), offset)

    def _answered(self, batch: Batch, error: type[kafka.KafkaError], offset: int) -> None:
        if issubclass(error, _STORED):
            batch.offset = max(offset, 0)
        elif issubclass(error, _UNKNOWN):
            batch.unsure = True
        elif issubclass(error, _ORPHANED):
            text = f"{self._where(batch)}: the broker forgot this producer ({error.__name__})"
            batch.error = MaybeSent(text) if batch.unsure else NotSent(text)
            batch.unsure = True  # in any case its sequence is of no use any more
        elif batch.unsure and error.retriable:
            pass  # sent before: only a resend tells
        else:
            cause = error(batch.tp.topic)
            found = failure(self._where(batch), cause)
            if batch.unsure and not isinstance(cause, _TOO_LARGE):
                found = MaybeSent(f"{found}; an earlier try was not answered")
            elif isinstance(cause, _MOVED):
                found = NotSent(f"{self._where(batch)}: not led by the broker that was asked ({error.__name__})")
            found.__cause__ = cause
            batch.error = found

    def _judge(
        self, batch: Batch, queues: Queues, single: set[TopicPartition],
        outcomes: dict[int, int | TransportError],
    ) -> None:  # fmt: skip
        """Note the outcomes of a batch, and what follows for the rest of its partition."""
        tp, error = batch.tp, batch.error
        queue = queues[tp]
        if error is None:
            if self._idempotent:
                self._sequences[tp] = (batch.sequence + len(batch.records)) % SEQUENCES
            for n, record in enumerate(batch.records):
                outcomes[record.place] = batch.offset + n
        elif len(batch.records) > 1 and isinstance(
            error.__cause__, _TOO_LARGE
        ):  # the topic takes less than a batch of ours: record by record, so that only what is too large fails
            queue.extendleft(reversed(batch.records))
            single.add(tp)
        else:
            if not isinstance(error, TransportError):
                raise error
            failed = {record.key for record in batch.records} - {None}
            for record in batch.records:
                outcomes[record.place] = error
            alone = isinstance(error, Refused) and len(batch.records) == 1
            for record in list(queue):
                if not alone or record.key in failed:
                    outcomes[record.place] = NotSent(
                        f"{self._where(batch)}: not stored, since an earlier message of its partition was not"
                    )
                    queue.remove(record)
        if not queue:
            del queues[tp]

    def _where(self, batch: Batch) -> str:
        return f"{self._wire.at}: {batch.tp.topic!r}, partition {batch.tp.partition}"
