"""Deleting what the only group that reads a topic has settled.

Kafka keeps what was read. Topics of copies keep everything until it is settled, however long that takes, so something
has to make room: the member that settles, as Kafka Streams does with its repartition topics (KIP-107).
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Collection

from aiokafka import errors as kafka
from aiokafka.protocol.admin import DeleteRecordsRequest

from .cluster import TopicPartition
from .failures import CONNECT
from .wire import Wire, by_topic

EVERY = 30.0  # seconds
PATIENCE = 1.0  # seconds for an answer

_FORBIDDEN = (kafka.TopicAuthorizationFailedError, kafka.PolicyViolationError)


class Purge:
    """Of one subscription; `topics` are its own."""

    def __init__(self, wire: Wire, topics: Collection[str], every: float = EVERY) -> None:
        self._wire, self._topics, self._every = wire, frozenset(topics), every
        self._settled: dict[TopicPartition, int] = {}
        self._next = time.monotonic() + every

    def settled(self, tp: TopicPartition, offset: int) -> None:
        """All before this offset is committed."""
        if tp.topic in self._topics:
            self._settled[tp] = offset

    async def run(self) -> None:
        """Delete, when it is time. What fails is tried again with what is settled next; without the right, never."""
        if not self._settled or time.monotonic() < self._next:
            return
        offsets, self._settled = self._settled, {}
        by_leader: dict[int, list[TopicPartition]] = defaultdict(list)
        for tp in offsets:
            leader = self._wire.client.cluster.leader_for_partition(tp)
            if leader is not None and leader != -1:
                by_leader[leader].append(tp)
        for leader, tps in by_leader.items():
            topics = by_topic(tps, lambda tp: (tp.partition, offsets[tp]))
            try:
                async with asyncio.timeout(PATIENCE):
                    request = DeleteRecordsRequest(topics, round(PATIENCE * 1000))
                    response = await self._wire.client.send(leader, request)
            except CONNECT:
                continue
            for topic, partitions, *_ in response.topics:
                if any(issubclass(kafka.for_code(code), _FORBIDDEN) for _, _, code, *_ in partitions):
                    self._topics -= {topic}
        self._next = time.monotonic() + self._every
