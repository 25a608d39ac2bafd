"""The end of a subscription: all within one deadline, and nothing acknowledged that was not handled."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from .driver import Delivery, Settlement, Settling, Source, Verdict
from .errors import SwitchgearError, TransportError, Unavailable
from .supervision import said

if TYPE_CHECKING:
    from .consumer import Consumer

log = logging.getLogger("switchgear.consumer")

RESERVE = 1.0  # seconds of the deadline, at most, that handlers leave to what follows them
LEAVE = 0.25  # seconds that a cancelled handler, or a thread's caller, has to let go, at least


async def drain(c: Consumer, source: Source) -> None:
    """Let handlers finish until shortly before the deadline, settle what they did, release what none has begun."""
    c.become("draining")
    now = c.loop.time()
    reserve = min(RESERVE, max(0.0, c.stop_at - now) * 0.25)
    await _handlers(c, c.stop_at - reserve)
    await end_workers(c, c.stop_at - reserve * 0.6)
    await c.fate.give_back(c.stop_at - reserve * 0.5)
    _release(c, source)
    await _flush(c)


async def _handlers(c: Consumer, until: float) -> None:
    if not c.ending:  # at most once: what was fetched is acknowledged already
        while (c.lanes.ready or c.running()) and c.loop.time() < until:  # noqa: ASYNC110  (several things end)
            await asyncio.sleep(0.01)
        c.ending = True
        c.wake_idle()
    tasks = [slot.task for slot in c.slots]
    if tasks:
        await asyncio.wait(tasks, timeout=max(0.0, until - c.loop.time()))


async def end_workers(c: Consumer, until: float) -> None:
    """Cancel what still runs and wait for it until then; its messages are given back, unless their threads run on."""
    slots, c.slots = c.slots, []
    tasks = {slot.task for slot in slots}
    late = {task for task in tasks if not task.done()}
    left: set[int] = set()
    if late:
        c.leaving = c.ending = True
        busy = [slot for slot in slots if slot.task in late and slot.current is not None]
        if busy:
            log.warning("%s: %d handlers were still running at the deadline", c.program.where, len(busy))
        for task in late:
            task.cancel()
        _, late = await asyncio.wait(late, timeout=max(LEAVE, until - c.loop.time()))
        if late:
            for slot in slots:
                if slot.task in late:
                    left.update(id(d) for d in (slot.delivery, *slot.batch) if d is not None)
            log.error(
                "%s: %d handlers cannot be cancelled and are left alone: their messages come again",
                c.program.where, len(late),
            )  # fmt: skip
            c.host.abandoned()
            if not c.left.done():
                c.left.set_result(None)
            await asyncio.wait(late, timeout=LEAVE)
            for task in late:
                task.cancel()
            await asyncio.wait(late, timeout=LEAVE)
    for slot in slots:
        if slot.task.done() and not slot.task.cancelled():
            slot.task.exception()  # seen
        for delivery in (slot.delivery, *slot.batch):
            if delivery is not None and id(delivery) not in left and c.source is not None:
                c.release([delivery])


def _release(c: Consumer, source: Source) -> None:
    """Give back what nobody has begun; a retry that was held here keeps that it failed."""
    lanes = c.lanes
    c.release([*lanes.waiting(), *c.gathered, *c.handed.values()])
    c.release([d for token, d in lanes.aside.items() if token not in c.fate.stuck])
    counts = source.capabilities.settling is Settling.INDIVIDUAL and source.capabilities.retry_delay is not None
    for token, delivery in lanes.delayed.items():
        current = lanes.current(delivery)
        if counts and current is not None and token in c.failures:
            c.settler.put(Settlement(current, Verdict.RETRY, 0.0))
        else:
            c.release([delivery])
    for token in c.fate.stuck:  # its dead letter is written: whoever comes next goes on behind it
        stuck: Delivery | None = lanes.aside.get(token)
        if stuck is not None:
            c.dismiss(stuck)
    lanes.ready.clear()
    lanes.chains.clear()
    lanes.delayed.clear()
    lanes.aside.clear()
    c.gathered = []
    c.handed.clear()
    c.fate.forget(stopped=True)


async def _flush(c: Consumer) -> None:
    """The last settlements; an interruption is waited for as long as there is time."""
    until = max(c.stop_at - 0.1, c.loop.time() + LEAVE)
    problem: BaseException
    while True:
        try:
            async with asyncio.timeout_at(until):
                await c.settler.flush()
            return
        except Unavailable as error:
            problem = error
            c.host.link.down(error)
            try:
                async with asyncio.timeout_at(until):
                    await c.host.link.wait()
            except (SwitchgearError, TimeoutError):
                break
        except (TransportError, TimeoutError) as error:
            problem = error
            break
    log.warning("%s: the last acknowledgements failed, messages may come again: %s", c.program.where, said(problem))


async def abandon(c: Consumer, source: Source, tasks: list[asyncio.Task[None]]) -> None:
    """Leave this source. Handlers that run go on: their outcome settles nothing unless their message comes again."""
    c.source = None
    c.settler.stop()
    within = max(LEAVE, min(5.0, c.stop_at - c.loop.time()))
    try:
        async with asyncio.timeout(within):
            await source.close()
    except (TransportError, TimeoutError) as error:
        log.debug("%s: closing the source failed: %s", c.program.where, said(error))
    c.wake_room()
    for task in tasks[1:]:
        task.cancel()
    if tasks:
        _, late = await asyncio.wait(tasks, timeout=max(LEAVE, min(3.0, c.stop_at - c.loop.time())))
        for task in late:  # a receive is not cancelled, closing ends it: this one was not ended
            task.cancel()
        await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled():
                task.exception()  # seen
    c.settler.forget()
    c.lose(list(c.lanes.held), for_good=True)
