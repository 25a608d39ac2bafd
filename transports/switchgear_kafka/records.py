"""What a record says: content type and headers apart, as the CloudEvents binding for Kafka has them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from aiokafka import ConsumerRecord

from switchgear.driver import Delivery, Headers, Outgoing

CONTENT_TYPE: Final = "content-type"
ACTED_ON: Final = frozenset(
    f"ce_{name}" for name in ("expirytime", "replyto", "sgattempt", "sgdue", "sgfirstfailure", "sgreason", "sgtarget")
)
"""Attributes on which the core acts before the handler: messages without one are not marked."""


def written(message: Outgoing) -> Headers:
    """The headers of the record for a message; the message's own list where there is nothing to add."""
    if message.media is None:
        return message.headers
    return [*message.headers, (CONTENT_TYPE, message.media)]


def deliveries(topic: str, lane: str, place: str, records: Iterable[ConsumerRecord]) -> list[Delivery]:
    """What is handed out for a partition's records; their tokens are (`place`, offset)."""
    out: list[Delivery] = []
    append = out.append
    for record in records:
        media: bytes | None = None
        marked = False
        for name, value in record.headers:
            if name == CONTENT_TYPE:
                media = value
            elif name in ACTED_ON:
                marked = True
        append(Delivery(
            topic, record.value, media, record.key, lane, (place, record.offset), None, native=record, marked=marked
        ))  # fmt: skip
    return out


def _record(delivery: Delivery) -> ConsumerRecord:
    assert isinstance(delivery.native, ConsumerRecord)
    return delivery.native


def headers(delivery: Delivery) -> Headers:
    """As they were sent; a header without a value, which only others write, is empty."""
    return [(name, value or b"") for name, value in _record(delivery).headers if name != CONTENT_TYPE]


def position(delivery: Delivery) -> str:
    """Partition and offset, as `seek` takes them: "3:1207"."""
    record = _record(delivery)
    return f"{record.partition}:{record.offset}"


def time(delivery: Delivery) -> float:
    """The record's timestamp, unix seconds: when it was sent, or stored, as the topic is configured."""
    return _record(delivery).timestamp / 1000
