"""What has been done with the letters of a dead-letter topic: replayed or dropped, though still stored.

Brokers that keep a log cannot delete a single message, so nowhere is one deleted: a registry row for each dead-letter
topic holds ranges of positions that are done. Whoever works on the topic claims the row for a while, so that two
operators do not replay the same letters.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
from bisect import bisect_right
from collections.abc import Callable
from contextlib import suppress
from typing import TypeAlias, cast

import msgspec

from switchgear.clock import Clock
from switchgear.driver import Delivery, Registry
from switchgear.errors import Lost, Refused

Place: TypeAlias = tuple[int, ...]
"""The numbers in a delivery's token, which rise within a lane."""

CLAIM = 15.0  # seconds after which a claim that is not renewed is over
RENEW = 5.0  # seconds after which it is renewed though nothing was done
RANGES = 10_000  # of one topic: some 400 kB, which every broker takes as a row


class Book(msgspec.Struct, forbid_unknown_fields=False):
    """The row."""

    by: str = ""
    """Host, process and a random part of who works on the topic; "" while nobody does."""
    until: float = 0.0
    """When that ends, unix seconds."""
    done: dict[str, list[tuple[Place, Place]]] = {}
    """By lane: first and last place of letters between which all are done; sorted."""


def place_of(delivery: Delivery) -> Place:
    """Where a browsed delivery is in its lane."""
    token = delivery.token
    parts = cast("tuple[object, ...]", token) if isinstance(token, tuple) else (token,)
    last = parts[-1]
    text = last.decode("ascii", "replace") if isinstance(last, bytes) else str(last)
    return tuple(map(int, re.findall(r"\d+", text)))


class Done:
    """Places that are done."""

    def __init__(self, lanes: dict[str, list[tuple[Place, Place]]]) -> None:
        self.lanes = lanes

    def covers(self, lane: str, place: Place) -> bool:
        ranges = self.lanes.get(lane, [])
        i = bisect_right(ranges, place, key=_first)
        return i > 0 and ranges[i - 1][1] >= place

    def add(self, lane: str, place: Place, after: Place | None) -> None:
        """This letter is done, whether or not it was before. `after` is the letter directly before it in its lane, by
        which ranges grow together; None where that is not known."""
        ranges = self.lanes.setdefault(lane, [])
        i = bisect_right(ranges, place, key=_first)
        if i == 0 or ranges[i - 1][1] < place:
            ranges.insert(i, (place, place))
            i += 1
        if after is not None and i > 1 and ranges[i - 2][1] == after:
            ranges[i - 2 : i] = [(ranges[i - 2][0], ranges[i - 1][1])]

    def forget_before(self, lane: str, place: Place) -> None:
        """Nothing before this letter is stored any more."""
        ranges = self.lanes.get(lane)
        if ranges is not None:
            ranges[:] = [one for one in ranges if one[1] >= place]

    def __len__(self) -> int:
        return sum(map(len, self.lanes.values()))


def _first(one: tuple[Place, Place]) -> Place:
    return one[0]


async def done_of(registry: Registry, row: str) -> Done:
    """What is done, without claiming it. Raises TransportError."""
    found = (await registry.read(row)).get(row)
    return Done({} if found is None else _decoded(found.value).done)


def _decoded(value: bytes) -> Book:
    try:
        return msgspec.json.decode(value, type=Book)
    except msgspec.DecodeError as error:
        raise Refused(f"the registry row of what is done with dead letters is unreadable: {error}") from error


class Ledger:
    """The claimed row of one dead-letter topic."""

    def __init__(self, registry: Registry, row: str, clock: Clock, topic: str) -> None:
        self._registry, self._row, self._clock, self._topic = registry, row, clock, topic
        self._me = f"{socket.gethostname()}/{os.getpid()}/{secrets.token_hex(4)}"
        self._revision = 0
        self._saved = 0.0
        self.done = Done({})

    async def claim(self, ask: Callable[[str], object]) -> None:
        """Take the row; `ask` is told once for whom we wait. Raises Refused where another one goes on with the topic,
        and TransportError."""
        waited: int | None = None
        while True:
            found = (await self._registry.read(self._row)).get(self._row)
            book = Book() if found is None else _decoded(found.value)
            revision = 0 if found is None else found.revision
            left = min(book.until - self._clock.now(), CLAIM)
            if book.by and left > 0 and not _died(book.by):
                if waited is not None and revision != waited:
                    raise Refused(f"{book.by} works on {self._topic} at this moment: try again when it has ended")
                if waited is None:
                    ask(book.by)
                waited = revision
                await self._clock.sleep(min(left, 1.0))
                continue
            self.done, self._revision = Done(book.done), revision
            if await self._write(self._me):
                return

    async def save(self) -> None:
        """Store what is done, and renew the claim. Raises Lost when somebody else has taken it, TransportError."""
        if len(self.done) > RANGES:
            raise Refused(
                f"{self._topic}: what is done lies in more than {RANGES:,} pieces, more than a registry row takes: "
                "replay or drop what is between them first, with a wider filter"
            )
        if not await self._write(self._me):
            raise Lost(f"somebody else has begun to work on {self._topic}: this run ends; what it did is done")

    async def renew(self) -> None:
        """Keep the claim through a long search. Raises as `save`."""
        if self._clock.monotonic() - self._saved >= RENEW:
            await self.save()

    async def release(self) -> None:
        """Let others work on it. Raises TransportError."""
        await self._write("")

    async def _write(self, by: str) -> bool:
        book = Book(by, self._clock.now() + CLAIM if by else 0.0, self.done.lanes)
        revision = await self._registry.write(self._row, msgspec.json.encode(book), expect=self._revision, ttl=None)
        if revision is None:
            return False
        self._revision, self._saved = revision, self._clock.monotonic()
        return True


def _died(by: str) -> bool:
    """Whether it was a process of this machine that is there no more."""
    host, _, rest = by.partition("/")
    pid = rest.partition("/")[0]
    if host != socket.gethostname() or not pid.isdecimal():
        return False
    with suppress(PermissionError):
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            return True
    return False
