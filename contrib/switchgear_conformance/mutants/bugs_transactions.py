"""Bugs in transactions: output without its acknowledgement, or the other way round."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from switchgear.driver import Delivery, Outgoing, Settlement, Source, Transport
from switchgear.errors import Lost, Refused, TransportError
from switchgear.transacting import Transaction
from switchgear.watermark import Cumulative

from .bug import Bug
from .patching import patch, restore

Settled = Sequence[Settlement]
Produced = Sequence[Outgoing]


class OutputWithoutAcks(Bug):
    """A transaction stores what was produced and settles nothing."""

    fails = {"53.bus", "53.bus.keys", "54.driver", "54.driver.closed", "54.driver.fenced"}

    async def commit(self, t: Any, s: Source, settled: Settled, produced: Produced, deadline: float) -> None:
        await t.commit(s, [], produced, deadline)


class AcksWithoutOutput(Bug):
    """A transaction settles and stores nothing of what was produced."""

    fails = {
        "53.bus", "53.bus.keys", "53.bus.log", "54.driver", "54.driver.fenced", "54.driver.refused", "90.bus.broker",
    }  # fmt: skip

    async def commit(self, t: Any, s: Source, settled: Settled, produced: Produced, deadline: float) -> None:
        await t.commit(s, settled, [], deadline)


class StoredFirst(Bug):
    """A transaction stores what was produced, and then settles: what can't be settled is stored all the same."""

    fails = {"54.driver.closed", "54.driver.fenced", "54.driver.refused"}

    async def commit(self, t: Any, s: Source, settled: Settled, produced: Produced, deadline: float) -> None:
        for error in await t.send(produced, deadline):
            if error is not None:
                raise error
        for error in await s.settle(settled):
            if error is not None:
                raise error


class SettledThoughFenced(Bug):
    """A transaction with what is another's by now stores all the same, settles what is left, and says nothing."""

    fails = {"54.driver.closed", "54.driver.fenced"}

    async def commit(self, t: Any, s: Source, settled: Settled, produced: Produced, deadline: float) -> None:
        try:
            await t.commit(s, settled, produced, deadline)
        except Lost:
            await s.settle(settled)
            await t.commit(s, [], produced, deadline)


class HalfOfAFencedTransaction(Bug):
    """Where a part of a transaction is another's by now, the rest is settled and nothing is stored."""

    fails = {"54.driver.fenced"}

    async def commit(self, t: Any, s: Source, settled: Settled, produced: Produced, deadline: float) -> None:
        try:
            await t.commit(s, settled, produced, deadline)
        except Lost:
            await s.settle(settled)
            raise


class RefusedIsLeftOut(Bug):
    """A transaction stores what it can of its output."""

    fails = {"54.driver.refused"}

    async def commit(self, t: Any, s: Source, settled: Settled, produced: Produced, deadline: float) -> None:
        taken = [m for m in produced if len(m.body or b"") <= t.capabilities.body]
        await t.commit(s, settled, taken, deadline)
        if len(taken) < len(produced):
            raise Refused("some of it is too large")


class OutputInReverse(Bug):
    """A transaction stores its output in reverse."""

    fails = {"53.bus.keys", "54.driver"}

    async def commit(self, t: Any, s: Source, settled: Settled, produced: Produced, deadline: float) -> None:
        await t.commit(s, settled, produced[::-1], deadline)


class SettledAWhileBefore(Bug):
    """What is settled by a transaction is on the disk a while before its output is."""

    fails = {"53.bus.crash", "54.driver.crash", "54.driver.refused"}
    over = "sqlite"

    async def commit(self, t: Any, s: Source, settled: Settled, produced: Produced, deadline: float) -> None:
        await t.commit(s, settled, [], deadline)
        await asyncio.sleep(0.05)
        await t.commit(s, [], produced, deadline)


class StoredOnceMore(Bug):
    """In the core: a transaction of which nobody knows whether it was stored is tried again."""

    fails = {"53.bus.log"}

    async def connect(self, t: Transport, deadline: float) -> None:
        patch(self, Transaction, "together", _again)
        await t.connect(deadline)

    async def close(self, t: Transport) -> None:
        restore(self, Transaction, "together")
        await t.close()


async def _again(self: Any, settled: Settled, produced: Produced) -> Sequence[TransportError | None]:
    if not produced:
        outcomes: Sequence[TransportError | None] = await self._source.settle(settled)
        return outcomes
    while True:
        try:
            await self._transport.commit(self._source, settled, produced, self._loop.time() + 5)
        except TransportError as error:
            if isinstance(error, Lost):
                raise
            await asyncio.sleep(0.01)
        else:
            return [None] * len(settled)


class FinishedAheadUntold(Bug):
    """In the core: what is finished ahead is stored though the note has no room to tell of it."""

    fails = {"53.bus.log"}

    async def connect(self, t: Transport, deadline: float) -> None:
        patch(self, Cumulative, "_tellable", _all)
        await t.connect(deadline)

    async def close(self, t: Transport) -> None:
        restore(self, Cumulative, "_tellable")
        await t.close()


def _all(_: Any, done: list[Delivery], quiet: list[Delivery]) -> tuple[list[Delivery], list[Delivery]]:
    return done, quiet
