"""Deleting what the only group that reads a topic has settled.

Kafka keeps what was read. Topics of copies keep everything until it is settled, however long that takes, so something
has to make room: the member that settles, as Kafka Streams does with its repartition topics (KIP-107).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping

from switchgear.errors import NotFound, Refused, SwitchgearError

from .cluster import Cluster, Refusals, TopicPartition

EVERY = 30.0  # seconds
PATIENCE = 1.0  # seconds for an answer


class Purge:
    """Of one subscription; `topics` are its own."""

    def __init__(self, cluster: Cluster, topics: Collection[str], every: float = EVERY) -> None:
        self._cluster, self._topics, self._every = cluster, frozenset(topics), every
        self._settled: dict[TopicPartition, int] = {}
        self._next = time.monotonic() + every

    def committed(self, offsets: Mapping[TopicPartition, int]) -> None:
        """All before these offsets is settled."""
        if self._topics:
            self._settled.update({tp: offset for tp, offset in offsets.items() if tp.topic in self._topics})

    async def run(self) -> None:
        """Delete, when it is time. What fails is tried again with what is settled next; without the right, never."""
        if not self._settled or time.monotonic() < self._next:
            return
        offsets, self._settled = self._settled, {}
        refused: Refusals = {}
        try:
            async with asyncio.timeout(PATIENCE):
                refused = await self._cluster.delete(offsets)
        except (SwitchgearError, TimeoutError):
            pass
        self._topics -= {
            tp.topic for tp, error in refused.items() if isinstance(error, Refused) and not isinstance(error, NotFound)
        }
        self._next = time.monotonic() + self._every
