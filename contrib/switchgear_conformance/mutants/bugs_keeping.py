"""Bugs in what is kept while nothing moves, and in how it is counted."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from switchgear.driver import (
    Capabilities,
    Delivery,
    Order,
    Registry,
    Revoked,
    Settlement,
    Source,
    Subscription,
    Transport,
    Verdict,
)
from switchgear.errors import Lost, TransportError
from switchgear.settling import Individual

from .bug import Bug
from .patching import patch, restore


class KeysInOneLine(Bug):
    """Asked for order by key it keeps all of a topic in one line."""

    fails = {"83.driver"}

    async def subscribe(self, t: Transport, subscription: Subscription, revoked: Revoked) -> Source:
        if subscription.order is Order.KEY:
            subscription = replace(subscription, order=Order.TOTAL)
        return await t.subscribe(subscription, revoked)


class WindowForgotten(Bug):
    """It leaves the order to the core, and the core forgets the window of a lane."""

    fails = {"81.driver.lanes", "82.driver.lanes", "82.bus", "83.driver.lanes", "83.bus"}

    def capabilities(self, c: Capabilities) -> Capabilities:
        return replace(c, order=Order.NONE)

    async def connect(self, t: Transport, deadline: float) -> None:
        def full(_: Individual, window: int) -> frozenset[str]:
            return frozenset()

        patch(self, Individual, "full", full)
        await t.connect(deadline)

    async def close(self, t: Transport) -> None:
        await t.close()
        restore(self, Individual, "full")


class ZeroFetchesOne(Bug):
    """`receive(0)` takes a message all the same."""

    fails = {"86.driver"}

    async def receive(self, s: Source, limit: int, held: Collection[str]) -> Sequence[Delivery]:
        return await s.receive(max(limit, 1), held)


class FullIsDead(Bug):
    """A member that asks for nothing sixteen times on end is taken for dead."""

    fails = {"86.driver", "86.bus"}

    def __init__(self) -> None:
        self._silent = 0

    async def receive(self, s: Source, limit: int, held: Collection[str]) -> Sequence[Delivery]:
        self._silent = 0 if limit else self._silent + 1
        if self._silent == 16:
            raise Lost("this member was silent for too long")
        return await s.receive(limit, held)


class ReleaseIsFailure(Bug):
    """A released delivery counts as a failed one."""

    fails = {"88.driver", "88.bus", "88.bus.keys"}

    async def settle(self, s: Source, batch: Sequence[Settlement]) -> Sequence[TransportError | None]:
        for one in batch:
            if one.verdict is Verdict.RELEASE:
                one.verdict, one.seconds = Verdict.RETRY, 0.0
        return await s.settle(batch)


class HandOutsCount(Bug):
    """It says that it counts exactly, and counts every hand-out."""

    fails = {"88.driver", "88.driver.lease", "88.bus", "88.bus.keys", "88.bus.lease"}

    async def connect(self, t: Transport, deadline: float) -> None:
        self._transport = t
        await t.connect(deadline)

    async def receive(self, s: Source, limit: int, held: Collection[str]) -> Sequence[Delivery]:
        assert isinstance(self._transport, Registry)
        found = await s.receive(limit, held)
        for d in found:
            row = f"mutant/{d.topic}/{s.position(d)}"
            rows = await self._transport.read(row)
            d.deliveries = int(rows[row].value) + 1 if row in rows else 1
            await self._transport.write(row, b"%d" % d.deliveries, expect=None, ttl=None)
        return found
