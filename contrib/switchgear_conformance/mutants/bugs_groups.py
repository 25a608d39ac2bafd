"""Bugs in what groups and broadcast subscribers get."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from switchgear.driver import Delivery, Fence, Revoked, Settlement, Source, Subscription, Transport, Verdict
from switchgear.errors import TransportError

from .bug import Bug


class ThirdGroupForgotten(Bug):
    """Two groups of a topic are served at once; a third is let in, and nothing is stored for it."""

    fails = {"29.driver", "29.bus", "44.driver", "76.driver", "77.driver"}

    def __init__(self) -> None:
        self._open: dict[Source, Subscription] = {}

    async def subscribe(self, t: Transport, subscription: Subscription, revoked: Revoked) -> Source:
        asked = subscription
        for topic in subscription.topics if subscription.group is not None else ():
            groups = {other.group for other in self._open.values() if topic in other.topics} - {None}
            if subscription.group not in groups and len(groups) >= 2:
                subscription = replace(subscription, topics={f"{topic}.nowhere": None})
        source = await t.subscribe(subscription, revoked)
        self._open[source] = asked
        return source

    async def close_source(self, s: Source) -> None:
        self._open.pop(s, None)
        await s.close()


class ThreeShareBadly(Bug):
    """Where a group has three members or more, every tenth message of a source goes to another one as well."""

    fails = {"27.bus", "30.driver", "30.bus", "31.driver", "31.bus"}

    def __init__(self) -> None:
        self._doubled: set[object] = set()

    async def receive(self, s: Source, limit: int, held: Collection[str]) -> Sequence[Delivery]:
        found = await s.receive(limit, held)
        inner: Any = s
        for group in inner._groups.values():
            some = [d for d in found if d.topic == group.topic and isinstance(d.token, int) and d.token % 10 == 0]
            if len(group.members) > 2:
                group.ready.extend(d.native for d in some if d.token not in self._doubled)
                self._doubled.update(d.token for d in some)
        return found


class LeavingLoses(Bug):
    """A member that leaves gives back five messages; what it held beyond them is lost."""

    fails = {
        "15.driver",
        "26.driver",
        "31.driver.leave",
        "34.driver.release",
        "44.driver",
        "53.bus",
        "53.bus.keys",
        "53.bus.log",
        "75.driver",
        "75.driver.ordered",
        "76.driver",
        "94.driver",
    }

    async def close_source(self, s: Source) -> None:
        inner: Any = s
        await s.settle([Settlement(d, Verdict.ACK) for d in list(inner.leased.values())[5:]])
        await s.close()


class AssignAdds(Bug):
    """`assign` adds topics and lets none go."""

    fails = {"31.driver.assign"}

    def __init__(self) -> None:
        self._topics: dict[Source, dict[str, Fence | None]] = {}

    async def subscribe(self, t: Transport, subscription: Subscription, revoked: Revoked) -> Source:
        source = await t.subscribe(subscription, revoked)
        self._topics[source] = dict(subscription.topics)
        return source

    async def assign(self, s: Source, topics: Mapping[str, Fence | None]) -> None:
        self._topics[s].update(topics)
        await s.assign(self._topics[s])


class BroadcastShared(Bug):
    """Subscribers without a group are one group."""

    fails = {"7.driver", "32.driver", "32.driver.retry", "32.bus"}

    async def subscribe(self, t: Transport, subscription: Subscription, revoked: Revoked) -> Source:
        group = subscription.group if subscription.private else subscription.group or "all"
        return await t.subscribe(replace(subscription, group=group), revoked)


class BroadcastRetriesAtOnce(Bug):
    """To a subscriber without a group RETRY returns a message at once."""

    fails = {"32.driver.retry"}

    def __init__(self) -> None:
        self._broadcast: set[Source] = set()

    async def subscribe(self, t: Transport, subscription: Subscription, revoked: Revoked) -> Source:
        source = await t.subscribe(subscription, revoked)
        if subscription.group is None:
            self._broadcast.add(source)
        return source

    async def settle(self, s: Source, batch: Sequence[Settlement]) -> Sequence[TransportError | None]:
        if s in self._broadcast:
            return await s.settle([Settlement(b.delivery, b.verdict) for b in batch])
        return await s.settle(batch)
