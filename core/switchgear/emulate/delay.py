"""Messages that are due later than the broker can keep them: they wait in delay topics, from hop to hop.

There is one topic for each tier and namespace. A message stays in one for as long as its tier says, and then goes on to
the largest tier that fits into what remains, at last to its target. So each topic is in order of the times at which its
messages go on, and whoever reads it only ever waits for its head. Every serving bus forwards; a message is acknowledged
when its next place has it. It carries its time and its target itself.
"""

from __future__ import annotations

import asyncio
import math
from functools import cached_property
from typing import TYPE_CHECKING, Any

from msgspec import structs

from switchgear import names
from switchgear.config import Settings
from switchgear.consumer import Consumer
from switchgear.driver import Headers, Order, Outgoing, Resource, Settling, Transactional
from switchgear.envelope import (
    Envelope,
    acted_on,
    attribute,
    check_limits,
    due_time,
    is_structured,
    read,
    with_attributes,
)
from switchgear.errors import CodecError, Misuse, Refused, Unsupported
from switchgear.knobs import Batch, DeadLetter, Outcomes, Retry
from switchgear.message import Message
from switchgear.outcomes import Reject
from switchgear.program import Later, Program, Route
from switchgear.reading import Reading

if TYPE_CHECKING:
    from switchgear.core import Core

TIERS = {"6h": 21_600.0, "1h": 3600.0, "15m": 900.0, "3m": 180.0, "30s": 30.0, "5s": 5.0, "1s": 1.0}
"""Seconds by name, the longest first. Names on the broker hold these: they stay as they are."""
READ = frozenset(("id", "expirytime", "sgattempt", "sgdue", "sgtarget"))
"""Attributes that say where a message goes from here, and under which token."""
SHORTEST = 1.0
BATCH = 200  # messages that are forwarded together: few enough that the loop turns in between
CONCURRENCY = 5  # such batches at once: the next are ready when the broker has stored one
WINDOW = 1000  # messages of a topic that wait here for their time
LOG_WINDOW = 3000  # the same on a log, where the head holds up the others: of a second or two, however many are due
LEASE = 6.0  # seconds until another member forwards what a dead one held; Kafka's brokers take no less by default


def tier_for(seconds: float) -> str:
    """The tier in which a message waits that is due in so many seconds."""
    return next((name for name, length in TIERS.items() if length <= seconds), "1s")


def ready_at(due: float, stored: float, tier: str) -> float:
    """When a message of this tier goes on: when its hop is over, or when it is due where no other hop would fit."""
    ready = stored + TIERS[tier]
    return due if due - ready < SHORTEST else ready


class Delays:
    """Of one open bus. Nothing is made on the broker before the first message has to wait."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.consumers: list[Consumer] = []
        self._known = False
        """Whether the broker has what is needed, and others can see that it is in use."""
        self._asking = asyncio.Lock()

    @cached_property
    def _tiers(self) -> dict[str, str]:
        """By physical topic; asked for once the broker has told its rules for names."""
        return {self._core.physical(names.delay_topic(tier)): tier for tier in TIERS}

    @cached_property
    def _topics(self) -> dict[str, str]:
        """The same the other way round."""
        return {tier: topic for topic, tier in self._tiers.items()}

    @property
    def emulated(self) -> bool:
        """Whether a message can have to wait in a delay topic."""
        caps = self._core.transport.capabilities
        return caps.delay < math.inf and caps.groups

    # ---- sending --------------------------------------------------------------------------------------------------

    def placed(self, out: Outgoing, target: str) -> Outgoing:
        """What to send now for a message that is to be in `target` (logical) at `out.due`.

        Itself where the broker keeps it until then, else the same for a delay topic; before, call `ready`. Raises
        Unsupported where there are no groups to forward it.
        """
        core, due = self._core, out.due
        caps = core.transport.capabilities
        if due is None:
            return out
        left = due - core.clock.now()
        if left <= caps.delay:
            return out if left > 0 else structs.replace(out, due=None)
        if not caps.groups:
            raise Unsupported(
                f"publish: {core.scheme}:// delays messages by up to {caps.delay:g} s, not by {left:.0f} s, and has no "
                "groups with which Switchgear could do so"
            )
        own = {"sgdue": due_time(due), "sgtarget": attribute("sgtarget", target)}
        headers = with_attributes(out.headers, caps.binding, own)
        check_limits(headers, caps.headers)
        return structs.replace(
            out, topic=core.physical(names.delay_topic(tier_for(left))), headers=headers, due=None, private=True,
            marked=True, dedup=f"{out.dedup}/{due:.3f}/0",
        )  # fmt: skip

    async def ready(self, deadline: float) -> None:
        """Let there be delay topics and somebody who reads them. Raises TransportError, NotFound where they may not be
        made."""
        if not self._known:
            async with self._asking:
                if not self._known:
                    await self._core.insist(self._prepare, deadline)
                    self._known = True
        if self._core.consumers:
            self.start()

    async def _prepare(self) -> None:
        await self._core.provision(self.resources())
        await self._core.use(names.DELAY_GROUP)

    def resources(self) -> list[Resource]:
        """What the broker needs for it."""
        earliest = "earliest" in self._core.transport.capabilities.starts
        group = self._core.physical(names.DELAY_GROUP)
        topics = [Resource(kind="topic", name=topic, partitions=1, private=True) for topic in self._tiers]
        return topics + [
            Resource(kind="group", name=group, topic=topic, start="earliest" if earliest else "new", private=True)
            for topic in self._tiers
        ]

    # ---- forwarding -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to forward, if that has not begun; also where the broker needs it no longer, for what is left. Where
        waiting for a lane's head holds up no other lane, one subscription reads all tiers."""
        if self.consumers or not self._core.transport.capabilities.groups:
            return
        together = self._core.transport.capabilities.settling is Settling.CUMULATIVE
        for topics in [list(self._tiers)] if together else [[topic] for topic in self._tiers]:
            consumer = Consumer(self._program(topics), self._core)
            self.consumers.append(consumer)
            consumer.start()

    def _program(self, topics: list[str]) -> Program:
        core = self._core
        caps = core.transport.capabilities
        transacts = caps.transactions and isinstance(core.transport, Transactional)
        settings = Settings(
            concurrency=CONCURRENCY, window=LOG_WINDOW if caps.settling is Settling.CUMULATIVE else WINDOW,
            batch=Batch(BATCH), lease=min(LEASE, caps.lease_cap or LEASE),
            start="earliest" if "earliest" in caps.starts else "new", retry=Retry(attempts=None, cap=5.0),
            dead_letter=DeadLetter(), delivery="exactly_once" if transacts else "at_least_once",
        )  # fmt: skip
        name = "sg.delay" if len(topics) > 1 else names.delay_topic(self._tiers[topics[0]])
        route = Route(
            schema=bytes, content_type="application/octet-stream", handle=_never, handle_batch=self._forward
        )  # fmt: skip
        return Program(
            topic=name, group=names.DELAY_GROUP, settings=settings, order=Order.NONE, physical=topics,
            physical_group=core.physical(names.DELAY_GROUP), leased=None,
            dead_letters=core.physical(names.DELAY_LETTERS), routes={None: route}, default_type=name,
            batch=settings.batch, private=True, raw=True,
        )  # fmt: skip

    async def _forward(self, messages: list[Message[Any]]) -> Outcomes:
        """Send on, together, what is ready, and let the others wait."""
        reading, now = messages[0]._reading, self._core.clock.now()
        assert isinstance(reading, Reading)
        outcomes: list[Exception | None] = [None] * len(messages)
        going: list[tuple[int, Outgoing]] = []
        for i, message in enumerate(messages):
            try:
                going.append((i, self._next(message, reading, now)))
            except (Later, Reject) as outcome:
                outcomes[i] = outcome
        if reading.outputs is not None:
            for i, out in going:
                reading.outputs.put(messages[i]._received(), out)
            return outcomes
        for (i, _), error in zip(going, await self._core.emit_all([out for _, out in going]), strict=True):
            outcomes[i] = error
            if isinstance(error, Refused):  # nor would it be taken the next time
                outcomes[i] = rejected = Reject(str(error))
                rejected.__cause__ = error
        return outcomes

    def _next(self, message: Message[Any], reading: Reading, now: float) -> Outgoing:
        """What to send for a message. What it carries is in order whatever the policy was that sent it here.

        Raises Later while it has to wait, Reject where it does not say for what.
        """
        core, delivery = self._core, message._received()
        caps = core.transport.capabilities
        headers = reading.raw_headers(message)
        envelope = _envelope(message, headers, caps.binding)
        due, target = envelope.due, envelope.target
        if due is None or target is None:
            raise Reject("it does not say when it is due and where it is to go (sgdue, sgtarget)")
        tier, stored = self._tiers[delivery.topic], reading.stored(message)
        left = due - now
        wait = left if left < SHORTEST else min(ready_at(due, stored, tier) - now, left)
        if wait > 0 and left > caps.delay:
            raise Later(min(wait, TIERS[tier] + SHORTEST))  # whatever the clock says with which it was stored
        hop = f"{tier}@{stored:.3f}"  # not a count: whoever forwards it once more has to say the same
        dedup = envelope.id or message.id
        private = target.startswith("sg.")
        if private:
            dedup = f"{dedup}/{target}/{envelope.attempt}/{due:.3f}/{hop}"
        if left > caps.delay:
            return Outgoing(
                topic=self._topics[tier_for(left)], body=delivery.body, media=delivery.media, headers=headers,
                key=delivery.key, dedup=f"{dedup}/{due:.3f}/{hop}", expires=envelope.expires, private=True, marked=True,
            )  # fmt: skip
        if not private:  # a copy for one group goes on telling that it is one
            headers = with_attributes(headers, caps.binding, {"sgdue": None, "sgtarget": None})
        return Outgoing(
            topic=core.physical(target), body=delivery.body, media=delivery.media, headers=headers, key=delivery.key,
            dedup=dedup, due=due if left > 0 else None, expires=envelope.expires, private=private,
            marked=acted_on(headers, caps.binding),
        )  # fmt: skip

    # ---- the end --------------------------------------------------------------------------------------------------

    def trouble(self) -> str:
        """Why messages are not forwarded; "" while nothing is wrong."""
        failed = [consumer.failure for consumer in self.consumers if consumer.failure is not None]
        return f"delayed messages are not forwarded here: {failed[0]}" if failed else ""

    async def close(self, deadline: float) -> None:
        """Stop forwarding; what waits stays on the broker."""
        if self.consumers:
            await asyncio.gather(*(consumer.stop(deadline) for consumer in self.consumers))


def _envelope(message: Message[Any], headers: Headers, binding: str) -> Envelope:
    """What of it says where to go; that is all we read, of each message and at each hop. Raises Reject."""
    media = message._received().media
    if media is not None and is_structured(media):
        return message._attributes()
    try:
        return read(headers, binding, READ)
    except CodecError as error:
        raise Reject(f"it does not say when it is due and where it is to go (sgdue, sgtarget): {error}") from error


async def _never(_: Message[Any]) -> object:
    raise Misuse("messages are forwarded together")
