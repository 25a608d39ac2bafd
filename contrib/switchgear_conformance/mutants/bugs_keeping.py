"""Bugs in what is kept while nothing moves, and in how it is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from msgspec.structs import replace

from switchgear.driver import (
    Capabilities,
    Delivery,
    Order,
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
from .bugs_handover import unordered
from .patching import patch, restore


class KeysInOneLine(Bug):
    """Asked for order by key it keeps all of a topic in one line."""

    fails = {"33.driver.claim", "33.driver.keyless", "34.driver.delay", "83.driver"}

    async def subscribe(self, t: Transport, subscription: Subscription, revoked: Revoked) -> Source:
        if subscription.order is Order.KEY:
            subscription = replace(subscription, order=Order.TOTAL)
        return await t.subscribe(subscription, revoked)


class WindowForgotten(Bug):
    """It leaves the order to the core, and the core forgets the window of a lane."""

    fails = {"81.driver.lanes", "82.driver.lanes", "82.bus", "83.driver.lanes", "83.bus"}

    def capabilities(self, c: Capabilities) -> Capabilities:
        return replace(c, order=Order.NONE)

    async def subscribe(self, t: Transport, subscription: Subscription, revoked: Revoked) -> Source:
        return await t.subscribe(unordered(subscription), revoked)

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

    fails = {"57.bus", "57.driver", "58.bus", "58.driver", "86.driver"}

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

    fails = {
        "21.bus.shutdown",
        "26.bus",
        "26.driver",
        "27.bus",
        "36.driver.release",
        "75.driver",
        "75.driver.ordered",
        "75.driver.total",
        "88.bus",
        "88.bus.keys",
        "88.driver",
    }

    async def settle(self, s: Source, batch: Sequence[Settlement]) -> Sequence[TransportError | None]:
        for one in batch:
            if one.verdict is Verdict.RELEASE:
                one.verdict, one.seconds = Verdict.RETRY, 0.0
        return await s.settle(batch)


class HandOutsCount(Bug):
    """It says that it counts exactly, and counts every hand-out."""

    fails = {
        "21.bus.shutdown",
        "26.bus",
        "26.driver",
        "27.bus",
        "31.driver.leave",
        "36.driver.release",
        "40.driver.ended",
        "75.driver",
        "75.driver.ordered",
        "75.driver.total",
        "79.bus",
        "79.bus.ordered",
        "88.bus",
        "88.bus.keys",
        "88.bus.lease",
        "88.driver",
        "88.driver.lease",
        "89.bus",
    }

    async def connect(self, t: Transport, deadline: float) -> None:
        self._transport = t
        await t.connect(deadline)

    async def receive(self, s: Source, limit: int, held: Collection[str]) -> Sequence[Delivery]:
        broker: Any = vars(self._transport)["_broker"]  # memory's own: what all transports of the name share
        if broker is None:
            return []
        counts: Counter[tuple[str, str]] = broker.__dict__.setdefault("handed_out", Counter())
        found = await s.receive(limit, held)
        for d in found:
            counts[d.topic, s.position(d)] += 1
            d.deliveries = counts[d.topic, s.position(d)]
        return found
