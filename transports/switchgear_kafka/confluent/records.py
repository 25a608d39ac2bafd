"""What a message of confluent-kafka says."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from confluent_kafka import Message

from switchgear.driver import Delivery, Headers
from switchgear_kafka.headers import ACTED_ON, CONTENT_TYPE


def deliveries(lane: str, place: str, messages: Iterable[Message]) -> list[Delivery]:
    """What is handed out for a partition's messages; their tokens are (`place`, offset)."""
    out: list[Delivery] = []
    for message in messages:
        media: bytes | None = None
        marked = False
        for name, value in _headers(message):
            if name == CONTENT_TYPE:
                media = value
            elif name in ACTED_ON:
                marked = True
        topic, token = message.topic() or "", (place, message.offset())
        out.append(Delivery(
            topic, message.value(), media, message.key(), lane, token, None, native=message, marked=marked
        ))  # fmt: skip
    return out


def _headers(message: Message) -> Iterable[tuple[str, bytes]]:
    try:
        found = message.headers() or ()
    except UnicodeDecodeError:  # the client can't read a header's name; what it says is not ours to lose
        return ()
    return [(name, value or b"") for name, value in found]  # type: ignore[misc, str-unpack]


def _message(delivery: Delivery) -> Message:
    return cast("Message", delivery.native)


def headers(delivery: Delivery) -> Headers:
    """As they were sent; a header without a value, which only others write, is empty."""
    return [(name, value) for name, value in _headers(_message(delivery)) if name != CONTENT_TYPE]


def position(delivery: Delivery) -> str:
    """Partition and offset, as `seek` takes them: "3:1207"."""
    message = _message(delivery)
    return f"{message.partition()}:{message.offset()}"


def time(delivery: Delivery) -> float:
    """The record's timestamp, unix seconds: when it was sent, or stored, as the topic is configured."""
    return _message(delivery).timestamp()[1] / 1000


def runs(messages: Iterable[Message]) -> list[tuple[str, int, list[Message]]]:
    """Messages by partition: topic, partition and its messages in order."""
    found: dict[tuple[str, int], list[Message]] = {}
    for message in messages:
        found.setdefault((message.topic() or "", message.partition() or 0), []).append(message)
    return [(topic, partition, some) for (topic, partition), some in found.items()]
