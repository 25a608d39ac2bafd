"""What messages of one subscription ask for: envelope, attempt, position; read from the source on demand."""

# ruff: noqa: ARG002  (the signatures are the protocol's)

from __future__ import annotations

from contextlib import suppress
from typing import Any

from .driver import Delivery, Headers, Source
from .envelope import Envelope, is_structured, parse_time, read, read_structured
from .errors import CodecError, Misuse
from .message import Message
from .transacting import Outputs


class Reading:
    """One per subscription and source; see `message.Reading`."""

    def __init__(self, topic: str, group: str | None, source: Source, failures: dict[Any, int]) -> None:
        self.topic, self.group = topic, group
        self.outputs: Outputs | None = None
        """Where what a handler returns waits for its transaction; None: it is published at once."""
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
            if delivery.marked:
                _add_ours(found, read(self._source.headers(delivery), self._binding))
        else:
            found = read(self._source.headers(delivery), self._binding)
        message._envelope = found
        return found

    def attempt(self, message: Message[Any]) -> int:
        delivery = message._received()
        return self.failures.get(delivery.token, 0) + self.told(message, delivery)

    def told(self, message: Message[Any], delivery: Delivery) -> int:
        """The attempt that the message or the broker says this is: a copy's own count, else the deliveries."""
        envelope = _of_this_group(message)
        before = 1 if envelope is None else envelope.attempt or 1
        counted = delivery.deliveries if self._counts and delivery.deliveries is not None else 1
        return before + counted - 1

    def first_failure(self, message: Message[Any]) -> float | None:
        """When the first attempt failed, unix seconds; None where that is not told."""
        envelope = _of_this_group(message)
        return None if envelope is None else envelope.first_failure

    def position(self, message: Message[Any]) -> str:
        """Where it was when it was handled first: of a copy the original's."""
        return _of_original(message, "sgposition") or self._source.position(message._received())

    def place(self, message: Message[Any]) -> str:
        """Which copy this is, for the tokens of what is made of it: "" of an original. Its attempts may begin anew, so
        the attempt alone does not tell one copy's copy from another's."""
        delivery = message._received()
        if not delivery.marked or message._attributes().target is None:
            return ""
        return f"@{self._source.position(delivery)}"

    def time(self, message: Message[Any]) -> float:
        """When it was stored: of a copy the original."""
        stored = _of_original(message, "sgtime")
        if stored is not None:
            with suppress(ValueError):
                return parse_time(stored).timestamp()
        return self._source.time(message._received())

    def stored(self, message: Message[Any]) -> float:
        """When this very message was stored, be it a copy or not; unix seconds."""
        return self._source.time(message._received())

    def raw_headers(self, message: Message[Any]) -> Headers:
        return self._source.headers(message._received())

    async def ack(self, message: Message[Any]) -> None:
        raise Misuse("a handler settles its message by its outcome: return, or raise Reject, RetryAfter or Drop")

    async def retry(self, message: Message[Any], after: float | None) -> None:
        raise Misuse("a handler settles its message by its outcome: raise RetryAfter(seconds)")

    async def reject(self, message: Message[Any], reason: str) -> None:
        raise Misuse("a handler settles its message by its outcome: raise Reject(reason)")


def _of_this_group(message: Message[Any]) -> Envelope | None:
    """What is told of earlier attempts; None where nothing is. A dead letter tells those of another group, unless it is
    a copy for this one."""
    if not message._received().marked:
        return None
    envelope = message._attributes()
    return envelope if envelope.target is not None or "sgreason" not in envelope.extensions else None


def _of_original(message: Message[Any], name: str) -> str | None:
    """What a copy says of the message that it is a copy of; None for what is no copy."""
    if not message._received().marked:
        return None
    envelope = message._attributes()
    if envelope.target is None or "sgreason" in envelope.extensions:  # of a dead letter it says something else
        return None
    return envelope.extensions.get(name)


def _add_ours(event: Envelope, headers: Envelope) -> None:
    """A structured event keeps its body when it is copied: what the copy has to say is in its headers."""
    event.attempt, event.first_failure = headers.attempt, headers.first_failure
    event.due, event.target = headers.due, headers.target
    ours = {name: value for name, value in headers.extensions.items() if name.startswith("sg")}
    event.extensions = {**event.extensions, **ours}
