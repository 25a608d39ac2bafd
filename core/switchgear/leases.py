"""Time, looked at in one pass a tick for all that is held: leases are extended, handlers that overrun cancelled."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from .driver import Delivery, Settlement, Settling, Source, Trimming, Verdict
from .errors import Lost, Refused, Unavailable

if TYPE_CHECKING:
    from .consumer import Consumer

log = logging.getLogger("switchgear.consumer")


async def ticks(c: Consumer, source: Source) -> None:
    """Until cancelled. Raises what a source may raise that can't go on."""
    lease = c.settings.lease
    caps = source.capabilities
    leases = caps.settling is Settling.INDIVIDUAL and caps.lease_cap > 0 and c.settings.delivery != "at_most_once"
    known = 0
    while True:
        await c.clock.sleep(min(0.5, lease / 4))
        if isinstance(source, Trimming):
            known = _tell_trimmed(c, source, known)
        if leases:
            _give_up_handed(c)
            due = _due(c, c.clock.monotonic() + lease / 2)
            if due:
                await _extend(c, source, due, lease)
        _cancel_overruns(c)
        if c.outputs is not None:
            c.outputs.keep(c.lanes.held, c.settings.window)
        if len(c.failures) > c.settings.window:  # of messages that went elsewhere
            held = c.lanes.held
            for token in [token for token in c.failures if token not in held]:
                del c.failures[token]


def _tell_trimmed(c: Consumer, source: Trimming, known: int) -> int:
    trimmed = sum(source.trimmed.values())
    if trimmed > known:
        c.count("trimmed", trimmed - known)
        log.warning("%s: %d messages were trimmed before they were handled: lost", c.program.where, trimmed - known)
    return trimmed


def _due(c: Consumer, before: float) -> list[Delivery]:
    due: list[Delivery] = []
    for delivery in c.lanes.held.values():
        if delivery.until > before:
            break
        due.append(delivery)
    return due


async def _extend(c: Consumer, source: Source, due: list[Delivery], lease: float) -> None:
    held = c.lanes.held
    now = c.clock.monotonic()
    try:
        outcomes = await source.settle([Settlement(d, Verdict.EXTEND, lease) for d in due])
    except Unavailable as error:
        c.host.link.down(error)
        return
    lost: list[Delivery] = []
    for delivery, outcome in zip(due, outcomes, strict=True):
        token = delivery.token
        if held.get(token) is not delivery:
            continue  # settled, or replaced, meanwhile
        if outcome is None:
            delivery.until = now + lease
            del held[token]
            held[token] = delivery  # to the end: leases stay in order
        elif isinstance(outcome, (Lost, Refused)) and c.lanes.moved.get(token, delivery) is not None:
            lost.append(delivery)
    if lost:
        c.count("lease_lost", len(lost))
        log.warning("%s: lost the lease of %d messages", c.program.where, len(lost))
        c.lose([d.token for d in lost])
        c.wake_room()


def _cancel_overruns(c: Consumer) -> None:
    now, most = c.time(), c.settings.max_handling
    for slot in c.slots:
        current = slot.current
        if slot.overran is not None and slot.overran is not current:  # it returned after all
            slot.overran = None
            while slot.task.cancelling():
                slot.task.uncancel()
        if current is not None and now - slot.started > most and slot.overran is None:
            slot.overran = current
            c.count("overrun", 1)
            log.warning("%s: a handler overran max_handling and is cancelled", c.program.where)
            slot.task.cancel()


def _give_up_handed(c: Consumer) -> None:
    """Pull style: what the program has kept too long goes back to the group, a failed attempt."""
    now, most = c.time(), c.settings.max_handling
    late = [token for token, since in c.handed_at.items() if now - since > most]
    for token in late:
        del c.handed_at[token]
        delivery = c.handed.pop(token, None)
        current = c.lanes.current(delivery) if delivery is not None else None
        if delivery is None:
            continue
        c.count("overrun", 1)
        log.warning("%s: a pulled message was not settled within max_handling and goes back", c.program.where)
        if current is None:
            c.lanes.free(delivery)
        else:
            c.settler.put(Settlement(current, Verdict.RETRY))
