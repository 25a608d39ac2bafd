"""What messages of one subscription ask for: envelope, attempt, position; read from the source on demand."""

# ruff: noqa: ARG002  (the signatures are the protocol's)

from __future__ import annotations

from typing import Any

from .driver import Delivery, Headers, Source
from .envelope import Envelope, is_structured, read, read_structured
from .errors import CodecError, Misuse
from .message import Message


class Reading:
    """One per subscription and source; see `message.Reading`."""

    def __init__(self, topic: str, group: str | None, source: Source, failures: dict[Any, int]) -> None:
        self.topic, self.group = topic, group
        self._source, self.failures = source, failures
        self._binding = source.capabilities.binding
        self._counts = source.capabilities.counting != "none"

    def envelope(self, message: Message[Any]) -> Envelope:
        """The envelope; of undecodable attributes what a plain message has, so that reading never fails."""
        before = message._envelope
        try:
            return self.check(message)
        except CodecError:
            message._envelope = before
            return Envelope()

    def check(self, message: Message[Any]) -> Envelope:
        """The envelope, strictly. Raises CodecError where an attribute or a structured event is malformed."""
        delivery = message._received()
        media = delivery.media
        if media is not None and delivery.body is not None and is_structured(media):
            found = read_structured(delivery.body)
        else:
            found = read(self._source.headers(delivery), self._binding)
        message._envelope = found
        return found

    def attempt(self, message: Message[Any]) -> int:
        delivery = message._received()
        return self.failures.get(delivery.token, 0) + self.told(message, delivery)

    def told(self, message: Message[Any], delivery: Delivery) -> int:
        """The attempt that the message or the broker says this is: a copy's own count, else the deliveries."""
        before = 1
        if delivery.marked:
            envelope = message._attributes()
            if "sgreason" not in envelope.extensions:  # a dead letter tells the calls that another group made
                before = envelope.attempt or 1
        counted = delivery.deliveries if self._counts and delivery.deliveries is not None else 1
        return before + counted - 1

    def position(self, message: Message[Any]) -> str:
        return self._source.position(message._received())

    def time(self, message: Message[Any]) -> float:
        return self._source.time(message._received())

    def raw_headers(self, message: Message[Any]) -> Headers:
        return self._source.headers(message._received())

    async def ack(self, message: Message[Any]) -> None:
        raise Misuse("a handler settles its message by its outcome: return, or raise Reject, RetryAfter or Drop")

    async def retry(self, message: Message[Any], after: float | None) -> None:
        raise Misuse("a handler settles its message by its outcome: raise RetryAfter(seconds)")

    async def reject(self, message: Message[Any], reason: str) -> None:
        raise Misuse("a handler settles its message by its outcome: raise Reject(reason)")
