"""A member of a group: receiving and settling under leases."""

# ruff: noqa: ARG002  (the signatures are the contract's)

from __future__ import annotations

import asyncio
import secrets
import sqlite3
import time
from collections.abc import Callable, Collection, Mapping, Sequence

from switchgear.driver import Delivery, Fence, Headers, Order, Settlement, Subscription
from switchgear.errors import Lost, TransportError

from . import claims
from .capabilities import CAPABILITIES
from .claims import Item, Seat, Taken
from .files import Files
from .seats import ALIVE, join, leave, present
from .store import Stored
from .wakeup import Waiter

WAIT = 1.0  # seconds that `receive` waits
SHIFT = 48  # a token is the topic's number above the position

Place = tuple[str, int]
"""Topic and position."""


class SqliteSource:
    """One subscription. `Delivery.native` is the `Stored` message."""

    capabilities = CAPABILITIES

    def __init__(self, files: Files, subscription: Subscription, gone: Callable[[SqliteSource], None]) -> None:
        self._files, self._subscription, self._gone = files, subscription, gone
        self._owner = secrets.randbits(62)
        self._seats: dict[str, Seat] = {}
        self._turn = 0
        self._eager = True  # there may be something: claim before waiting
        self._waiter: Waiter | None = None
        self._alive_until = 0.0
        self._trimmed: dict[str, int] = {}
        self._closed = False

    async def assign(self, topics: Mapping[str, Fence | None]) -> None:
        """Read these topics from now on. Raises Refused where others of the group read in another order."""
        gone = [seat for name, seat in self._seats.items() if name not in topics]
        new = [name for name in topics if name not in self._seats]

        def change(db: sqlite3.Connection) -> dict[str, Seat]:
            leave(db, gone)
            return {name: join(db, self._subscription, name, self._owner) for name in new}

        joined = await self._files.writer.run(change)
        for seat in gone:
            del self._seats[seat.topic]
        self._seats |= joined
        self._alive_until = time.monotonic() + ALIVE / 3
        self._eager = True
        self.wake()

    async def receive(self, limit: int, held: Collection[str] = ()) -> Sequence[Delivery]:
        """Claim what waits, or wait about a second for something."""
        if self._closed:
            return []
        await self._stay_alive()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + WAIT
        while limit > 0 and not self._closed:
            if self._eager:
                self._eager = False
                deliveries = await self._claim(limit)
                if deliveries:
                    self._eager = True
                    return deliveries
            if loop.time() >= deadline or self._closed:
                break
            self._eager = await self._wait(deadline)
        return []

    async def _claim(self, limit: int) -> list[Delivery]:
        seats, lease = list(self._seats.values()), self._subscription.lease
        if not seats:
            return []
        self._turn = (self._turn + 1) % len(seats)
        trim = self._files.trim
        turns = seats[self._turn :] + seats[: self._turn]  # no topic starves another
        until = asyncio.get_running_loop().time() + lease

        def claim(db: sqlite3.Connection) -> tuple[list[Delivery], dict[str, int]]:
            found: list[Delivery] = []
            lost: dict[str, int] = {}
            now = time.time()
            for seat in turns:
                trim(db, seat.number)
                if missing := claims.report_lost(db, seat):
                    lost[seat.topic] = missing
                if len(found) < limit:
                    taken, fence = claims.claim(db, seat, limit - len(found), lease, now)
                    found += [deliver(seat, message, until, fence) for message in taken]
            return found, lost

        found, lost = await self._files.writer.run(claim)
        for topic, missing in lost.items():
            self._trimmed[topic] = self._trimmed.get(topic, 0) + missing
        return found

    async def _wait(self, deadline: float) -> bool:
        """Wait until there is something or the deadline has come; whether there is something."""
        loop = asyncio.get_running_loop()
        seats = list(self._seats.values())

        def question(db: sqlite3.Connection) -> float | None:
            times = [at for seat in seats if (at := claims.available(db, seat)) is not None]
            return min(times, default=None)

        waiter = self._waiter = Waiter(question, loop.create_future())
        timer = loop.call_at(deadline, self.wake)
        self._files.watch.add(waiter)
        try:
            self._files.reader.poke()
            await waiter.future
            return loop.time() < deadline
        finally:
            timer.cancel()
            self._waiter = None
            self._files.watch.remove(waiter)

    async def _stay_alive(self) -> None:
        if time.monotonic() < self._alive_until:
            return
        seats = list(self._seats.values())
        await self._files.writer.run(lambda db: present(db, seats))
        self._alive_until = time.monotonic() + ALIVE / 3

    async def settle(self, batch: Sequence[Settlement]) -> Sequence[TransportError | None]:
        """Carry out verdicts in one transaction; Lost for what is no longer leased to this member."""
        if not batch:
            return []
        carry_out = self.settling(batch)
        lost, changed = await self._files.writer.run(carry_out)
        if changed:
            self._files.watch.wake_all()
        return [_lost(s) if (s.delivery.topic, position(s.delivery)) in lost else None for s in batch]

    def settling(self, batch: Sequence[Settlement]) -> Callable[[sqlite3.Connection], tuple[set[Place], bool]]:
        """To be called in a transaction: carries out verdicts; returns what is no longer leased to this member, and
        whether others may take more."""
        items: dict[str, list[Item]] = {}
        for s in batch:
            d = s.delivery
            items.setdefault(d.topic, []).append((position(d), d.key, s.verdict, s.seconds))
        seats, trim = dict(self._seats), self._files.trim

        def settle(db: sqlite3.Connection) -> tuple[set[Place], bool]:
            now = time.time()
            lost: set[Place] = set()
            changed = False
            for topic, mine in items.items():
                if topic not in seats:
                    lost.update((topic, id) for id, *_ in mine)
                    continue
                gone, more = claims.settle(db, seats[topic], mine, now)
                lost.update((topic, id) for id in gone)
                changed |= more
                trim(db, seats[topic].number)
            return lost, changed

        return settle

    @property
    def trimmed(self) -> Mapping[str, int]:
        """By topic, what retention took unread; each message is reported by one member of the group."""
        return dict(self._trimmed)

    def wake(self) -> None:
        """Let a pending `receive` look again."""
        if self._waiter is not None and not self._waiter.future.done():
            self._waiter.future.set_result(None)

    def note(self, lane: str) -> str:
        """Nothing is settled cumulatively here."""
        return ""

    def headers(self, delivery: Delivery) -> Headers:
        """As they were sent."""
        return stored(delivery).headers

    def position(self, delivery: Delivery) -> str:
        """The message's number in its topic."""
        return str(stored(delivery).position)

    def time(self, delivery: Delivery) -> float:
        """When it was stored (a delayed one: when it fell due), unix seconds."""
        return stored(delivery).time

    async def close(self) -> None:
        """Leave; what is unsettled returns to the group at once."""
        if self._closed:
            return
        self._closed = True
        self.wake()
        self._gone(self)
        seats = list(self._seats.values())
        await self._files.writer.run(lambda db: leave(db, seats))
        self._files.watch.wake_all()


def _lost(s: Settlement) -> Lost:
    return Lost(f"topic {s.delivery.topic!r}: position {position(s.delivery)} is no longer leased to this member")


def deliver(seat: Seat, message: Taken, until: float, fence: int) -> Delivery:
    """A claimed message as the core wants it."""
    id, attempts, key, media, headers, body, stored, marked = message
    token = (seat.number << SHIFT) + id
    ordered = key is not None or seat.order is Order.TOTAL
    native = Stored(id, stored, headers)
    return Delivery(
        seat.topic, body, media, key, "", token, attempts, until, fence if ordered else 0, native, bool(marked)
    )


def stored(delivery: Delivery) -> Stored:
    """What the delivery carries of the message."""
    assert isinstance(delivery.native, Stored)
    return delivery.native


def position(delivery: Delivery) -> int:
    """The message's number in its topic, from the token."""
    assert isinstance(delivery.token, int)
    return delivery.token & ((1 << SHIFT) - 1)
