"""Telling the broker what became of deliveries, in batches: message by message, or by a watermark per lane."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from .clock import Clock, Timer
from .driver import Delivery, Settlement, Source, Verdict
from .errors import TransportError, Unavailable
from .lanes import Lanes

EVERY = 0.005  # seconds that a settlement waits for others
AT = 500  # settlements that wait for nobody
COMMIT_EVERY = 1.0  # seconds between the watermarks of a busy lane
COMMIT_AT = 2000  # or so many deliveries
ACK = Verdict.ACK


class Settler(Protocol):
    """How a subscription settles; `done` and `kick` are the hot path of a worker."""

    done: list[Delivery]

    def admit(self, batch: Sequence[Delivery]) -> Sequence[Delivery]: ...
    def kick(self, n: int) -> None: ...
    def put(self, settlement: Settlement) -> None: ...
    async def run(self) -> None: ...
    async def flush(self) -> None: ...
    def lose(self, lanes: Sequence[str]) -> None: ...
    def forget(self) -> None: ...
    def stop(self) -> None: ...


class Unsettled:
    """At most once: all was acknowledged before it was handled, so that afterwards it is only let go."""

    def __init__(
        self, lanes: Lanes, settled: Callable[[Sequence[Settlement], Sequence[TransportError | None]], None]
    ) -> None:
        self._lanes, self._settled = lanes, settled
        self.done: list[Delivery] = []
        self._wake = asyncio.Event()
        self._running = True

    def admit(self, batch: Sequence[Delivery]) -> Sequence[Delivery]:
        return batch

    def kick(self, n: int) -> None:
        self._wake.set()

    def put(self, settlement: Settlement) -> None:
        self._lanes.free(settlement.delivery)

    async def run(self) -> None:
        while self._running:
            await self._wake.wait()
            self._wake.clear()
            await self.flush()

    async def flush(self) -> None:
        done, self.done = self.done, []
        for delivery in done:
            self._lanes.free(delivery)
        self._settled([Settlement(d, ACK) for d in done], [None] * len(done))

    def lose(self, lanes: Sequence[str]) -> None:
        pass

    def forget(self) -> None:
        self.done = []

    def stop(self) -> None:
        self._running = False
        self._wake.set()


class Individual:
    """Message by message: handled deliveries gather in `done`, other verdicts in `other`; both leave in one call."""

    def __init__(
        self, lanes: Lanes, source: Source, clock: Clock, *,
        down: Callable[[TransportError], Any], up: Callable[[], Any],
        settled: Callable[[Sequence[Settlement], Sequence[TransportError | None]], None],
    ) -> None:  # fmt: skip
        self._lanes, self._source, self._clock = lanes, source, clock
        self._down, self._up, self._settled = down, up, settled
        self.done: list[Delivery] = []
        self.other: list[Settlement] = []
        self._wake: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._running = True
        self._lock = asyncio.Lock()

    def admit(self, batch: Sequence[Delivery]) -> Sequence[Delivery]:
        return batch

    def kick(self, n: int) -> None:
        """Something waits: leave now if it is many, else soon."""
        if n >= AT:
            self._now()
        elif self._timer is None:
            self._timer = self._loop.call_later(EVERY, self._now)

    def put(self, settlement: Settlement) -> None:
        self.other.append(settlement)
        self.kick(len(self.other))

    def _now(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def run(self) -> None:
        """Settle until `stop`; waits for the link while the broker is away."""
        while self._running:
            self._wake = self._loop.create_future()
            if self.done or self.other:
                self.kick(len(self.done) + len(self.other))
            await self._wake
            while self.done or self.other:
                try:
                    await self.flush()
                except Unavailable as error:
                    self._down(error)
                    await self._up()

    async def flush(self) -> None:
        """Settle all that waits. Raises Unavailable, and then keeps it."""
        async with self._lock:
            done, other = self.done, self.other
            if not done and not other:
                return
            ack = ACK
            self.done, self.other = [], []
            batch = [Settlement(d, ack) for d in done]
            if self._lanes.moved:
                batch = [Settlement(c, ack) for d in done if (c := self._current(d)) is not None]
            batch += other
            try:
                errors = await self._source.settle(batch) if batch else ()
            except BaseException:
                self.done, self.other = done + self.done, other + self.other
                raise
            self._lanes.free_all(done)
            for settlement in other:
                self._lanes.free(settlement.delivery)
            self._settled(batch, errors)

    def _current(self, delivery: Delivery) -> Delivery | None:
        current = self._lanes.current(delivery)
        if current is None:
            self._lanes.free(delivery)
        return current

    def lose(self, lanes: Sequence[str]) -> None:
        gone = set(lanes)
        for waiting in [d for d in self.done if d.lane in gone]:
            self._lanes.free(waiting)
        self.done = [d for d in self.done if d.lane not in gone]
        self.other = [s for s in self.other if s.delivery.lane not in gone]

    def forget(self) -> None:
        """The source is gone: what was not settled will come again, and is then handled again."""
        for delivery in [*self.done, *(s.delivery for s in self.other)]:
            self._lanes.free(delivery)
        self.done, self.other = [], []

    def stop(self) -> None:
        self._running = False
        self._now()


class Note(
    msgspec.Struct, gc=False, rename={"base": "b", "attempts": "a", "fence": "f", "done": "d"}, omit_defaults=True
):
    """What is stored beside a watermark: the head's failures, the lane's fence, ranges finished ahead of the head."""

    base: int = 0
    """The head's offset; distances count from it, so that gaps between offsets shift nothing."""
    attempts: int = 0
    fence: int = 0
    done: list[tuple[int, int]] = []
    """Inclusive ranges of distances from `base`."""


class Lane:
    """The deliveries of one broker lane, in order, until the watermark has passed them."""

    __slots__ = ("dirty", "fence", "head", "note", "skip", "track")

    def __init__(self, note: Note) -> None:
        self.track: deque[Delivery] = deque()
        self.head: Delivery | None = None
        self.dirty = False
        self.note = note
        self.fence = note.fence + 1
        self.skip: set[int] | None = None


class Cumulative:
    """By a watermark per lane: the last delivery before which everything is finished, sent by count and by interval.

    What finished ahead of it travels in the watermark's note, so that a new owner does not handle it again. Tokens end
    in the delivery's offset (see `driver.Delivery.token`).
    """

    def __init__(
        self, lanes: Lanes, source: Source, clock: Clock, *,
        down: Callable[[TransportError], Any], up: Callable[[], Any],
        settled: Callable[[Sequence[Settlement], Sequence[TransportError | None]], None],
        failures: Callable[[Delivery], int], recall: Callable[[Delivery, int], None], note_limit: int,
    ) -> None:  # fmt: skip
        self._lanes, self._source, self._clock = lanes, source, clock
        self._down, self._up, self._settled = down, up, settled
        self._failures, self._recall, self._limit = failures, recall, note_limit
        self.done: list[Delivery] = []
        self._open: dict[str, Lane] = {}
        self._since = 0
        self._wake: asyncio.Future[None] | None = None
        self._timer: Timer | None = None
        self._loop = asyncio.get_running_loop()
        self._running = True
        self._lock = asyncio.Lock()

    def admit(self, batch: Sequence[Delivery]) -> Sequence[Delivery]:
        """Track a received batch; returns what is to be handled: without what a former owner finished ahead."""
        self._collect()
        fresh: list[Delivery] = []
        for delivery in batch:
            lane = self._open.get(delivery.lane)
            if lane is None:
                lane = self._open[delivery.lane] = self._begin(delivery)
            delivery.fence = lane.fence
            lane.track.append(delivery)
            if lane.skip is not None and _offset(delivery) in lane.skip:
                continue  # never held: the watermark passes over it
            fresh.append(delivery)
        return fresh

    def _begin(self, first: Delivery) -> Lane:
        text = self._source.note(first.lane)
        note = Note()
        if text:
            try:
                note = msgspec.json.decode(text, type=Note)
            except msgspec.DecodeError:  # a note of another program: nothing is known to be finished ahead
                note = Note()
        lane = Lane(note)
        if note.done:
            lane.skip = {note.base + n for low, high in note.done for n in range(low, high + 1)}
        if note.attempts and _offset(first) == note.base:
            self._recall(first, note.attempts)
        return lane

    def kick(self, n: int) -> None:
        if n >= COMMIT_AT:
            self._now()
        elif self._timer is None:
            self._timer = self._clock.call_at(self._clock.monotonic() + COMMIT_EVERY, self._now)

    def put(self, settlement: Settlement) -> None:
        """A verdict other than ACK has no meaning on a watermark: the core holds such deliveries itself."""
        if settlement.verdict is ACK:
            self.done.append(settlement.delivery)
            self.kick(len(self.done))

    def _now(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def _collect(self) -> None:
        """Take what is done out of the held ones and move the heads; nothing that is finished is kept alive."""
        lanes = self._lanes
        if self.done:
            for delivery in self.done:
                current = lanes.current(delivery)
                lanes.free(delivery)
                lane = self._open.get(current.lane) if current is not None else None
                if lane is not None:
                    lane.dirty = True
            self.done = []
        held = lanes.held
        for lane in self._open.values():
            track = lane.track
            while track and track[0].token not in held:
                lane.head = track.popleft()
                lane.dirty = True

    def _settlements(self) -> list[Settlement]:
        self._collect()
        batch = []
        for lane in self._open.values():
            if lane.dirty and lane.head is not None:
                lane.dirty = False
                batch.append(Settlement(lane.head, ACK, 0.0, self._note(lane)))
        return batch

    def _note(self, lane: Lane) -> str:
        """The lane's state as text of at most `capabilities.note` bytes: what doesn't fit is handled again."""
        track = lane.track
        attempts = self._failures(track[0]) if track else 0
        base = _offset(track[0]) if track else 0
        ranges: list[tuple[int, int]] = []
        if track:
            held = self._lanes.held
            for delivery in track:
                if delivery.token in held:
                    continue
                n = _offset(delivery) - base
                if ranges and ranges[-1][1] == n - 1:
                    ranges[-1] = (ranges[-1][0], n)
                else:
                    ranges.append((n, n))
        while True:
            text = msgspec.json.encode(Note(base, attempts, lane.fence, ranges)).decode()
            if len(text) <= self._limit:
                return text
            if not ranges:
                return ""
            ranges = ranges[: len(ranges) * self._limit // len(text)]

    async def run(self) -> None:
        while self._running:
            self._wake = self._loop.create_future()
            if self.done:
                self.kick(len(self.done))
            await self._wake
            while self._running:
                try:
                    await self.flush()
                    break
                except Unavailable as error:
                    self._down(error)
                    await self._up()

    async def flush(self) -> None:
        async with self._lock:
            batch = self._settlements()
            if not batch:
                return
            try:
                errors = await self._source.settle(batch)
            except BaseException:
                for settlement in batch:
                    lane = self._open.get(settlement.delivery.lane)
                    if lane is not None:
                        lane.dirty = True
                raise
            self._settled(batch, errors)

    def lose(self, lanes: Sequence[str]) -> None:
        for name in lanes:
            self._open.pop(name, None)

    def forget(self) -> None:
        for delivery in self.done:
            self._lanes.free(delivery)
        self.done = []
        self._open.clear()

    def stop(self) -> None:
        self._running = False
        self._now()


def _offset(delivery: Delivery) -> int:
    token = delivery.token
    offset = token[-1] if isinstance(token, tuple) else token
    assert isinstance(offset, int)
    return offset
