"""What becomes of a message that was not handled: another attempt, a dead letter, nothing."""

from __future__ import annotations

import asyncio
import heapq
import logging
import random
import sys
from collections.abc import Hashable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec import UNSET

from .clock import Timer
from .driver import Delivery, Settlement, Verdict
from .emulate.dead_letters import PARKED, letter
from .emulate.retry_topics import copy
from .errors import CodecError, Refused, SwitchgearError
from .message import Message
from .middleware.retry import backoff
from .names import retry_topic
from .outcomes import Drop, Reject, RetryAfter
from .program import Later, OutputFailed, Skip, Unhandled
from .working import answer

if TYPE_CHECKING:
    from .consumer import Consumer

log = logging.getLogger("switchgear.consumer")

BACKOFF, BACKOFF_CAP = 0.1, 5.0  # seconds between tries to write dead letters
WRITE = 5.0  # seconds for one, and for a copy
REFUSED = 10  # dead letters refused in a row, after which only so many are tried at once
HOLD = 1.0  # seconds: who waits for less is not worth a copy


class Grave(NamedTuple):
    """A message whose dead letter could not be written yet."""

    message: Message[Any]
    reason: str
    attempts: int


class Fate:
    """Of one subscription; what waits for something other than a worker is here."""

    def __init__(self, consumer: Consumer) -> None:
        self._c = consumer
        self.halted: frozenset[str] = frozenset()
        """Lanes that stand still after a dead letter (`after="stop"`)."""
        self.stuck: dict[Hashable, str] = {}
        """By token, the messages whose dead letters stopped their lanes, and what `health` says of each."""
        self.trouble = ""
        """Why dead letters cannot be written; "" while they can."""
        self.refusal = ""
        """Why the broker takes none of some that wait, for reasons of their own; "" while there are none."""
        self._refused = 0
        """Dead letters in a row that were refused."""
        self.graves: dict[Hashable, Grave] = {}
        self._timers: dict[Hashable, Timer] = {}
        self._returning: list[float] = []
        """A heap: when what the broker is to return is due, where it takes only so many at once."""
        self._dug = asyncio.Event()

    async def conclude(self, message: Message[Any], error: Exception) -> bool:
        """Carry out what follows from an error; True when the message is done with, False when it stays and is tried
        again, and nothing of its key may go past it."""
        c = self._c
        where, settings = c.program.where, c.settings
        delivery = message._received()
        if c.outputs is not None:
            c.outputs.drop(delivery)
        if isinstance(error, Later):
            self.hold(delivery, error.seconds)
            return False
        if isinstance(error, (Skip, Drop)):
            event = error.event if isinstance(error, Skip) else "dropped"
            c.count(event, 1)
            log.debug("%s: message %s is not handled: %s", where, message.id, error)
            c.dismiss(delivery)
            await self._answer_failure(message, str(error))
            return True
        once = settings.delivery == "at_most_once"
        if isinstance(error, OutputFailed):
            log.warning(
                "%s: the output of message %s was not stored: %s", where, message.id, error.__cause__,
                extra=self._about(message),
            )  # fmt: skip
            if once:
                c.count("dropped", 1)
                c.dismiss(delivery)
                return True
            self.hold(delivery, c.draw.uniform(0.5, 1.0))
            return False
        if isinstance(error, Reject):
            if error.reason == PARKED and message._body is UNSET:
                if not await self._still_parked(delivery):
                    self.hold(delivery, 0.0)
                    return False
                return await self._bury(message, PARKED, 0)
            never_called = isinstance(error, Unhandled)
            c.count("unhandled" if never_called else "rejected", 1)
            return await self._bury(message, error.reason, 0 if never_called else message.attempt)
        if message._body is UNSET and isinstance(error, c.program.decode_errors):
            c.count("rejected", 1)
            return await self._bury(message, describe(error), 0)
        attempt, policy = message.attempt, settings.retry
        if isinstance(error, RetryAfter):
            delay, worth = error.seconds, True
        else:
            delay, worth = backoff(policy, attempt, c.draw), isinstance(error, policy.on)
        if once or not worth or (policy.attempts is not None and attempt >= policy.attempts):
            log.warning(
                "%s: message %s failed for good (attempt %d): %s", where, message.id, attempt, describe(error),
                extra=self._about(message),
            )  # fmt: skip
            return await self._bury(message, describe(error), attempt)
        c.count("retried", 1)
        log.info(
            "%s: message %s failed (attempt %d), again in %.2f s: %s",
            where, message.id, attempt, delay, describe(error), extra=self._about(message),
        )  # fmt: skip
        return await self._again(message, delay)

    def _about(self, message: Message[Any]) -> dict[str, object]:
        """What a log record of a message has beside its text."""
        return {"topic": self._c.program.topic, "group": self._c.program.group, "message_id": message.id}

    async def _again(self, message: Message[Any], delay: float) -> bool:
        """Another attempt: where nothing is ordered by the broker, or as a copy; else held here, keeping its key."""
        c = self._c
        delivery = message._received()
        lanes, token = c.lanes, delivery.token
        current = lanes.current(delivery)
        if current is not None and lanes.chain_of(delivery) is None:
            if self._by_the_broker(token, delay):
                c.settler.put(Settlement(current, Verdict.RETRY, delay))
                return True
            if (
                c.program.copies and (delay >= HOLD or 2 * len(lanes.delayed) >= c.settings.window)
                and await self._send_back(message, message.attempt + 1, delay, WRITE)
            ):  # fmt: skip
                c.dismiss(delivery)
                return True
            current = lanes.current(delivery)
        if current is None:  # it comes again by itself
            lanes.free(delivery)
            return True
        c.failures[token] = c.failures.get(token, 0) + 1
        c.settler.failed(current)
        self.hold(delivery, delay)
        return False

    def _by_the_broker(self, token: Hashable, delay: float) -> bool:
        """Whether the broker can return it after so many seconds, and will count that."""
        c = self._c
        if c.source is None or c.program.group is None or token in c.failures:
            return False  # what was counted here the broker does not know
        caps = c.source.capabilities
        if caps.retry_delay is None or caps.counting == "none" or delay > caps.retry_delay:
            return False
        if caps.waiting == sys.maxsize:
            return True
        now, waiting = c.time(), self._returning
        while waiting and waiting[0] <= now:
            heapq.heappop(waiting)
        if len(waiting) >= caps.waiting:
            return False
        heapq.heappush(waiting, now + delay)
        return True

    async def _send_back(self, message: Message[Any], attempt: int, delay: float, within: float) -> bool:
        """Store a copy for the group alone, for its next attempt after so many seconds; only then the original may be
        acknowledged, or, exactly once, together with it. False: it must stay here."""
        c = self._c
        assert c.program.returns is not None
        assert c.program.group is not None
        now = c.clock.now()
        try:
            out = copy(
                message, c.reading, c.host.transport.capabilities, topic=c.program.returns,
                attempt=attempt, due=now + delay, now=now,
            )  # fmt: skip
            target = retry_topic(c.program.topic, c.program.group)
            if c.outputs is None:
                await c.host.send_back(out, target, within)
            else:
                c.outputs.put(message._received(), await c.host.place(out, target, within))
        except SwitchgearError as error:
            log.warning(
                "%s: message %s is held, a copy for its next attempt cannot be stored: %s",
                c.program.where, message.id, error, extra=self._about(message),
            )  # fmt: skip
            return False
        return True

    async def give_back(self, until: float) -> None:
        """Before the end: what is held here for another attempt becomes a copy, so that its attempts stay counted."""
        c = self._c
        if not c.program.copies:
            return

        async def one(delivery: Delivery) -> None:
            message: Message[Any] = Message(delivery, c.reading, UNSET)
            if await self._send_back(message, message.attempt, 0.0, max(0.05, until - c.loop.time())):
                c.lanes.delayed.pop(delivery.token, None)
                c.dismiss(delivery)

        held = [d for token, d in c.lanes.delayed.items() if token in c.failures and c.lanes.chain_of(d) is None]
        for delivery in held:
            if (timer := self._timers.pop(delivery.token, None)) is not None:
                timer.cancel()
        await asyncio.gather(*map(one, held))

    def hold(self, delivery: Delivery, delay: float) -> None:
        """Keep it here, with its key, and hand it over again after `delay` seconds."""
        c, token = self._c, delivery.token
        c.lanes.delayed[token] = delivery

        def due() -> None:
            self._timers.pop(token, None)
            held = c.lanes.delayed.pop(token, None)
            if held is None:
                return
            if held.lane in self.halted:
                c.lanes.set_aside((held,))
                return
            c.lanes.ready.append(held)
            c.wake_one()

        self._timers[token] = c.clock.call_at(c.clock.monotonic() + delay, due)

    def forget(self, *, stopped: bool) -> None:
        """Some deliveries were lost: forget what waited for them; `stopped`: also that they stopped their lanes.

        Where the whole source is gone the lanes are, too, but who stopped them stops them again when it comes again.
        """
        lanes = self._c.lanes
        for token in [token for token in self._timers if token not in lanes.delayed]:
            self._timers.pop(token).cancel()
        for token in [token for token in self.graves if token not in lanes.delayed]:
            del self.graves[token]
        if stopped:
            for token in [token for token in self.stuck if token not in lanes.held]:
                del self.stuck[token]
        self.halted = frozenset(lanes.aside[token].lane for token in self.stuck if token in lanes.aside)

    # ---- dead letters ---------------------------------------------------------------------------------------------

    async def _bury(self, message: Message[Any], reason: str, attempts: int) -> bool:
        """Write the dead letter, and only then acknowledge; while that fails the message is held, not its worker."""
        c = self._c
        delivery = message._received()
        if c.settings.dead_letter is None or c.program.group is None:
            log.error("%s: message %s is given up: %s", c.program.where, message.id, reason, extra=self._about(message))
            c.count("dropped", 1)
            await self._answer_failure(message, reason)
            c.dismiss(delivery)
            return True
        grave = Grave(message, reason, attempts)
        if not self.trouble and self._refused < REFUSED and await self._write(grave):
            return await self._buried(grave)
        current = c.lanes.current(delivery)
        if current is None:
            c.lanes.free(delivery)
            return True
        self.graves[delivery.token] = grave
        c.lanes.delayed[delivery.token] = delivery
        self._dug.set()
        return False

    async def _still_parked(self, delivery: Delivery) -> bool:
        """Look again, since rows are read for a whole batch of messages: its key may be free by now."""
        c = self._c
        assert c.parked is not None
        with suppress(SwitchgearError):  # as far as is known, then
            await c.parked.refresh()
        return c.parked.holds(c.lanes.chain_of(delivery), delivery.topic == c.program.returns)

    async def _write(self, grave: Grave) -> bool:
        c, message = self._c, grave.message
        assert c.settings.dead_letter is not None
        caps = c.host.transport.capabilities
        try:
            key = c.lanes.chain_of(message._received())
            if c.settings.dead_letter.after == "park" and key is not None and grave.reason != PARKED:
                assert c.parked is not None
                await c.parked.park(key)
            out = letter(
                message, c.reading, topic=c.program.dead_letters, reason=grave.reason, attempts=grave.attempts,
                binding=caps.binding, limits=caps.headers,
            )  # fmt: skip
            if c.outputs is not None:
                c.outputs.put(message._received(), out)
            else:
                await c.host.emit(out, timeout=WRITE)
            if grave.reason == PARKED and c.parked is not None and key is not None:
                await c.parked.stored(key)
        except SwitchgearError as error:
            log.warning(
                "%s: the dead letter of message %s cannot be written, it is not acknowledged: %s",
                c.program.where, message.id, error, extra=self._about(message),
            )  # fmt: skip
            if isinstance(error, Refused):
                self.refusal = f"the dead-letter topic {c.program.dead_letters} refuses dead letters: {error}"
                self._refused += 1
            else:
                self.trouble = f"the dead-letter topic {c.program.dead_letters} cannot be written: {error}"
            c.on_change()
            return False
        self._refused = 0
        if self.trouble:
            self.trouble = ""
            c.on_change()
        return True

    async def _buried(self, grave: Grave) -> bool:
        """The dead letter is stored."""
        c, message = self._c, grave.message
        assert c.settings.dead_letter is not None
        assert c.program.group is not None
        c.count("dead_lettered", 1)
        c.host.buried(message, c.program.topic, c.program.group)
        if grave.reason != PARKED:
            await self._answer_failure(message, grave.reason)
        delivery = message._received()
        if c.settings.dead_letter.after == "stop" and c.lanes.current(delivery) is not None:
            self._halt(message, grave.reason)
            return False
        c.dismiss(delivery)
        return True

    async def run(self) -> None:
        """Try again to write the dead letters that could not be written, until cancelled."""
        c = self._c
        failures = 0
        while True:
            await self._dug.wait()
            if not self.graves:
                self._dug.clear()
                failures, self.trouble, self.refusal, self._refused = 0, "", "", 0
                c.on_change()
                continue
            await c.clock.sleep(random.uniform(0.5, 1.0) * min(BACKOFF_CAP, BACKOFF * 2 ** min(failures, 6)))
            failures += 1
            refused = 0
            for token, grave in list(self.graves.items()):
                if self.graves.get(token) is not grave:
                    continue
                if not await self._write(grave):
                    if self.trouble:
                        break
                    if self.graves.pop(token, None) is not None:  # refused: the next may be smaller
                        self.graves[token] = grave
                    refused += 1
                    if refused == REFUSED:
                        break
                    continue
                failures = 0
                if self.graves.pop(token, None) is None:
                    continue  # lost meanwhile: it comes again
                delivery = c.lanes.delayed.pop(token)
                if await self._buried(grave):
                    c.lanes.advance(delivery)
                    c.wake_one()

    def _halt(self, message: Message[Any], reason: str) -> None:
        """`after="stop"`: the message stays held, unacknowledged, so that nobody goes past it, until the drain."""
        c = self._c
        delivery = message._received()
        self.stuck[delivery.token] = detail = (
            f"stopped after a dead letter: topic {c.program.topic}, key {message.key!r}, "
            f"position {c.reading.position(message)}: {reason}"
        )
        self.set_aside((delivery,))
        log.error("%s: %s; restart to go on", c.program.where, detail, extra=self._about(message))
        c.on_change()

    def set_aside(self, came: Iterable[Delivery]) -> None:
        """Keep everybody from what waits in stopped lanes, which those do that a stuck message is in."""
        c = self._c
        back = [d for d in came if d.token in self.stuck]
        self.halted |= {d.lane for d in back}
        c.lanes.set_aside([*back, *(d for d in c.lanes.waiting() if d.lane in self.halted)])

    async def _answer_failure(self, message: Message[Any], reason: str) -> None:
        if not message._received().marked or self._c.program.raw:
            return
        try:
            reply_to = message._attributes().reply_to
        except CodecError:
            return
        if reply_to is not None:
            await answer(self._c, message, None, reason)


def describe(error: BaseException) -> str:
    """An error in one line, for logs and dead letters."""
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
