"""A message as a handler sees it. Everything but the body is read from the delivery when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Generic, Protocol

import msgspec

from .errors import Misuse
from .units import Seconds, seconds

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    from .driver import Delivery, Headers
    from .envelope import Envelope

    D = TypeVar("D", default=Any)
else:
    from typing import TypeVar

    D = TypeVar("D")


class Reading(Protocol):
    """What a message needs of the subscription that received it; one object per subscription."""

    topic: str
    """Logical name."""

    def envelope(self, message: Message[Any]) -> Envelope: ...
    def attempt(self, message: Message[Any]) -> int: ...
    def position(self, message: Message[Any]) -> str: ...
    def time(self, message: Message[Any]) -> float: ...
    def raw_headers(self, message: Message[Any]) -> Headers: ...
    async def ack(self, message: Message[Any]) -> None: ...
    async def retry(self, message: Message[Any], after: float | None) -> None: ...
    async def reject(self, message: Message[Any], reason: str) -> None: ...


class Message(msgspec.Struct, Generic[D], gc=False, eq=False):
    """One received message.

    `body` is the decoded value. `ack`, `retry` and `reject` settle a message that was pulled with `bus.consumer`; the
    first call wins. In a handler its outcome settles the message, and these raise Misuse.
    """

    _delivery: Delivery | None = None
    _reading: Reading | None = None
    _body: Any = None
    _envelope: Envelope | None = None
    _attempt: int = 0

    def __repr__(self) -> str:
        if self._delivery is None:
            return "Message()"
        return f"Message(topic={self.topic!r}, id={self.id!r}, attempt={self.attempt})"

    def _read(self) -> Reading:
        if self._reading is None:
            raise Misuse("this Message was made by hand and belongs to no subscription: only its body can be read")
        return self._reading

    def _received(self) -> Delivery:
        self._read()
        assert self._delivery is not None
        return self._delivery

    def _attributes(self) -> Envelope:
        found = self._envelope
        if found is None:
            found = self._envelope = self._read().envelope(self)
        return found

    @property
    def body(self) -> D:
        """The decoded value; None for a tombstone."""
        body: D = self._body
        return body

    @property
    def data(self) -> bytes | None:
        """The value's bytes as they were stored; None: a tombstone."""
        envelope = self._envelope
        if envelope is not None and envelope.structured:
            return envelope.data
        return self._received().body

    @property
    def id(self) -> str:
        """Unique per source and stable over redeliveries; of a plain message its topic and position."""
        found = self._attributes().id
        return found if found is not None else f"{self._received().topic}/{self._read().position(self)}"

    @property
    def topic(self) -> str:
        """The topic's name as subscribed to, without namespace."""
        return self._read().topic

    @property
    def key(self) -> str | None:
        """The ordering key; bytes that are not UTF-8 come as surrogate escapes."""
        key = self._received().key
        return None if key is None else key.decode("utf-8", "surrogateescape")

    @property
    def type(self) -> str:
        """The CloudEvents type; of a plain message the topic's name."""
        return self._attributes().type or self.topic

    @property
    def source(self) -> str:
        """The CloudEvents source; "" for a plain message."""
        return self._attributes().source or ""

    @property
    def time(self) -> datetime:
        """When it was published; of a plain message when the broker stored it."""
        found = self._attributes().time
        return found if found is not None else datetime.fromtimestamp(self._read().time(self), UTC)

    @property
    def expires(self) -> datetime | None:
        """Worthless after; an expired message is counted and never handled."""
        found = self._attributes().expires
        return None if found is None else datetime.fromtimestamp(found, UTC)

    @property
    def priority(self) -> str | None:
        return self._attributes().priority

    @property
    def headers(self) -> Mapping[str, str]:
        """User headers; of a repeated name the last; bytes that are not UTF-8 come as surrogate escapes."""
        return self._attributes().headers

    @property
    def correlation_id(self) -> str:
        """The id of the message that began the chain; its own id where nothing went before."""
        return self._attributes().correlation_id or self.id

    @property
    def attempt(self) -> int:
        """1 for the first call of the handler with this message."""
        found = self._attempt
        if not found:
            found = self._attempt = self._read().attempt(self)
        return found

    @property
    def fence(self) -> int:
        """Rises each time the key changes hands: a store can refuse the older. 0 where no order is kept."""
        return self._received().fence

    @property
    def native(self) -> Any:
        """The client's own message object, as its transport documents it."""
        return self._received().native

    async def ack(self) -> None:
        """Acknowledge a pulled message; returns when the broker confirmed. Raises Lost when it is no longer ours."""
        await self._read().ack(self)

    async def retry(self, after: Seconds | None = None) -> None:
        """Give a pulled message back for another attempt, not before `after` seconds (default: the retry policy)."""
        await self._read().retry(self, None if after is None else seconds(after))

    async def reject(self, reason: str) -> None:
        """Send a pulled message to the group's dead letters."""
        await self._read().reject(self, reason)


handling: ContextVar[Message[Any] | None] = ContextVar("switchgear_handling", default=None)
"""The message whose handler is running: what is published meanwhile continues its correlation and trace."""
