"""A subscription compiled: which handler takes a message, how its body is read, what its result becomes.

Everything that can be resolved once is resolved here, before the first message.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .codec import DECODE_ERRORS, Decoders, admits_none
from .config import Settings
from .driver import Delivery, Order, Source
from .envelope import Envelope
from .errors import CodecError, ConfigurationError, TransportError
from .knobs import Batch, Handler, Outcomes
from .message import Message
from .outcomes import Reject
from .reading import Reading

CODEC_FAILURES: tuple[type[Exception], ...] = (*DECODE_ERRORS, CodecError)


class Skip(Exception):
    """Not handled and acknowledged, for a reason of ours; `event` is what is counted."""

    def __init__(self, event: str, reason: str) -> None:
        super().__init__(reason)
        self.event = event


class Unhandled(Reject):
    """Dead letter: no handler of the group takes the message's type, so that none was called."""


class Later(Exception):
    """Not yet: the message is held and handed over again after so many seconds, and that is no attempt."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"not before {seconds:g} s have passed")
        self.seconds = seconds


class OutputFailed(Exception):
    """What the handler returned could not be stored; the handler itself succeeded. The cause says why."""


BatchHandler = Callable[[list[Message[Any]]], Awaitable[Outcomes]]


class Route:
    """One handler of a subscription and how its messages are read."""

    def __init__(
        self, *, schema: Any, content_type: str, handle: Handler, handle_batch: BatchHandler | None = None
    ) -> None:
        self._decoders = Decoders(schema, content_type)
        self.media: bytes | None = content_type.encode()
        self.decode: Callable[[bytes], Any] = self._decoders.decoder(self.media)
        self.handle = handle
        self._handle_batch = handle_batch
        self._admits_none = admits_none(schema)

    async def handle_batch(self, messages: list[Message[Any]]) -> Outcomes:
        assert self._handle_batch is not None
        return await self._handle_batch(messages)

    def decode_into(self, message: Message[Any], delivery: Delivery, envelope: Envelope | None) -> None:
        """Set the message's body. Raises CodecError, or Skip for a tombstone that the handler's type does not admit."""
        if envelope is not None and envelope.structured:
            body, media = envelope.data, envelope.media
        else:
            body, media = delivery.body, delivery.media
        if body is None:
            if not self._admits_none:
                raise Skip("dropped", "a tombstone, which the handler's type does not admit")
            message._body = None
            return
        message._body = self._decoders.decode(body, media)


@dataclass(slots=True, kw_only=True)
class Program:
    """All that a consumer knows of its subscription."""

    topic: str
    """Logical."""
    group: str | None
    settings: Settings
    order: Order
    physical: Sequence[str]
    physical_group: str | None
    leased: str | None
    """The registry row by which one member is active, where the core keeps the order."""
    dead_letters: str
    """Physical."""
    routes: dict[str | None, Route]
    """By CloudEvents type; None: takes every type that no other takes."""
    default_type: str
    batch: Batch | None = None
    pull: bool = False
    private: bool = False
    returns: str | None = None
    """The group's return address, physical; None for broadcast and what is the core's own."""
    copies: bool = False
    """Whether a failed message may be sent there."""
    returning: bool = False
    """Whether it is read from the start: so that may be, or there have been copies or replays before."""
    raw: bool = False
    """The handler takes batches of messages as they are: nothing is decoded, nothing is judged before."""
    make_reading: Callable[[str, str | None, Source, dict[Any, int]], Reading] = Reading
    decode_errors: tuple[type[Exception], ...] = CODEC_FAILURES
    where: str = field(init=False)

    def __post_init__(self) -> None:
        self.where = f"{self.topic} → {self.group}" if self.group else f"{self.topic} (broadcast)"

    @property
    def route(self) -> Route | None:
        """The one route that takes everything, if there is only that: then no message's type is looked at."""
        return self.routes[None] if len(self.routes) == 1 and None in self.routes else None

    def pick(self, message: Message[Any]) -> Route:
        """The route of a message by its type. Raises Skip or Reject for a type that no handler takes."""
        routes = self.routes
        if len(routes) == 1 and None in routes:
            return routes[None]
        type_ = message._attributes().type or self.default_type
        route = routes.get(type_) or routes.get(None)
        if route is None:
            if self.settings.unhandled == "drop":
                raise Skip("unhandled", f"no handler of the group takes the type {type_!r}")
            raise Unhandled(f"no handler of the group takes the type {type_!r}")
        return route

    def reading(self, source: Source, failures: dict[Any, int]) -> Reading:
        return self.make_reading(self.topic, self.group, source, failures)


def chain(handle: Handler, publish: Callable[[Message[Any], object], Awaitable[None]]) -> Handler:
    """Publish what the handler returns (`to=`), after the handler and its dependencies are done, before the ack."""

    async def chained(message: Message[Any]) -> object:
        value = await handle(message)
        if value is not None:
            await send_output(publish(message, value))
        return value

    return chained


async def send_output(sending: Awaitable[None]) -> None:
    """Await it; an outage is OutputFailed (the handler is not to blame), anything else is the handler's failure."""
    from .errors import Refused

    try:
        await sending
    except Refused:
        raise
    except TransportError as error:
        raise OutputFailed from error


def check_single_types(routes: Sequence[tuple[str | None, str]], where: str) -> None:
    """Two handlers of one group may not take the same type. Raises ConfigurationError naming both."""
    seen: dict[str | None, str] = {}
    for type_, handler in routes:
        if type_ in seen:
            raise ConfigurationError(
                f"{where}: {seen[type_]} and {handler} take the same messages"
                + (f" (type {type_!r})" if type_ else "")
                + ": give each its own Topic(type=…), or another group"
            )
        seen[type_] = handler
