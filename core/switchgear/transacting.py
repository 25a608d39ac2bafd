"""Exactly once: what a message led to (`to=`, its dead letter, its next attempt) is stored with its acknowledgement.

What is produced waits in memory, beside the handled message, until the settler's batch leaves; then all of it goes
through `Transactional.commit`. A crash before that repeats the handler, and nothing of its first run is ever seen.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence

from .clock import Clock
from .driver import Delivery, Outgoing, Settlement, Source, Transactional, Verdict
from .errors import Lost, MaybeSent, NotSent, TransportError, Unavailable
from .lanes import Lanes

log = logging.getLogger("switchgear.consumer")

ACK, RELEASE = Verdict.ACK, Verdict.RELEASE
WITHIN = 30.0  # seconds for one transaction
PAUSE = 0.5  # seconds before what was certainly not stored is tried again
UNKNOWN = "it is not known whether the last transaction was stored; what comes again tells"


class Outputs:
    """By token, what is to be stored when the delivery is acknowledged. One per consumer, whatever its sources."""

    def __init__(self) -> None:
        self._waiting: dict[Hashable, Outgoing] = {}

    def put(self, delivery: Delivery, out: Outgoing) -> None:
        """Handling it led to this, and to nothing else."""
        self._waiting[delivery.token] = out

    def of(self, delivery: Delivery) -> Outgoing | None:
        return self._waiting.get(delivery.token)

    def drop(self, delivery: Delivery) -> None:
        """Handling it failed after all, or what it led to is stored, or it is no longer ours."""
        self._waiting.pop(delivery.token, None)

    def drop_all(self, deliveries: Iterable[Delivery]) -> None:
        """`drop` for many."""
        if self._waiting:
            for delivery in deliveries:
                self._waiting.pop(delivery.token, None)

    def arrived(self, batch: Iterable[Delivery], held: Collection[Hashable]) -> None:
        """What a message led to before it was lost to us counts for nothing, now that it is here anew."""
        waiting = self._waiting
        if waiting:
            for delivery in batch:
                if delivery.token not in held:
                    waiting.pop(delivery.token, None)

    def keep(self, held: Collection[Hashable], most: int) -> None:
        """When there are more than `most`, forget those of messages that went elsewhere."""
        if len(self._waiting) > most:
            for token in [token for token in self._waiting if token not in held]:
                del self._waiting[token]


class Transaction:
    """How one source settles and stores in one step.

    After an outcome that nobody knows it refuses all else with Lost: the source has to be left, and what the next one
    is handed out tells what was stored.
    """

    def __init__(
        self, transport: Transactional, source: Source, outputs: Outputs, lanes: Lanes, clock: Clock,
        stored: Callable[[Sequence[Outgoing]], None],
    ) -> None:  # fmt: skip
        """`stored` is told what a transaction stored."""
        self.outputs = outputs
        self._transport, self._source, self._lanes, self._clock, self._stored = transport, source, lanes, clock, stored
        self._loop = asyncio.get_running_loop()
        self._unknown = False

    async def together(
        self, settled: Sequence[Settlement], produced: Sequence[Outgoing]
    ) -> Sequence[TransportError | None]:
        """All or nothing; where nothing was produced, `Source.settle`.

        Raises Unavailable where nothing was done, Lost where nothing was done or nobody knows, Refused.
        """
        if self._unknown:
            raise Lost(UNKNOWN)
        if not produced:
            return await self._source.settle(settled)
        while True:
            try:
                await self._transport.commit(self._source, settled, produced, self._loop.time() + WITHIN)
            except NotSent as error:  # no room; the connection is well
                log.warning("%s; the transaction is tried again", error)
            except (Unavailable, Lost):
                raise
            except MaybeSent as error:
                self._unknown = True
                raise Lost(f"{error}; {UNKNOWN}") from error
            except BaseException:
                self._unknown = True
                raise
            else:
                self._stored(produced)
                return [None] * len(settled)
            await self._clock.sleep(PAUSE)

    async def settle(self, batch: Sequence[Settlement]) -> Sequence[TransportError | None]:
        """`Source.settle` of verdicts on single messages, with what the acknowledged ones led to."""
        outcomes = await self._parts(batch, set())
        for settlement, outcome in zip(batch, outcomes, strict=True):
            if outcome is None:
                self.outputs.drop(settlement.delivery)
        return outcomes

    async def _parts(self, batch: Sequence[Settlement], lost: set[bytes]) -> Sequence[TransportError | None]:
        """Where something of it is no longer ours, its halves one after the other: so the rest counts.

        `lost` are the keys of those: what comes after them in their keys was handled too early and goes back.
        """
        chain_of, outputs = self._lanes.chain_of, self.outputs
        if lost:
            after = [s for s in batch if chain_of(s.delivery) in lost]
            if after:
                await self._source.settle([Settlement(s.delivery, RELEASE) for s in after])
                rest = [s for s in batch if chain_of(s.delivery) not in lost]
                told = iter(await self._parts(rest, lost))
                early = Lost("what it follows in its key is no longer ours")
                return [next(told) if chain_of(s.delivery) not in lost else early for s in batch]
        if not batch:
            return []
        produced = [out for s in batch if s.verdict is ACK and (out := outputs.of(s.delivery)) is not None]
        try:
            return await self.together(batch, produced)
        except Lost as error:
            if self._unknown:
                raise
            if len(batch) == 1:
                key = chain_of(batch[0].delivery)
                if key is not None:
                    lost.add(key)
                return [error]
        half = len(batch) // 2
        first = await self._parts(batch[:half], lost)
        try:
            return [*first, *await self._parts(batch[half:], lost)]
        except Unavailable as error:  # the first half is done all the same
            return [*first, *[error] * (len(batch) - half)]
