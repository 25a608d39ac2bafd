"""What groups have committed, asked by a consumer of the group that never joins.

The admin client can ask for it, too, but ends the process with a segmentation fault when a broker answers that it is
not the group's coordinator any more: librdkafka then looks for the consumer that it has not.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from confluent_kafka import Consumer, KafkaError, KafkaException
from confluent_kafka import TopicPartition as Native

from switchgear_kafka.cluster import Committed, TopicPartition
from switchgear_kafka.tuning import Settings

from .asking import PAUSE, Asking
from .connection import connection
from .failures import PASSING, error_of, failure

MOST: Final = 4  # consumers that are kept, each with connections and threads
STEP: Final = 0.5  # seconds that one call of the client waits
LEAVE: Final = 2.0  # seconds to close
_CERTAIN: Final = frozenset({KafkaError.GROUP_AUTHORIZATION_FAILED, KafkaError.INVALID_GROUP_ID})


class Positions:
    """Of all groups. The client's call waits: a thread makes it."""

    def __init__(self, settings: Settings, asking: Asking) -> None:
        self._settings, self._asking, self._at = settings, asking, asking.at
        self._thread = ThreadPoolExecutor(1, "switchgear-kafka-positions")
        self._consumers: dict[str, Consumer] = {}
        """By group, the last used at the end; touched by the thread alone, like the next."""
        self._heard: KafkaError | None = None

    async def committed(self, group: str, tps: Iterable[TopicPartition]) -> dict[TopicPartition, Committed]:
        """What the group has committed."""
        wanted = list(tps)
        _ = self._asking.client  # raises where there is no connection
        if not wanted:
            return {}
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._thread, self._committed, group, wanted)
        except KafkaException as error:
            raise failure(f"{self._at}: group {group!r}", error) from error
        for one in found:
            if one.error is not None:
                raise failure(f"{self._at}: group {group!r}", one.error)
        return {
            TopicPartition(one.topic, one.partition): Committed(one.offset, one.metadata or "")
            for one in found if one.offset >= 0
        }  # fmt: skip

    async def close(self) -> None:
        """Close what asked."""
        if self._consumers:
            closing = asyncio.get_running_loop().run_in_executor(self._thread, self._close, 0)
            await asyncio.wait([closing], timeout=LEAVE)
        self._thread.shutdown(wait=False)
        self._thread = ThreadPoolExecutor(1, "switchgear-kafka-positions")

    # ---- in the thread --------------------------------------------------------------------------------------------

    def _committed(self, group: str, tps: list[TopicPartition]) -> list[Native]:
        consumer, until = self._consumer(group), time.monotonic() + self._asking.patience
        while True:
            left = until - time.monotonic()
            try:
                found = consumer.committed([Native(*tp) for tp in tps], timeout=max(0.001, min(STEP, left)))
            except KafkaException as error:
                told = consumer.poll(0)
                heard = told.error() if told is not None else self._said()
                if heard is not None and heard.code() in _CERTAIN:
                    raise KafkaException(heard) from error
                code = error_of(error).code()
                if left <= 0 or code not in (KafkaError._TIMED_OUT, *PASSING):
                    raise
                time.sleep(PAUSE if code in PASSING else 0)
                continue
            # a transaction may be open: of a member that is dead, until its time is over
            codes = {one.error.code() for one in found if one.error is not None}
            if codes != {KafkaError.UNSTABLE_OFFSET_COMMIT} or left <= 0:
                return found
            time.sleep(PAUSE)

    def _consumer(self, group: str) -> Consumer:
        self._heard = None
        consumer = self._consumers.pop(group, None)
        if consumer is None:
            self._close(MOST - 1)
            consumer = Consumer({
                **connection(self._settings, self._hear), "group.id": group, "enable.auto.commit": False,
                "isolation.level": "read_committed",
            })  # fmt: skip
        self._consumers[group] = consumer
        return consumer

    def _hear(self, error: KafkaError) -> None:
        self._heard = error

    def _said(self) -> KafkaError | None:
        return self._heard

    def _close(self, left: int) -> None:
        while len(self._consumers) > left:
            self._consumers.pop(next(iter(self._consumers))).close()
