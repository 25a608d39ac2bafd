"""Handlers of batches: gather, hand over as a list, settle item by item."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from msgspec import UNSET

from .driver import Delivery
from .message import Message, handling
from .outcomes import Drop, Reject, RetryAfter
from .program import Route, Skip
from .threads import patience
from .working import NEVER, Slot, answer, failure_of, open_message

if TYPE_CHECKING:
    from .consumer import Consumer


async def work_batches(c: Consumer, slot: Slot) -> None:
    """Handle batch by batch until the consumer ends."""
    patience.set(slot.patience)
    assert c.program.batch is not None
    size, wait = c.program.batch.size, c.program.batch.wait
    while not c.ending:
        handling.set(None)
        async with c.gathering:
            batch = c.gathered
            await _gather(c, batch, size, wait)
            c.gathered = []
            batch = _still_ours(c, batch)
            ends = min((d.until for d in batch), default=float("inf"))
            now = c.time()
            if now > ends or not c.may_begin(now) or _ending(c):  # no new handler
                c.lanes.restore(batch)
                await asyncio.sleep(0 if _ending(c) else 0.01)
                continue
            slot.batch = batch
        if batch:
            await _handle(c, slot, batch)
            slot.started, slot.batch = NEVER, ()
            c.wake_room()


async def _gather(c: Consumer, batch: list[Delivery], size: int, wait: float) -> None:
    """Up to `size` deliveries; of a key those that follow each other come together, in order."""
    lanes = c.lanes
    ready, chains = lanes.ready, lanes.chains
    until: float | None = None
    while not c.ending:
        while ready and len(batch) < size:
            delivery = ready.popleft()
            batch.append(delivery)
            key = lanes.chain_of(delivery)
            chain = chains.get(key) if key is not None else None
            while chain and len(batch) < size:
                batch.append(chain.popleft())
        c.wake_room()
        if len(batch) >= size or (batch and wait <= 0):
            return
        now = c.clock.monotonic()
        if batch and until is None:
            until = now + wait
        if until is not None and now >= until:
            return
        waiter: asyncio.Future[None] = c.loop.create_future()
        c.idle.append(waiter)
        timer = None if until is None else c.clock.call_at(until, partial(_let_go, waiter))
        try:
            await waiter
        finally:
            if timer is not None:
                timer.cancel()


def _ending(c: Consumer) -> bool:
    return c.ending


def _let_go(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _still_ours(c: Consumer, batch: list[Delivery]) -> list[Delivery]:
    """Without what was lost while the batch was gathered."""
    lanes = c.lanes
    if not lanes.moved:
        return batch
    kept: list[Delivery] = []
    gone: list[Delivery] = []
    for delivery in batch:
        current = lanes.current(delivery)
        if current is None:
            lanes.free(delivery)
            gone.append(delivery)
        else:
            kept.append(current)
    stay = {lanes.chain_of(d) for d in kept}
    for key in {lanes.chain_of(d) for d in gone} - stay:
        if key is not None:
            lanes.advance_key(key)
    return kept


async def _handle(c: Consumer, slot: Slot, batch: list[Delivery]) -> None:
    """Hand a batch over, to each handler what is its own, in order; then settle it item by item."""
    lanes = c.lanes
    failed: dict[int, Exception] = {}
    asked: set[int] = set()
    opened: list[tuple[Route, Message[Any]]] = []
    messages: list[Message[Any]] = []
    barred: set[bytes] = set()  # keys of which something failed: what follows waits until that is settled
    for delivery in batch:
        message: Message[Any] = Message(delivery, c.reading, UNSET)
        messages.append(message)
        key = lanes.chain_of(delivery)
        if key is not None and key in barred:
            continue
        try:
            opened.append((_open(c, message, asked), message))
        except Exception as error:  # noqa: BLE001  (its fate is decided item by item)
            failed[id(message)] = error
            if key is not None and not isinstance(error, Skip):
                barred.add(key)
    handled: set[int] = set()
    barred.clear()
    for route, run in _runs(opened):
        good = [m for m in run if not barred or lanes.chain_of(m._received()) not in barred]
        if good:
            slot.started = c.time()
            outcomes = await _call(c, slot, route, good)
            slot.started = NEVER
            handled.update(id(m) for m in good)
            failed.update(outcomes)
            barred.update(k for m in good if id(m) in outcomes and (k := lanes.chain_of(m._received())) is not None)
    await _settle(c, messages, failed, handled, asked)


def _open(c: Consumer, message: Message[Any], asked: set[int]) -> Route:
    delivery = message._received()
    route = c.program.route
    if route is not None and c.program.raw:
        return route
    if (
        route is not None and c.parked is None and not delivery.marked
        and delivery.body is not None and delivery.media == route.media
    ):  # fmt: skip
        message._body = route.decode(delivery.body)
        return route
    route, envelope = open_message(c, message)
    if envelope.reply_to is not None:
        asked.add(id(message))
    return route


def _runs(opened: list[tuple[Route, Message[Any]]]) -> Iterator[tuple[Route, list[Message[Any]]]]:
    """Messages that follow each other and have the same handler."""
    run: list[Message[Any]] = []
    for i, (route, message) in enumerate(opened):
        run.append(message)
        if i + 1 == len(opened) or opened[i + 1][0] is not route:
            yield route, run
            run = []


async def _call(c: Consumer, slot: Slot, route: Route, good: list[Message[Any]]) -> dict[int, Exception]:
    """What failed, by the message's identity; all of it, where the handler raised or returned a wrong number."""
    try:
        outcomes = await route.handle_batch(good)
        if outcomes is None:
            return {}
        if len(outcomes) != len(good):
            raise ValueError(
                f"the batch handler returned {len(outcomes)} outcomes for {len(good)} messages: "
                "return one per message, or None"
            )
        for outcome in outcomes:
            if outcome is not None and not isinstance(outcome, Exception):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TypeError(
                    f"the batch handler returned {type(outcome).__name__} as an outcome: "
                    "return None or an exception for each message"
                )
        return {id(m): outcome for m, outcome in zip(good, outcomes, strict=True) if outcome is not None}
    except BaseException as error:
        slot.started = NEVER
        failure = failure_of(c, slot, error)
        if failure is None:
            raise
        return {id(m): failure for m in good}


async def _settle(
    c: Consumer, messages: list[Message[Any]], failed: dict[int, Exception], handled: set[int], asked: set[int]
) -> None:
    """Item by item, in order; what follows a failed one in its key goes back behind it."""
    lanes = c.lanes
    kept: set[bytes] = set()  # keys whose head is tried again
    waits: set[bytes] = set()  # keys of which something was not handled
    last: dict[bytes, Delivery] = {}
    back: list[Delivery] = []
    for message in messages:
        delivery = message._received()
        key, failure = lanes.chain_of(delivery), failed.get(id(message))
        if key is not None and (key in kept or key in waits or (failure is None and id(message) not in handled)):
            if id(message) in handled and failure is not None and not isinstance(failure, (Drop, Reject, RetryAfter)):
                c.failures[delivery.token] = c.failures.get(delivery.token, 0) + 1
            waits.add(key)
            back.append(delivery)
            continue
        if failure is None:
            c.done(delivery)
            if id(message) in asked:
                await answer(c, message, None, None)
            settled = True
        else:
            settled = await c.fate.conclude(message, failure)
        if key is not None and settled:
            last[key] = delivery
        elif key is not None:
            kept.add(key)
    lanes.follow_first(back)
    for key, delivery in last.items():
        if key not in kept:
            lanes.advance(delivery)
    c.wake_one()
