"""The hot path: take what is ready, hand it over, note that it is done."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from msgspec import UNSET

from .driver import Delivery
from .emulate.dead_letters import PARKED
from .envelope import Envelope
from .errors import TransportError
from .message import Message, handling
from .outcomes import Reject
from .program import Route, Skip
from .settling import AT
from .threads import Patience, patience

if TYPE_CHECKING:
    from .consumer import Consumer

log = logging.getLogger("switchgear.consumer")

SLICE = 0.002  # seconds that a worker may go on without letting the loop turn
NEVER = float("inf")


class Slot:
    """One worker and what it is at."""

    __slots__ = ("batch", "delivery", "overran", "patience", "started", "task")

    def __init__(self, left: asyncio.Future[None], outlived: Callable[[Slot], None]) -> None:
        self.delivery: Delivery | None = None
        self.batch: Sequence[Delivery] = ()
        self.started = NEVER
        """When the handler began, on the consumer's clock; never, while none runs."""
        self.overran: Delivery | None = None
        """That whose handler was told that its time is over."""
        self.patience = Patience(left, partial(outlived, self))
        self.task: asyncio.Task[None]

    @property
    def current(self) -> Delivery | None:
        """The delivery that is being handled, of a batch the first."""
        return self.delivery or (self.batch[0] if self.batch else None)


async def work(c: Consumer, slot: Slot) -> None:
    """Handle one by one until the consumer ends."""
    patience.set(slot.patience)
    program, lanes, failures = c.program, c.lanes, c.failures
    ready, chains, order = lanes.ready, lanes.chains, lanes.order
    route = program.route
    special = route is None or c.parked is not None
    media, decode, handle = (b"", None, None) if route is None else (route.media, route.decode, route.handle)
    clock, idle, new_future, enter = c.time, c.idle, c.loop.create_future, handling.set
    undecoded: Any = UNSET
    while not c.ending:
        if not ready:
            c.wake_room()
            enter(None)
            waiter = new_future()
            idle.append(waiter)
            await waiter
            if idle:
                if len(ready) > 1:
                    c.wake_one()
                else:  # this takes the last that is ready, and others have nothing to do
                    c.wake_room()
        until = min(clock() + SLICE, c.valid_until)
        while ready and not c.ending:
            delivery = ready.popleft()
            now = clock()
            if now > until or now > delivery.until:
                if now > c.valid_until or now > delivery.until:  # the lease is over: no new handler
                    current = _leased(c, delivery, now)
                    if current is None:
                        c.wake_room()
                        await _renewed(c)
                        break
                    delivery = current
                    until = min(now + SLICE, c.valid_until)
                else:
                    ready.appendleft(delivery)
                    if 2 * len(ready) <= c.prefetch:
                        c.wake_room()
                    await asyncio.sleep(0)
                    until = min(clock() + SLICE, c.valid_until)
                    continue
            slot.started = now
            slot.delivery = delivery
            message: Message[Any] = Message(delivery, c.reading, undecoded)
            enter(message)
            try:
                body = delivery.body
                if special or delivery.marked or body is None or delivery.media != media:
                    await handle_unusual(c, message)
                else:
                    message._body = decode(body)  # type: ignore[misc]
                    await handle(message)  # type: ignore[misc]
            except BaseException as error:  # noqa: BLE001  (whose doing it is, is told apart below)
                await _failed(c, slot, message, error)
                continue
            slot.delivery = None
            settler = c.settler
            done = settler.done
            done.append(delivery)
            n = len(done)
            if n == 1 or n == AT:
                settler.kick(n)
            if order:
                key = delivery.key if order == 1 else b""
                if key is not None:
                    waiting = chains.get(key)
                    if waiting:
                        ready.append(waiting.popleft())
                    else:
                        chains.pop(key, None)
            if failures:
                failures.pop(delivery.token, None)


def _leased(c: Consumer, delivery: Delivery, now: float) -> Delivery | None:
    """What took the delivery's place and has a lease; None where there is none: then it waits until it is renewed."""
    lanes = c.lanes
    current = lanes.held.get(delivery.token)
    if current is not None and now <= current.until and c.may_begin(now):
        return current
    if current is not None:
        lanes.ready.append(current)  # behind those whose leases are good
    return None


async def _renewed(c: Consumer) -> None:
    """Return after a little while; where no handler may start at all, when one may. Of all workers one asks for it."""
    await asyncio.sleep(0.01)
    if c.may_begin(c.time()):
        return
    async with c.asking:
        while not c.ending and not c.may_begin(c.time()):  # noqa: ASYNC110  (it passes by itself)
            await asyncio.sleep(0.01)


def open_message(c: Consumer, message: Message[Any]) -> tuple[Route, Envelope]:
    """Read all of a message: its envelope, its type, its body.

    Raises Reject (parked), Skip (expired, a tombstone, a type that nobody takes), Unhandled, or CodecError.
    """
    delivery = message._received()
    if c.parked is not None and c.parked.holds(c.lanes.chain_of(delivery), delivery.topic == c.program.returns):
        raise Reject(PARKED)
    envelope = c.reading.check(message)
    if envelope.expires is not None and envelope.expires <= c.clock.now():
        raise Skip("expired", "its expiry time has passed")
    route = c.program.pick(message)
    route.decode_into(message, delivery, envelope)
    return route, envelope


async def handle_unusual(c: Consumer, message: Message[Any]) -> None:
    """Whatever the hot path does not do: several types, expiry, other codecs, tombstones, requests, parked keys."""
    route, envelope = open_message(c, message)
    value = await route.handle(message)
    if envelope.reply_to is not None:
        await answer(c, message, value, None)


async def answer(c: Consumer, message: Message[Any], value: object, failure: str | None) -> None:
    """Answer a request; at most once, so that an answer that could not be sent is only logged."""
    try:
        await c.host.reply(message, value, failure)
    except TransportError as error:
        log.warning("%s: the answer to request %s was not sent: %s", c.program.where, message.id, error)


async def _failed(c: Consumer, slot: Slot, message: Message[Any], error: BaseException) -> None:
    """A handler did not return. Carries out what follows; re-raises what is not the handler's doing."""
    slot.started = NEVER
    delivery = message._received()
    failure = failure_of(c, slot, error)
    if failure is None:
        raise error
    if await c.fate.conclude(message, failure):
        c.lanes.advance(delivery)
        c.wake_one()
    slot.delivery = None


def failure_of(c: Consumer, slot: Slot, error: BaseException) -> Exception | None:
    """What went wrong, as the retry policy sees it; None where it is not the handler's doing: the worker is to end."""
    overran = slot.overran is not None and slot.overran is slot.current
    if isinstance(error, asyncio.CancelledError):
        if c.left.done() or (c.leaving and slot.task.cancelling() and not overran):
            return None
        forgive(slot)
        if overran:
            return TimeoutError(f"the handler took longer than max_handling={c.settings.max_handling:g} s")
        failure = RuntimeError("the handler was cancelled")  # by itself, or by who has its task
        failure.__cause__ = error
        return failure
    if overran or not c.leaving:
        forgive(slot)
    if isinstance(error, Exception):
        return error
    if isinstance(error, BaseExceptionGroup):
        failure = RuntimeError("a task of the handler ended in something that is no Exception")
        failure.__cause__ = error
        return failure
    return None


def forgive(slot: Slot) -> None:
    """The handler has ended: its cancellation concerns nobody any more."""
    slot.overran = None
    while slot.task.cancelling():
        slot.task.uncancel()
