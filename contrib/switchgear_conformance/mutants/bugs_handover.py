"""Bugs in what changes hands."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress

from msgspec.structs import replace

from switchgear.driver import (
    Capabilities,
    Delivery,
    Fence,
    Order,
    Outgoing,
    Registry,
    Revoked,
    Settlement,
    Source,
    Subscription,
    Transport,
    Verdict,
)
from switchgear.errors import Lost, Refused, TransportError

from .bug import Bug


def unordered(subscription: Subscription) -> Subscription:
    """What a transport that keeps no order lets in."""
    if subscription.order is not Order.NONE:
        raise Refused(f"order {subscription.order.name.lower()} is not kept here")
    return subscription


class ExtendsWhatIsLost(Bug):
    """EXTEND says that all is well, also of what another member has."""

    fails = {"75.driver", "75.driver.ordered", "81.driver", "81.driver.keys"}

    async def settle(self, s: Source, batch: Sequence[Settlement]) -> Sequence[TransportError | None]:
        outcomes = await s.settle(batch)
        extended = [one.verdict is Verdict.EXTEND for one in batch]
        return [None if e and isinstance(o, Lost) else o for e, o in zip(extended, outcomes, strict=True)]


class FenceStandsStill(Bug):
    """The fence is there, and the same for whoever holds a key."""

    fails = {"35.driver", "75.driver.ordered", "75.driver.total", "82.bus", "82.driver"}

    async def receive(self, s: Source, limit: int, held: Collection[str]) -> Sequence[Delivery]:
        found = await s.receive(limit, held)
        for d in found:
            d.fence = min(d.fence, 1)
        return found


class ReleasedToTheEnd(Bug):
    """What is given back is put at the end of its topic."""

    fails = {
        "22.bus",
        "34.driver.release",
        "75.driver.ordered",
        "75.driver.total",
        "76.bus",
        "77.bus",
        "82.driver.return",
        "87.bus.keys",
    }

    async def connect(self, t: Transport, deadline: float) -> None:
        self._transport = t
        await t.connect(deadline)

    async def settle(self, s: Source, batch: Sequence[Settlement]) -> Sequence[TransportError | None]:
        released = [one.verdict is Verdict.RELEASE for one in batch]
        batch = [Settlement(one.delivery, Verdict.ACK) if r else one for one, r in zip(batch, released, strict=True)]
        outcomes = await s.settle(batch)
        for one, r, outcome in zip(batch, released, outcomes, strict=True):
            if r and outcome is None:
                d = one.delivery
                again = Outgoing(d.topic, d.body, d.media, s.headers(d), d.key, marked=d.marked)
                await self._transport.send([again], math.inf)
        return outcomes


class LeasesUnread(Bug):
    """It leaves the order to the core's leases, looks at no revision, and gives up no leased topic."""

    fails = {"81.driver.lanes", "82.driver.lanes", "83.driver.lanes", "87.driver.lanes", "82.bus"}

    def capabilities(self, c: Capabilities) -> Capabilities:
        return replace(c, order=Order.NONE)

    async def subscribe(self, t: Transport, subscription: Subscription, revoked: Revoked) -> Source:
        return await t.subscribe(unordered(subscription), revoked)

    async def assign(self, s: Source, topics: Mapping[str, Fence | None]) -> None:
        if all(topics.values()):
            return
        await s.assign(topics)


class JoiningSkips(Bug):
    """A member that joins others before anything was acknowledged begins behind what waits for them."""

    fails = {
        "27.bus",
        "27.driver",
        "31.bus",
        "44.driver.seek",
        "57.driver",
        "75.bus",
        "75.driver",
        "75.driver.ordered",
        "75.driver.total",
        "76.driver",
        "77.driver",
        "86.bus",
        "87.bus",
        "87.driver",
    }

    def __init__(self) -> None:
        self._row, self._settled = "mutant", False

    async def connect(self, t: Transport, deadline: float) -> None:
        self._transport = t
        await t.connect(deadline)

    async def subscribe(self, t: Transport, subscription: Subscription, revoked: Revoked) -> Source:
        source = await t.subscribe(subscription, revoked)
        assert isinstance(t, Registry)
        if subscription.group is not None:
            self._row = f"mutant/{subscription.group}/{min(subscription.topics)}"
            if set(await t.read(self._row)) == {self._row}:
                await source.settle([Settlement(d, Verdict.ACK) for d in await source.receive(1000)])
            await t.write(self._row, b"joined", expect=None, ttl=None)
        return source

    async def settle(self, s: Source, batch: Sequence[Settlement]) -> Sequence[TransportError | None]:
        assert isinstance(self._transport, Registry)
        if not self._settled and any(one.verdict is Verdict.ACK for one in batch):
            self._settled = True
            await self._transport.write(f"{self._row}/settled", b"", expect=None, ttl=None)
        return await s.settle(batch)

    async def close_source(self, s: Source) -> None:
        assert isinstance(self._transport, Registry)
        with suppress(TransportError):
            await self._transport.write(self._row, None, expect=None, ttl=None)
        await s.close()
