"""What goes over the wire: four bytes of length, then a msgpack array; a call, or the answer with its number."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Sequence
from typing import Any, TypeAlias

import msgspec

from switchgear import errors
from switchgear.driver import (
    Capabilities,
    Delivery,
    Drift,
    Fence,
    Headers,
    Outgoing,
    Resource,
    Row,
    Subscription,
    TopicInfo,
)
from switchgear.errors import SwitchgearError, TransportError

LENGTH = struct.Struct(">I")
Topics: TypeAlias = dict[str, Fence | None]
Problem: TypeAlias = tuple[str, str]
"""An error's name and text."""


class Call(msgspec.Struct, array_like=True):
    number: int
    method: str
    arguments: msgspec.Raw


class Answer(msgspec.Struct, array_like=True):
    number: int
    result: msgspec.Raw = msgspec.Raw(b"\xc0")
    problem: Problem | None = None


class Received(msgspec.Struct, array_like=True):
    """What `Delivery.native` is."""

    headers: Headers
    position: str
    time: float


class Item(msgspec.Struct, array_like=True):
    """A delivery."""

    topic: str
    body: bytes | None
    media: bytes | None
    key: bytes | None
    lane: str
    token: int | str
    deliveries: int | None
    until: float
    fence: int
    marked: bool
    native: Received


class Mark(msgspec.Struct, array_like=True):
    """A settlement: of the delivery what a server needs to find it."""

    topic: str
    key: bytes | None
    lane: str
    token: int | str
    verdict: str
    seconds: float


CALLS: dict[str, tuple[Any, Any]] = {
    "connect": (tuple[()], Capabilities),
    "ping": (tuple[()], None),
    "fill": (tuple[()], None),
    "free": (tuple[()], None),
    "send": (tuple[list[Outgoing], float], list[Problem | None]),
    # a connection has one source, or one reader that browses
    "subscribe": (tuple[Subscription], Capabilities),
    "assign": (tuple[Topics], None),
    "receive": (tuple[int, list[str]], tuple[list[Item], dict[str, int]]),
    "settle": (tuple[list[Mark]], list[Problem | None]),
    "leave": (tuple[()], None),
    "browse": (tuple[str, str | float, float | None], None),
    "page": (tuple[()], list[Item]),
    "read": (tuple[str], dict[str, Row]),
    "write": (tuple[str, bytes | None, int | None, float | None], int | None),
    "promote": (tuple[int], float | None),
    "cancel": (tuple[str, str], bool),
    "seek": (tuple[str, str, str | float], None),
    "lag": (tuple[list[str], str], dict[str, int]),
    "provision": (tuple[list[Resource], bool], list[Drift]),
    "topics": (tuple[str], list[TopicInfo]),
}
"""Methods: what they take, and what they answer."""


async def read_frame(reader: asyncio.StreamReader) -> bytes | None:
    """The next frame; None at the end. Raises OSError, IncompleteReadError when it ends within a frame."""
    head = await reader.read(LENGTH.size)
    if not head:
        return None
    head += await reader.readexactly(LENGTH.size - len(head))
    return await reader.readexactly(LENGTH.unpack(head)[0])


def frame(message: Call | Answer) -> bytes:
    encoded = msgspec.msgpack.encode(message)
    return LENGTH.pack(len(encoded)) + encoded


def raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(msgspec.msgpack.encode(value))


def item(delivery: Delivery, received: Received) -> Item:
    d = delivery
    assert isinstance(d.token, int | str)
    return Item(
        d.topic, d.body, d.media, d.key, d.lane, d.token, d.deliveries, d.until, d.fence, d.marked, received
    )  # fmt: skip


def delivery(item: Item) -> Delivery:
    i = item
    return Delivery(
        i.topic, i.body, i.media, i.key, i.lane, i.token, i.deliveries, i.until, i.fence, i.native, i.marked
    )  # fmt: skip


def problem(error: SwitchgearError) -> Problem:
    return type(error).__name__, str(error)


class ServerError(Exception):
    """What the server said, the cause of the error that is raised for it."""


def raised(problem: Problem) -> SwitchgearError:
    """The error that a server told of."""
    name, text = problem
    kind: type[SwitchgearError] = getattr(errors, name)
    error = kind(text)
    error.__cause__ = ServerError(f"{name}: {text}")
    return error


def outcomes(problems: Sequence[Problem | None]) -> list[TransportError | None]:
    """What `send` and `settle` return."""
    found = [raised(problem) if problem else None for problem in problems]
    return [error for error in found if error is None or isinstance(error, TransportError)]


def problems(outcomes: Sequence[TransportError | None]) -> list[Problem | None]:
    """The same on its way."""
    return [problem(outcome) if outcome else None for outcome in outcomes]
