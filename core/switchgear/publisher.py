"""Sending: messages of one loop tick, or of the batch in flight, leave together; per key in order; bounded; retried.

The buffer holds nothing but messages whose publisher waits for them, so that it is bounded by their number;
`publish_many`, which puts in many before it waits, asks for room first. What a broker certainly did not store is sent
again inside its deadline, and what it may have stored too unless the caller said otherwise.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections import deque
from collections.abc import Sequence

import msgspec

from .driver import Outgoing, Transport
from .errors import MaybeSent, NotSent, TransportError, Unavailable
from .supervision import Link, again

log = logging.getLogger("switchgear.publisher")

CAPACITY = 20_000  # messages
CAPACITY_BYTES = 64 << 20
LOOKAHEAD = 4  # batches that are searched for messages whose key is not in flight
OVERHEAD = 256  # bytes that headers and bookkeeping of a buffered message cost, roughly
BACKOFF, BACKOFF_CAP = 0.05, 2.0  # seconds
SWEEP = 0.01  # seconds between passes over the buffer for deadlines, at the least
END = 1.0  # seconds that a cancelled send may take to end


def weight(out: Outgoing) -> int:
    """Bytes of a message's headers, for those that may have long ones."""
    return sum(len(name) + len(value) for name, value in out.headers)


class Entry(msgspec.Struct, gc=False, eq=False):
    """One message on its way."""

    out: Outgoing
    future: asyncio.Future[None]
    deadline: float
    """On the loop's clock."""
    chain: tuple[str, bytes] | None
    """What must arrive in call order: topic and key; None where nothing must."""
    again: bool
    """Whether it may be sent again after MaybeSent."""
    size: int
    error: TransportError | None = None
    """The last outcome, raised when the deadline passes; once MaybeSent it stays so."""


class Publisher:
    """One per bus and transport."""

    def __init__(self, transport: Transport, link: Link) -> None:
        self._transport, self._link = transport, link
        self._loop = asyncio.get_running_loop()
        capabilities = transport.capabilities
        self.immediate = capabilities.immediate
        self._sends = max(1, capabilities.sends)
        self._send_order = capabilities.send_order
        self._batch = min(capabilities.batch, capabilities.batch_limit)
        self._batch_bytes = capabilities.batch_bytes
        self._buffer: deque[Entry] = deque()
        self._bytes = 0
        self._flights: set[asyncio.Task[None]] = set()
        self._lone = True
        self._flying: dict[int, list[Entry]] = {}
        self._busy: set[tuple[str, bytes]] = set()
        self._room: deque[asyncio.Future[None]] = deque()
        self._scheduled = False
        self._failures = 0
        self._paused: asyncio.TimerHandle | None = None
        """Set while what failed waits for its next try, and all else behind it."""
        self._closed = False
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = math.inf
        self._not_before = 0.0
        link.on_change(self._schedule)

    # ---- taking messages in ---------------------------------------------------------------------------------------

    def full(self) -> bool:
        return len(self._buffer) >= CAPACITY or self._bytes >= CAPACITY_BYTES

    async def room(self, deadline: float) -> None:
        """Wait until the buffer has room. Raises NotSent (or Unavailable) at the deadline, or when the bus closes."""
        while self.full():
            if self._closed:
                raise NotSent("the bus was closed before the publish buffer had room")
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._room.append(waiter)
            try:
                async with asyncio.timeout_at(deadline):
                    await waiter
            except TimeoutError:
                if not self._link.up:
                    away = self._link.unavailable()
                    raise away from away.__cause__
                raise NotSent(
                    f"no room in the publish buffer ({len(self._buffer)} messages) before the timeout: "
                    "the broker takes messages more slowly than they are published"
                ) from None

    def put(
        self, out: Outgoing, chain: tuple[str, bytes] | None, deadline: float, again: bool = True, extra: int = 0
    ) -> asyncio.Future[None]:
        """Buffer one message; the future resolves when the broker has stored it. `extra`: bytes of long headers."""
        future = self._loop.create_future()
        body, key = out.body, out.key
        size = OVERHEAD + extra + (len(body) if body is not None else 0)
        if key is not None:
            size += 2 * len(key)  # as key and as an attribute
        self._buffer.append(Entry(out, future, deadline, chain, again, size))
        self._bytes += size
        if not self._scheduled and len(self._flying) < self._sends and self._paused is None:
            self._scheduled = True
            self._loop.call_soon(self._flush)
        if deadline < self._alarm_at:
            self._arm(deadline)
        return future

    def quiet(self) -> bool:
        """Nothing waits or flies, and what flew last was a message alone: the next need not wait for company."""
        return (
            self._lone and not self._buffer and not self._flying and not self._scheduled
            and self._paused is None and self._link.up and not self._closed
        )  # fmt: skip

    async def send_alone(
        self, out: Outgoing, chain: tuple[str, bytes] | None, deadline: float, again: bool = True
    ) -> None:
        """Send one message from the caller's own task while it is `quiet`; what fails goes the way of all others."""
        future = self._loop.create_future()
        entry = Entry(out, future, deadline, chain, again, OVERHEAD)
        self._bytes += OVERHEAD
        batch = [entry]
        number = id(batch)
        self._flying[number] = batch
        if chain is not None:
            self._busy.add(chain)
        if deadline < self._alarm_at:
            self._arm(deadline)
        try:
            await self._send(batch, number)
        except BaseException:  # cancelled: the outcome interests nobody any more
            if future.done():
                future.exception()
            else:
                future.cancel()
            raise
        await future

    async def send_now(self, out: Outgoing, deadline: float) -> None:
        """Send one message at once, past the buffer; for transports that store without waiting."""
        error = (await self._transport.send((out,), deadline))[0]
        if error is not None:
            raise error

    # ---- sending --------------------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        if self._buffer and not self._scheduled and self._paused is None:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        while self._buffer and len(self._flying) < self._sends and self._paused is None and not self._closed:
            if not self._link.up:
                if self._link.terminal is not None:
                    self._fail_all()
                return  # the link tells when it is there again
            batch = self._take()
            if self._room:
                self._make_room()
            if not batch:
                return
            number = id(batch)
            self._flying[number] = batch
            self._lone = len(batch) == 1
            task = self._loop.create_task(self._send(batch, number))
            self._flights.add(task)
            task.add_done_callback(self._flights.discard)

    def _fail_all(self) -> None:
        """Connecting is pointless: say so to everyone who waits."""
        for entry in self._buffer:
            self._bytes -= entry.size
            if not entry.future.done():
                entry.future.set_exception(self._outcome(entry, flying=False))
        self._buffer.clear()
        self._make_room()

    def _take(self) -> list[Entry]:
        """The next batch: in order, without a key that is in flight, and with each key once where a call could store
        a later message of a key after an earlier one failed."""
        buffer, busy, limit = self._buffer, self._busy, self._batch
        careful = not self._send_order
        batch: list[Entry] = []
        aside: list[Entry] = []
        mine: set[tuple[str, bytes]] = set()
        size = 0
        looked = 0
        while buffer and len(batch) < limit and looked < limit * LOOKAHEAD:
            entry = buffer.popleft()
            if entry.future.done():  # cancelled, or its deadline passed
                self._bytes -= entry.size
                continue
            looked += 1
            name = entry.chain
            if name is not None and (name in busy or (careful and name in mine)):
                aside.append(entry)
                continue
            size += entry.size
            if batch and size > self._batch_bytes:
                aside.append(entry)
                break
            if name is not None:
                mine.add(name)
            batch.append(entry)
        if aside:
            buffer.extendleft(reversed(aside))
        busy |= mine
        return batch

    async def _send(self, batch: list[Entry], number: int) -> None:
        deadline = max(entry.deadline for entry in batch)
        outs = [entry.out for entry in batch]
        errors: Sequence[TransportError | None]
        try:
            async with asyncio.timeout_at(deadline):
                errors = await self._transport.send(outs, deadline)
            if len(errors) != len(batch):
                raise ValueError(f"send returned {len(errors)} outcomes for {len(batch)} messages")
        except TransportError as error:
            errors = [error] * len(batch)
        except TimeoutError:
            errors = [MaybeSent("the broker did not answer before the timeout")] * len(batch)
        except asyncio.CancelledError:
            self._landed(batch, number, [MaybeSent("sending was cancelled")] * len(batch), retry=False)
            raise
        except Exception as error:
            log.exception("the transport failed in send; this is a bug of the transport")
            failure = MaybeSent(f"the transport failed: {type(error).__name__}")
            failure.__cause__ = error
            self._landed(batch, number, [failure] * len(batch), retry=False)
            return
        self._landed(batch, number, errors, retry=True)

    def _landed(self, batch: list[Entry], number: int, errors: Sequence[TransportError | None], *, retry: bool) -> None:
        del self._flying[number]
        now = self._loop.time()
        once_more: list[Entry] = []
        size = 0
        down: TransportError | None = None
        for entry, error in zip(batch, errors, strict=True):
            future = entry.future
            if error is None:
                size += entry.size
                if not future.done():
                    future.set_result(None)
                continue
            if isinstance(error, Unavailable):
                down = error
            worth = isinstance(error, (Unavailable, NotSent)) or (isinstance(error, MaybeSent) and entry.again)
            if not isinstance(entry.error, MaybeSent):
                entry.error = error
            elif not worth:  # an earlier try may have stored it, whatever this one says
                entry.error = MaybeSent(f"{entry.error}; sending it again failed: {error}")
                entry.error.__cause__ = error
            if retry and worth and not future.done() and now < entry.deadline and not self._closed:
                once_more.append(entry)
                continue
            size += entry.size
            if not future.done():
                future.set_exception(again(entry.error))
        self._bytes -= size
        if self._busy:
            self._busy.difference_update([entry.chain for entry in batch if entry.chain is not None])
        if once_more:
            self._buffer.extendleft(reversed(once_more))
            self._pause()
        elif down is None:
            self._failures = 0
        if down is not None:
            self._link.down(down)
        if self._room:
            self._make_room()
        self._schedule()

    def _make_room(self) -> None:
        while self._room and not self.full():
            waiter = self._room.popleft()
            if not waiter.done():
                waiter.set_result(None)

    def _pause(self) -> None:
        """Back off before what failed is sent again; the buffer keeps its order meanwhile."""
        if self._paused is None and not self._closed:
            self._failures += 1
            delay = min(BACKOFF_CAP, BACKOFF * 2 ** min(self._failures, 10))
            self._paused = self._loop.call_later(delay * random.uniform(0.5, 1.0), self._resume)

    def _resume(self) -> None:
        self._paused = None
        self._schedule()

    # ---- deadlines ------------------------------------------------------------------------------------------------

    def _arm(self, deadline: float) -> None:
        """Look at the deadlines at `deadline`, but not so often that looking is all that is done."""
        when = max(deadline, self._not_before)
        if when < self._alarm_at:
            if self._alarm is not None:
                self._alarm.cancel()
            self._alarm_at = when
            self._alarm = self._loop.call_at(when, self._overdue)

    def _overdue(self) -> None:
        """Fail what is past its deadline, in the buffer and in flight; look again when the next one is due."""
        self._alarm, self._alarm_at = None, math.inf
        now = self._loop.time()
        nearest = math.inf
        for entries, flying in ((self._buffer, False), *((batch, True) for batch in self._flying.values())):
            for entry in entries:
                if entry.future.done():
                    continue
                if entry.deadline > now:
                    nearest = min(nearest, entry.deadline)
                    continue
                entry.future.set_exception(self._outcome(entry, flying))
        took = self._loop.time() - now
        self._not_before = now + max(SWEEP, 10 * took)
        if nearest < math.inf:
            self._arm(nearest)

    def _outcome(self, entry: Entry, flying: bool) -> Exception:
        if isinstance(entry.error, MaybeSent):
            return again(entry.error)
        if flying:
            return MaybeSent("the broker did not answer before the timeout")
        if not self._link.up:
            return self._link.unavailable()
        if entry.error is not None:
            return again(entry.error)
        return NotSent("the timeout passed before the message left the publish buffer")

    # ---- the end --------------------------------------------------------------------------------------------------

    async def close(self, deadline: float) -> None:
        """Flush what is buffered until the deadline; what remains fails with its last outcome. Idempotent."""
        pending = [entry.future for entry in (*self._buffer, *self._on_the_way()) if not entry.future.done()]
        if pending:
            await asyncio.wait(pending, timeout=max(0.0, deadline - self._loop.time()))
        self._closed = True
        for handle in (self._paused, self._alarm):
            if handle is not None:
                handle.cancel()
        if self._flights:
            flights = list(self._flights)
            for task in flights:
                task.cancel()
            await asyncio.wait(flights, timeout=END)
        for entries, flying in ((self._buffer, False), (self._on_the_way(), True)):
            for entry in entries:
                if not entry.future.done():
                    closed = NotSent("the bus was closed before the message left the publish buffer")
                    late = flying or entry.error is not None or not self._link.up
                    entry.future.set_exception(self._outcome(entry, flying) if late else closed)
        self._buffer.clear()
        self._bytes = 0
        self._make_room()

    def _on_the_way(self) -> list[Entry]:
        return [entry for batch in self._flying.values() for entry in batch]
