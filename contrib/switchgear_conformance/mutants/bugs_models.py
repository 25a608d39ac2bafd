"""Bugs that need a run of steps that nobody would have written down."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence

import msgspec

from switchgear.driver import Delivery, Order, Revoked, Settlement, Source, Subscription, Transport, Verdict
from switchgear.errors import TransportError

from .bug import Bug


class LosesWhatWasExtended(Bug):
    """Where no order is kept, a delivery that is released after its lease was extended is settled for good."""

    fails = {"75.driver"}

    def __init__(self) -> None:
        self._extended: set[tuple[Source, Hashable]] = set()
        self._ordered: set[Source] = set()

    async def subscribe(self, t: Transport, subscription: Subscription, revoked: Revoked) -> Source:
        source = await t.subscribe(subscription, revoked)
        if subscription.order is not Order.NONE:
            self._ordered.add(source)
        return source

    async def settle(self, s: Source, batch: Sequence[Settlement]) -> Sequence[TransportError | None]:
        given = list(batch)
        for i, item in enumerate(given):
            token = s, item.delivery.token
            if item.verdict is Verdict.EXTEND and s not in self._ordered:
                self._extended.add(token)
            elif item.verdict is Verdict.RELEASE and token in self._extended:
                given[i] = msgspec.structs.replace(item, verdict=Verdict.ACK)
        return await s.settle(given)


class FencesEnd(Bug):
    """Where order is kept, the fence of a transport's third source does not rise any more."""

    fails = {"75.driver.ordered", "75.driver.total"}

    def __init__(self) -> None:
        self._sources: list[Source] = []

    async def subscribe(self, t: Transport, subscription: Subscription, revoked: Revoked) -> Source:
        source = await t.subscribe(subscription, revoked)
        if subscription.order is not Order.NONE:
            self._sources.append(source)
        return source

    async def receive(self, s: Source, limit: int, held: Collection[str]) -> Sequence[Delivery]:
        found = await s.receive(limit, held)
        if s in self._sources[2:]:
            return [msgspec.structs.replace(d, fence=min(d.fence, 2)) for d in found]
        return found
