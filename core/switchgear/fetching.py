"""Taking in what there is room for, no more."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from .driver import Delivery, Settlement, Source, Verdict
from .errors import Unavailable
from .settling import AT

if TYPE_CHECKING:
    from .consumer import Consumer

T = TypeVar("T")

log = logging.getLogger("switchgear.consumer")

FETCH = 500  # the most messages of one receive; the next is asked for while one is handled
PREFETCH_BYTES = 64 << 20
QUICK, SLOW = 0.25, 2.0  # a full receive handled in less: fetch more at once; in more: less
ALIVE = 0.9  # seconds after which a source is called although there is no room


async def fetch(c: Consumer, source: Source) -> None:
    """Receive until the consumer stops. Raises what ends the source."""
    lanes, settings, loop = c.lanes, c.settings, c.loop
    ready, held = lanes.ready, lanes.held
    window, least = settings.window, c.prefetch
    at_most_once = settings.delivery == "at_most_once"
    settler = c.settler
    size, pending, waited = 0, False, False  # bytes of a message on average; whether the last receive was full
    began = called = loop.time()
    while not _closing(c, source):
        full = settler.full(window)
        _tell_full(c, full)
        full |= c.fate.halted
        space = PREFETCH_BYTES - lanes.bytes
        if (full or space <= 0) and settler.due:
            settler.kick(AT)  # what is finished makes room once it is settled: now
        enough = len(ready) >= c.prefetch - c.prefetch // 2
        if not enough and lanes.chains and (ready or not c.idle):  # few keys: what waits behind them is enough, too
            enough = lanes.at_hand() >= c.prefetch
        if enough or space <= 0 or "" in full:
            waited = True
            if not await _made_room(c, called + ALIVE - loop.time()):
                await _receive(c, source, 0, full)
                called = loop.time()
            continue
        if pending and waited:  # the last full receive is mostly handled: how long did it take?
            took = loop.time() - began
            if took < QUICK:
                c.prefetch = max(least, min(4 * FETCH, c.prefetch * 2))
            elif took > SLOW:
                c.prefetch = max(least, c.prefetch // 2)
        limit = min(FETCH, c.prefetch - len(ready))
        if len(held) < window:
            limit = min(limit, window - len(held))
        average = max(size, lanes.bytes // len(held) if held else 0)
        if average:
            limit = max(1, min(limit, space // average))
        batch = await _receive(c, source, limit, full)
        c.revoked.clear()
        began = called = loop.time()
        pending, waited = 2 * len(batch) >= limit, False
        if not batch:
            await asyncio.sleep(0)  # a source that is closed has nothing, at once: let go on who closes it
            continue
        if c.parked is not None and not _closing(c, source):  # before anything of it may be handled
            await _over_outages(c, c.parked.refresh)
        if not _closing(c, source):
            await _over_outages(c, partial(settler.enter, batch))
        if _closing(c, source):
            _give_back(c, batch)
            break
        if at_most_once:
            batch = await _take_for_good(source, batch)
        if c.revoked:
            batch = [delivery for delivery in batch if delivery.lane not in c.revoked]
        batch = settler.admit(batch)
        before = lanes.bytes
        again = lanes.admit(batch)
        if again:
            c.count("duplicate", again)
            log.debug("%s: %d deliveries came again while held", c.program.where, again)
        if len(batch) > again:
            size = (lanes.bytes - before) // (len(batch) - again)
        if lanes.turned:
            c.turn_away()
        if c.fate.halted or c.fate.stuck:
            c.fate.set_aside(batch)
        if ready and c.idle:
            c.wake_one()  # who wakes the next, while there is more
            if not pending:  # no backlog: what came is handled before the next is asked for
                await asyncio.sleep(0)


def _closing(c: Consumer, source: Source) -> bool:
    return c.stopping or source is not c.source


async def _made_room(c: Consumer, within: float) -> bool:
    """Whether something moved; False after `within` seconds, for the source's sake."""
    if within <= 0:
        return False
    room: asyncio.Future[bool] = c.loop.create_future()
    c.room = room
    timer = c.loop.call_later(within, _expire, room)
    try:
        return await room
    finally:
        timer.cancel()
        c.room = None


def _expire(room: asyncio.Future[bool]) -> None:
    if not room.done():
        room.set_result(False)


async def _receive(c: Consumer, source: Source, limit: int, full: Collection[str]) -> Sequence[Delivery]:
    """Receive over interruptions of the connection: the source stays and hands out again what was missed."""

    async def ask() -> Sequence[Delivery]:
        return await source.receive(limit, full)

    return await _over_outages(c, ask) or ()


async def _over_outages(c: Consumer, ask: Callable[[], Awaitable[T]]) -> T | None:
    """Ask until the broker can be reached; None when the consumer stops meanwhile."""
    while True:
        try:
            return await ask()
        except Unavailable as error:
            link = c.host.link
            link.down(error)
            c.become("reconnecting", f"cannot reach the broker: {error}")
            waiting = asyncio.ensure_future(link.wait())
            try:
                while not c.stopping and not waiting.done():
                    await asyncio.wait([waiting], timeout=0.2)
                if not waiting.done():
                    return None
                waiting.result()
            finally:
                waiting.cancel()
            c.become("active")


async def _take_for_good(source: Source, batch: Sequence[Delivery]) -> Sequence[Delivery]:
    """At most once: acknowledge before the handler sees anything; what could not be is left to the broker."""
    outcomes = await source.settle([Settlement(d, Verdict.ACK) for d in batch])
    taken = [d for d, outcome in zip(batch, outcomes, strict=True) if outcome is None]
    for delivery in taken:
        delivery.until = math.inf  # it has no lease any more
    return taken


def _give_back(c: Consumer, batch: Sequence[Delivery]) -> None:
    for delivery in batch:
        if delivery.token not in c.lanes.held:
            c.settler.put(Settlement(delivery, Verdict.RELEASE))


def _tell_full(c: Consumer, full: frozenset[str]) -> None:
    if full == c.full:
        return
    if c.program.raw:  # waiting for its head is what such a topic is for
        c.full = full
        return
    for lane in full - c.full:
        log.warning(
            "%s: %s is paused: %d messages or more wait behind retries or slow handlers (window)",
            c.program.where, f"lane {lane}" if lane else "the subscription", c.settings.window,
        )  # fmt: skip
    if not full:
        log.info("%s: goes on", c.program.where)
    c.full = full
    c.on_change()
