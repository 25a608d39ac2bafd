"""Reading a stretch of a partition without joining a group. Blocks: called from one thread."""

from __future__ import annotations

import time
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, Message
from confluent_kafka import TopicPartition as Native

from switchgear_kafka.cluster import OutOfRange, TopicPartition, lane

PAGE: Final = 1000  # messages
_NOT_OURS: Final = frozenset({KafkaError._ALL_BROKERS_DOWN, KafkaError.GROUP_AUTHORIZATION_FAILED})
"""The client looks for a group's coordinator though there is no group."""
STEP: Final = 0.5  # seconds that one call of the client waits


class Log:
    """A consumer that is told where to read and commits nothing."""

    def __init__(self, connection: dict[str, Any]) -> None:
        self._consumer = Consumer({
            **connection, "group.id": "switchgear-log", "enable.auto.commit": False, "auto.offset.reset": "error",
            "enable.partition.eof": True, "isolation.level": "read_committed", "fetch.wait.max.ms": 10,
        })  # fmt: skip
        self._at: tuple[TopicPartition, int] | None = None
        """The offset that comes next without being sought."""

    def read(self, tp: TopicPartition, offset: int, end: int, within: float) -> tuple[list[Message], int]:
        """Messages from the offset on, and the offset to go on with. Raises OutOfRange, KafkaException."""
        consumer, until = self._consumer, time.monotonic() + within
        if self._at != (tp, offset):
            consumer.assign([Native(*tp, offset)])
        self._at = None
        found: list[Message] = []
        while True:
            first = consumer.poll(min(STEP, max(0.0, until - time.monotonic())))
            more = consumer.consume(PAGE, 0.0) if first is not None else []
            for message in [first, *more] if first is not None else []:
                error = message.error()
                if error is None:
                    found.append(message)
                elif error.code() == KafkaError._PARTITION_EOF:
                    offset = max(end, message.offset() or 0)
                    consumer.unassign()
                    return found, offset
                elif error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
                    raise OutOfRange(f"{lane(tp)} has no offset {offset}")
                elif not error.retriable() and error.code() not in _NOT_OURS:
                    raise KafkaException(error)
            if found:
                offset = (found[-1].offset() or 0) + 1
                if offset >= end:
                    consumer.unassign()
                else:
                    self._at = (tp, offset)
                return found, offset
            if time.monotonic() >= until:
                raise KafkaException(KafkaError(KafkaError._TIMED_OUT))

    def close(self) -> None:
        """Close its connections."""
        self._consumer.close()
