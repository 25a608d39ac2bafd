"""Reading a stretch of a partition, without a group and without a client of its own."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from aiokafka import ConsumerRecord
from aiokafka import errors as kafka
from aiokafka.consumer.fetcher import PartitionRecords
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.record.memory_records import MemoryRecords

from .cluster import TopicPartition
from .lenient import LenientRecords
from .wire import COMMITTED_READS, Wire, raise_for

PAGE = 1 << 20  # bytes of one answer


async def read(
    wire: Wire, tp: TopicPartition, offset: int, limit: int | None = None
) -> tuple[Sequence[ConsumerRecord], int]:
    """The records from an offset on, as many as fit an answer and `limit`, and the offset to go on with.

    The offset stays where there is nothing more. Raises what `Wire.insist` does, OffsetOutOfRange as Refused.
    """

    async def ask() -> tuple[Sequence[ConsumerRecord], int]:
        leader = wire.client.cluster.leader_for_partition(tp)
        if leader is None or leader == -1:
            _ = wire.client.add_topic(tp.topic)
            raise kafka.LeaderNotAvailableError(tp)
        request = FetchRequest(0, 0, PAGE, COMMITTED_READS, [(tp.topic, [(tp.partition, offset, PAGE)])])
        response = await wire.client.send(leader, request)
        for _, partitions in response.topics:
            for _, code, _, *rest in partitions:
                raise_for(code, f"{tp.topic}/{tp.partition}")
                aborted = rest[2] if response.API_VERSION >= 11 else rest[-2]
                try:
                    return _parsed(tp, MemoryRecords(rest[-1]), aborted, offset, limit)
                except UnicodeDecodeError:
                    return _parsed(tp, LenientRecords(rest[-1]), aborted, offset, limit)
        return (), offset

    return await wire.insist(ask, f"{tp.topic}/{tp.partition}")


def _parsed(
    tp: TopicPartition, records: MemoryRecords | LenientRecords, aborted: object, offset: int, limit: int | None
) -> tuple[Sequence[ConsumerRecord], int]:
    found = PartitionRecords(tp, records, aborted, offset, None, None, True, COMMITTED_READS)
    page = list(islice(found, limit))
    return page, max(offset, found.next_fetch_offset)
