"""A subscriber that shares with nobody: it reads, and leaves nothing behind on the file."""

# ruff: noqa: ARG002, S608  (the signatures are the contract's; the only names in statements are numbers of topics)

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Collection, Mapping, Sequence

from switchgear.driver import Delivery, Fence, Headers, Settlement, Subscription, Verdict
from switchgear.errors import Lost, TransportError

from . import store
from .capabilities import CAPABILITIES
from .files import Files
from .schema import create_topic
from .source import SHIFT, WAIT, position, stored
from .store import Stored
from .wakeup import Waiter

COLUMNS = "id, key, media, headers, body, time, marked"


class BroadcastSource:
    """One broadcast subscription; positions, attempts and retries are kept in this process alone."""

    capabilities = CAPABILITIES

    def __init__(self, files: Files, subscription: Subscription, gone: Callable[[BroadcastSource], None]) -> None:
        self._files, self._subscription, self._gone = files, subscription, gone
        self._numbers: dict[str, int] = {}
        self._cursors: dict[str, int] = {}
        self._held: dict[int, Delivery] = {}
        self._again: dict[int, tuple[float, Delivery]] = {}  # when on the wall clock
        self._waiter: Waiter | None = None
        self._closed = False

    async def assign(self, topics: Mapping[str, Fence | None]) -> None:
        """Read these topics from now on; a new one from the subscription's start."""
        new = [name for name in topics if name not in self._numbers]

        def begin(db: sqlite3.Connection) -> dict[str, tuple[int, int]]:
            numbers = {name: create_topic(db, name) for name in new}
            return {name: (n, store.before(db, n, self._subscription.start)) for name, n in numbers.items()}

        for name, (number, cursor) in (await self._files.writer.run(begin)).items():
            self._numbers[name], self._cursors[name] = number, cursor
        for name in [name for name in self._numbers if name not in topics]:
            del self._numbers[name], self._cursors[name]
            self._held = {token: d for token, d in self._held.items() if d.topic != name}
            self._again = {token: (at, d) for token, (at, d) in self._again.items() if d.topic != name}
        self.wake()

    async def receive(self, limit: int, held: Collection[str] = ()) -> Sequence[Delivery]:
        """Read what is new, or wait about a second for something."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + WAIT
        while limit > 0 and not self._closed:
            found = self._due(limit)
            if len(found) < limit:
                found += await self._read(limit - len(found))
            for d in found:
                self._held[position_of(d)] = d
            if found or loop.time() >= deadline:
                return found
            await self._wait(deadline)
        return []

    def _due(self, limit: int) -> list[Delivery]:
        now = time.time()
        tokens = sorted(token for token, (at, _) in self._again.items() if at <= now)[:limit]
        return [self._again.pop(token)[1] for token in tokens]

    async def _read(self, limit: int) -> list[Delivery]:
        wanted = [(name, number, self._cursors[name]) for name, number in self._numbers.items()]

        def read(db: sqlite3.Connection) -> list[Delivery]:
            found: list[Delivery] = []
            for topic, number, cursor in wanted:
                rows = db.execute(
                    f"SELECT {COLUMNS} FROM sg_m{number} WHERE id > ? ORDER BY id LIMIT ?",
                    (cursor, limit - len(found)),
                ).fetchall()
                base = number << SHIFT
                found += [
                    Delivery(
                        topic, body, media, key, "", base + id, 1,
                        native=Stored(id, stored, headers), marked=bool(marked),
                    )
                    for id, key, media, headers, body, stored, marked in rows
                ]  # fmt: skip
            return found

        found = [d for d in await self._files.reader.run(read) if d.topic in self._cursors]
        for d in found:
            self._cursors[d.topic] = position(d)
        return found

    async def _wait(self, deadline: float) -> None:
        loop = asyncio.get_running_loop()
        wanted = [(number, self._cursors[name]) for name, number in self._numbers.items()]
        again = min((at for at, _ in self._again.values()), default=None)

        def question(db: sqlite3.Connection) -> float | None:
            now = time.time()
            due: list[float] = [] if again is None else [again]
            for number, cursor in wanted:
                (fresh,) = db.execute(f"SELECT max(id) > ? FROM sg_m{number}", (cursor,)).fetchone()
                if fresh:
                    return now
            return min(due, default=None)

        waiter = self._waiter = Waiter(question, loop.create_future())
        timer = loop.call_at(deadline, self.wake)
        self._files.watch.add(waiter)
        try:
            self._files.reader.poke()
            await waiter.future
        finally:
            timer.cancel()
            self._waiter = None
            self._files.watch.remove(waiter)

    async def settle(self, batch: Sequence[Settlement]) -> Sequence[TransportError | None]:
        """Remember what is to come again; Lost for what is not held."""
        outcomes: list[TransportError | None] = []
        for s in batch:
            d = self._held.pop(position_of(s.delivery), None)
            if d is None:
                outcomes.append(Lost(f"topic {s.delivery.topic!r}: position {position(s.delivery)} is not held"))
                continue
            if s.verdict is Verdict.EXTEND:
                self._held[position_of(d)] = d
            elif s.verdict is not Verdict.ACK:
                retry = s.verdict is Verdict.RETRY
                again = Delivery(
                    d.topic, d.body, d.media, d.key, d.lane, d.token, (d.deliveries or 1) + retry,
                    native=d.native, marked=d.marked,
                )  # fmt: skip
                self._again[position_of(d)] = time.time() + (s.seconds if retry else 0.0), again
                self.wake()
            outcomes.append(None)
        return outcomes

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
        """When it was stored, unix seconds."""
        return stored(delivery).time

    async def close(self) -> None:
        """Forget everything; the file knew nothing of this."""
        self._closed = True
        self._held.clear()
        self._again.clear()
        self._gone(self)
        self.wake()


def position_of(delivery: Delivery) -> int:
    """The token, which names topic and position."""
    assert isinstance(delivery.token, int)
    return delivery.token
