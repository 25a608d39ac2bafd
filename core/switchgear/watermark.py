"""Settling where the broker acknowledges by a position per lane (`Settling.CUMULATIVE`)."""

# ruff: noqa: ARG002  (the signatures are those of `settling.Settler`)

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Hashable, Sequence
from itertools import pairwise
from typing import Any, cast

import msgspec
from msgspec import structs

from .clock import Clock, Timer
from .driver import Delivery, Outgoing, Settlement, Source, Verdict
from .errors import MaybeSent, NotSent, TransportError, Unavailable
from .lanes import Lanes
from .settling import Connection, Report
from .transacting import Transaction

COMMIT_EVERY = 1.0  # seconds between the watermarks of a busy lane
COMMIT_AT = 2000  # or so many deliveries
TRANSACT_EVERY = 0.1  # seconds between transactions: what was produced waits for them
FRAME = 64  # bytes of a note beside its ranges, at the most
ACK = Verdict.ACK


class Note(
    msgspec.Struct, gc=False, rename={"base": "b", "attempts": "a", "fence": "f", "done": "d"}, omit_defaults=True
):
    """What is stored beside a watermark: the head's failures, the lane's fence, ranges finished ahead of the head."""

    base: int = 0
    """The head's offset; distances count from it."""
    attempts: int = 0
    fence: int = 0
    done: list[tuple[int, int]] = []
    """Inclusive ranges of distances from `base`, ascending."""


class Span(msgspec.Struct):
    """Deliveries that follow each other and are all finished; only the last is kept."""

    low: int
    high: int
    n: int
    last: Delivery


class Lane:
    """The deliveries of one broker lane, in order, until the watermark has passed them."""

    __slots__ = ("dirty", "fence", "finished", "head", "last", "size", "track")

    def __init__(self, note: Note, first: int) -> None:
        self.track: deque[Delivery | Span] = deque()
        self.size = 0
        """Messages in `track`."""
        self.last = first - 1
        """The highest offset received."""
        self.head: Delivery | None = None
        """The last delivery before which all is finished."""
        self.dirty = False
        self.fence = note.fence + 1
        self.finished = deque((note.base + low, note.base + high) for low, high in note.done)
        """What a former owner finished ahead, as far as it has not come yet."""

    def known(self, offset: int) -> bool:
        """Whether a former owner finished it; asked with rising offsets."""
        finished = self.finished
        while finished and finished[0][1] < offset:
            finished.popleft()
        return bool(finished) and finished[0][0] <= offset


class Cumulative:
    """By a watermark per lane: the last delivery before which everything is finished, sent by count and by interval.

    What finished ahead of it travels in the watermark's note, so that a new owner does not handle it again. Tokens end
    in the delivery's offset (see `driver.Delivery.token`).
    """

    def __init__(
        self, lanes: Lanes, source: Source, clock: Clock, link: Connection, report: Report, *,
        failures: dict[Hashable, int], transaction: Transaction | None = None,
    ) -> None:  # fmt: skip
        self._lanes, self._source, self._clock, self._link, self._report = lanes, source, clock, link, report
        self._failures, self._limit = failures, source.capabilities.note
        self._transaction = transaction
        self._every = COMMIT_EVERY if transaction is None else TRANSACT_EVERY
        self._produced: list[tuple[str, Outgoing]] = []
        """By lane, what the next transaction stores: of all that its notes tell."""
        self.done: list[Delivery] = []
        self._quiet: list[Delivery] = []
        self._open: dict[str, Lane] = {}
        self._notes: dict[str, Note] = {}
        """As found, of lanes that are ours and of which nothing was admitted yet."""
        self._since = 0
        self._wake: asyncio.Future[None] | None = None
        self._timer: Timer | None = None
        self._loop = asyncio.get_running_loop()
        self._running = True
        self._lock = asyncio.Lock()

    async def enter(self, batch: Sequence[Delivery]) -> None:
        """Store the fence of each new lane: its next owner, whenever he comes, has to have a higher one.

        Nothing is finished yet, so that the watermark stays right before the lane's first message.
        """
        new: dict[str, Delivery] = {}
        for delivery in batch:
            if delivery.lane not in self._open:
                new.setdefault(delivery.lane, delivery)
        if not new:
            return
        begun: list[Settlement] = []
        found: dict[str, Note] = {}
        for first in new.values():
            note = found[first.lane] = self._note_of(first.lane)
            text = msgspec.json.encode(structs.replace(note, fence=note.fence + 1)).decode()
            if len(text) > self._limit:
                text = msgspec.json.encode(Note(fence=note.fence + 1)).decode()
            begun.append(Settlement(_before(first), ACK, 0.0, text if len(text) <= self._limit else ""))
        async with self._lock:
            errors = await self._source.settle(begun)
        for error in errors:
            if isinstance(error, (Unavailable, NotSent, MaybeSent)):
                raise Unavailable(f"{error}; taking possession is tried again") from error
        self._notes.update(found)

    def admit(self, batch: Sequence[Delivery]) -> Sequence[Delivery]:
        """Track a received batch; returns it without what is known to be finished."""
        self._collect()
        held, known = self._lanes.held, self._open
        if self._transaction is not None:
            self._transaction.outputs.arrived(batch, held)
        fresh: list[Delivery] = []
        lane: Lane | None = None
        name = None
        for delivery in batch:
            token: Any = delivery.token
            offset: int = token[-1] if token.__class__ is tuple else _offset(delivery)
            if lane is None or delivery.lane != name:
                name = delivery.lane
                lane = known.get(name)
                if lane is None:
                    lane = known[name] = self._begin(delivery, offset)
            delivery.fence = lane.fence
            if offset <= lane.last:  # handed out again after an interruption
                if token in held:
                    fresh.append(delivery)
                continue
            lane.last = offset
            lane.track.append(delivery)
            lane.size += 1
            if not lane.finished or not lane.known(offset) or token in held:
                fresh.append(delivery)
        return fresh

    def _begin(self, first: Delivery, offset: int) -> Lane:
        note = self._notes.pop(first.lane, None) or self._note_of(first.lane)
        if note.attempts > 0 and offset == note.base and first.token not in self._failures:
            self._failures[first.token] = note.attempts
        lane = Lane(note, offset)
        lane.head = _before(first)  # so that what finishes ahead of the first message, or fails at it, can be told
        return lane

    def _note_of(self, lane: str) -> Note:
        try:
            return msgspec.json.decode(self._source.note(lane) or "{}", type=Note)
        except msgspec.DecodeError:  # a note of another program: nothing is known to be finished ahead
            return Note()

    def kick(self, n: int) -> None:
        if self._timer is None:
            self._timer = self._clock.call_at(self._clock.monotonic() + self._every, self._now)

    def put(self, settlement: Settlement) -> None:
        """A verdict other than ACK has no meaning on a watermark: what is not finished holds it back."""
        if settlement.verdict is ACK:
            self._quiet.append(settlement.delivery)
            self.kick(1)

    def failed(self, delivery: Delivery) -> None:
        lane = self._open.get(delivery.lane)
        if lane is not None:
            lane.dirty = True  # its note tells the attempts of the head
            self.kick(1)

    def full(self, window: int) -> frozenset[str]:
        self._collect()
        return frozenset(name for name, lane in self._open.items() if lane.size >= window)

    def pending(self) -> set[Hashable]:
        return {d.token for d in [*self.done, *self._quiet]}

    @property
    def due(self) -> bool:
        return False

    def _now(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def _collect(self) -> None:
        """Take what is done out of the held ones and move the heads."""
        if self.done or self._quiet:
            self._let_go()
        held = self._lanes.held
        for lane in self._open.values():
            track = lane.track
            head: Delivery | None = None
            passed = 0
            while track:
                first = track[0]
                if isinstance(first, Span):
                    head = first.last
                    passed += first.n
                elif first.token in held:
                    break
                else:
                    head = first
                    passed += 1
                track.popleft()
            if head is not None:
                lane.head = head
                lane.size -= passed
                lane.dirty = True
        if self._since >= COMMIT_AT:
            self._now()

    def _let_go(self) -> None:
        """What is done is no longer held."""
        lanes = self._lanes
        done, quiet = self.done, self._quiet
        self.done, self._quiet = [], []
        transaction = self._transaction
        if transaction is not None:
            done, quiet = self._tellable(done, quiet)
        finished = [*done, *quiet] if quiet else done
        handled = len(done)
        if lanes.moved or lanes.leaving:
            ours: list[Delivery] = []
            for i, delivery in enumerate(finished):
                current = lanes.current(delivery)
                lanes.free(delivery)
                if current is not None:
                    ours.append(current)
                elif i < len(done):
                    handled -= 1
        else:  # the usual case, done in bulk
            lanes.free_all(finished)
            ours = finished
        if transaction is not None:
            outputs = transaction.outputs
            for delivery in ours:
                if (out := outputs.of(delivery)) is not None:
                    self._produced.append((delivery.lane, out))
            outputs.drop_all(finished)
        for name in {delivery.lane for delivery in ours}:
            lane = self._open.get(name)
            if lane is not None:
                lane.dirty = True
        self._since += len(finished)
        if handled:
            self._report.handled(handled)
        self._report.settled()

    def _tellable(self, done: list[Delivery], quiet: list[Delivery]) -> tuple[list[Delivery], list[Delivery]]:
        """Those that the notes have room to tell of. The others stay unfinished, and what they led to unstored: who
        forgets that it is stored does it again."""
        until = self._until([*done, *quiet])
        if not until:
            return done, quiet
        told: tuple[list[Delivery], list[Delivery]] = [], []
        for i, deliveries in enumerate((done, quiet)):
            later = self._quiet if i else self.done
            for delivery in deliveries:
                fits = _offset(delivery) <= until.get(delivery.lane, _offset(delivery))
                (told[i] if fits else later).append(delivery)
        return told

    def _until(self, finished: Sequence[Delivery]) -> dict[str, int]:
        """By lane whose note could get too long, the last offset of those finished that it can tell."""
        found: dict[str, int] = {}
        held, tokens = self._lanes.held, {d.token for d in finished}
        for name in {d.lane for d in finished}:
            lane = self._open.get(name)
            if lane is None:
                continue
            track, ahead = lane.track, lane.finished
            if not track:
                continue
            first = track[0]
            last = max(lane.last, ahead[-1][1] if ahead else 0)
            width = 2 * len(str(last - (first.low if isinstance(first, Span) else _offset(first)))) + 4
            room = (self._limit - FRAME) // width - len(ahead)
            if len(track) <= room:  # whatever is finished of it
                continue
            open_ = [isinstance(e, Delivery) and e.token in held for e in track]
            room -= sum(before and not now for before, now in pairwise(open_))
            behind = told = False
            for entry, unfinished in zip(track, open_, strict=True):
                if unfinished and isinstance(entry, Delivery) and entry.token in tokens:
                    if behind and not told:
                        room -= 1
                        if room < 0:
                            found[name] = _offset(entry) - 1
                            break
                    told = True
                else:
                    behind = behind or unfinished
                    told = not unfinished
        return found

    def _settlements(self) -> list[Settlement]:
        self._collect()
        self._since = 0
        batch: list[Settlement] = []
        for lane in self._open.values():
            if lane.dirty and lane.head is not None:
                lane.dirty = False
                batch.append(Settlement(lane.head, ACK, 0.0, self._note(lane)))
        return batch

    def _note(self, lane: Lane) -> str:
        """The lane's state as text of at most `capabilities.note` bytes: what doesn't fit is handled again.

        On the way what is finished ahead of the head is put together, so that nothing finished stays in memory.
        """
        held = self._lanes.held
        track: deque[Delivery | Span] = deque()
        for entry in lane.track:
            if isinstance(entry, Span):
                span = entry
            elif entry.token in held:
                track.append(entry)
                continue
            else:
                offset = _offset(entry)
                span = Span(offset, offset, 1, entry)
            before = track[-1] if track else None
            if isinstance(before, Span):
                before.high, before.n, before.last = span.high, before.n + span.n, span.last
            else:
                track.append(span)
        lane.track = track
        first = track[0] if track else None
        base = attempts = 0
        if isinstance(first, Delivery):
            base, attempts = _offset(first), self._failures.get(first.token, 0)
        spans = [(s.low, s.high) for s in track if isinstance(s, Span)]
        ahead = [(max(low, lane.last + 1), high) for low, high in lane.finished if high > lane.last]
        if first is None and ahead:
            base = lane.last + 1
        ranges = [(low - base, high - base) for low, high in (*spans, *ahead)]
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
            if self.done or self._quiet:
                self.kick(1)
            await self._wake
            while self._running:
                try:
                    await self.flush()
                    break
                except Unavailable as error:
                    self._link.down(error)
                    await self._link.wait()

    async def flush(self) -> None:
        async with self._lock:
            batch = self._settlements()
            if not batch:
                return
            produced, self._produced = self._produced, []
            try:
                if self._transaction is None:
                    errors = await self._source.settle(batch)
                else:
                    errors = await self._transaction.together(batch, [out for _, out in produced])
            except BaseException:
                self._again(batch)
                self._produced = [one for one in produced if one[0] in self._open] + self._produced
                raise
            later: TransportError | None = None
            lost: list[Hashable] = []
            for settlement, error in zip(batch, errors, strict=True):
                if isinstance(error, (Unavailable, NotSent, MaybeSent)):
                    later = error
                    self._again([settlement])
                elif error is not None:
                    lost.append(settlement.delivery.token)
            if lost:
                self._report.lost(lost)
            if later is not None:
                raise Unavailable(f"{later}; the settlement is tried again") from later

    def _again(self, batch: Sequence[Settlement]) -> None:
        for settlement in batch:
            lane = self._open.get(settlement.delivery.lane)
            if lane is not None:
                lane.dirty = True

    def lose(self, lanes: Sequence[str]) -> None:
        for name in lanes:
            self._open.pop(name, None)
            self._notes.pop(name, None)
        self._produced = [one for one in self._produced if one[0] in self._open]

    def forget(self) -> None:
        self._lanes.free_all([*self.done, *self._quiet])
        self.done, self._quiet = [], []
        self._open.clear()
        self._notes.clear()
        self._produced = []

    def stop(self) -> None:
        self._running = False
        self._now()


def _offset(delivery: Delivery) -> int:
    token: object = delivery.token
    if isinstance(token, tuple):
        token = cast("tuple[object, ...]", token)[-1]
    assert isinstance(token, int)
    return token


def _before(first: Delivery) -> Delivery:
    """The place right before a lane's first message."""
    return structs.replace(first, body=None, native=None, token=_with_offset(first, _offset(first) - 1))


def _with_offset(delivery: Delivery, offset: int) -> Hashable:
    """The token of another place in the same lane."""
    token: object = delivery.token
    return (*cast("tuple[object, ...]", token)[:-1], offset) if isinstance(token, tuple) else offset
