"""What a message of confluent-kafka says."""

from __future__ import annotations

from collections.abc import Iterable
from operator import methodcaller
from typing import TypeAlias, cast

from confluent_kafka import Message

from switchgear.driver import Delivery, Headers
from switchgear_kafka.headers import ACTED_ON, CONTENT_TYPE, KNOWN

Pairs: TypeAlias = list[tuple[str, bytes | None]] | None

_given = methodcaller("headers")
"""Not called as a method: where a name is no UTF-8 the client gives headers and leaves an exception behind as well,
which a call that the interpreter has made quicker does not see."""


def deliveries(lane: str, place: str, messages: Iterable[Message]) -> list[Delivery]:
    """What is handed out for a partition's messages; their tokens are (`place`, offset)."""
    out: list[Delivery] = []
    for message in messages:
        media: bytes | None = None
        marked = False
        for name, value in _headers(message):
            if name == CONTENT_TYPE:
                media = value
            elif name in ACTED_ON and value != KNOWN:
                marked = True
        topic, token = message.topic() or "", (place, message.offset())
        out.append(Delivery(
            topic, message.value(), media, message.key(), lane, token, None, native=message, marked=marked
        ))  # fmt: skip
    return out


def _headers(message: Message) -> Iterable[tuple[str, bytes]]:
    try:
        found = cast("Pairs", _given(message))
    except (UnicodeDecodeError, SystemError) as error:
        cause = error.__cause__ if isinstance(error, SystemError) else error
        if not isinstance(cause, UnicodeDecodeError):
            raise
        found = _named(cast("Pairs", _given(message)), cause)
        message.set_headers(found)  # type: ignore[arg-type]
    return [(name, value or b"") for name, value in found or ()]


def _named(found: Pairs, error: UnicodeDecodeError) -> Pairs:
    """The headers of a message where a name is no UTF-8.

    The client gives them when it is asked again, and in the place of that name a null pointer: no object, which nothing
    but `repr` may come near. The error tells the name, of several the last.
    """
    name = error.object.decode("utf-8", "backslashreplace")
    return [(name, pair[1]) if repr(pair).startswith("(<NULL>") else pair for pair in found or ()]


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
