"""Committing a member's positions with confluent-kafka."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import TopicPartition as Native

from switchgear.errors import Lost, MaybeSent, TransportError, Unavailable
from switchgear_kafka.cluster import Committed, TopicPartition, lane

from .failures import GONE, error_of, failure
from .reading import Reader

TOO_LONG = KafkaError.OFFSET_METADATA_TOO_LARGE


class Commits:
    """Of one member; `at` says which."""

    def __init__(self, reader: Reader, at: str, patience: float) -> None:
        """`patience`: seconds to wait for an answer."""
        self._reader, self._at, self._patience = reader, at, patience

    async def commit(self, offsets: Mapping[TopicPartition, Committed]) -> Mapping[TopicPartition, TransportError]:
        """What was refused, and why; where a note is too long the position counts without it. Raises Unavailable."""
        natives = [Native(*tp, one.offset, one.note) for tp, one in offsets.items()]
        asked = asyncio.ensure_future(self._reader.commit(natives))
        done, _ = await asyncio.wait([asked], timeout=self._patience)
        if not done:
            asked.cancel()
            raise Unavailable(f"{self._at}: no answer in time")
        if isinstance(raised := asked.exception(), KafkaException):
            if error_of(raised).code() == TOO_LONG and any(one.note for one in offsets.values()):
                # the note is of less worth than the position
                return await self.commit({tp: Committed(one.offset, "") for tp, one in offsets.items()})
            return self._refused(offsets, dict.fromkeys(offsets, error_of(raised)), raised)
        answered = {TopicPartition(one.topic, one.partition): one.error for one in asked.result() or ()}
        errors = {tp: error for tp, error in answered.items() if error is not None}
        long = [tp for tp, error in errors.items() if error.code() == TOO_LONG]
        if long and any(offsets[tp].note for tp in long):  # the note is of less worth than the position
            for tp in long:
                del errors[tp]
            return {
                **self._refused(offsets, errors, None),
                **await self.commit({tp: Committed(offsets[tp].offset, "") for tp in long}),
            }
        return self._refused(offsets, errors, None)

    def _refused(
        self, offsets: Mapping[TopicPartition, Committed], errors: Mapping[TopicPartition, KafkaError],
        cause: BaseException | None,
    ) -> dict[TopicPartition, TransportError]:  # fmt: skip
        refused: dict[TopicPartition, TransportError] = {}
        for tp in offsets:
            error = errors.get(tp)
            if error is None:
                continue
            if error.code() in GONE:
                refused[tp] = Lost(f"{self._at}: {lane(tp)} was taken from us")
                continue
            ours = failure(f"{self._at}: {lane(tp)}", error)
            if isinstance(ours, Unavailable):
                raise ours from cause
            refused[tp] = ours if isinstance(ours, TransportError) else MaybeSent(str(ours))
        return refused
