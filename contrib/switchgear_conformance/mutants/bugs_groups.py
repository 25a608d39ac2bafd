"""Bugs in what groups and broadcast subscribers get."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from switchgear.driver import Delivery, Fence, Revoked, Settlement, Source, Subscription, Transport, Verdict
from switchgear.errors import TransportError

from .bug import Bug


class ThirdGroupForgotten(Bug):
    """A topic keeps two groups; a third is let in, and nothing is stored for it."""

    fails = {"29.driver", "29.bus", "44.driver"}

    def __init__(self) -> None:
        self._groups: dict[str, list[str]] = {}

    async def subscribe(self, t: Transport, subscription: Subscription, revoked: Revoked) -> Source:
        for topic in subscription.topics:
            known = self._groups.setdefault(topic, [])
            if subscription.group is not None and subscription.group not in known:
                known.append(subscription.group)
            if subscription.group in known[2:]:
                return await t.subscribe(replace(subscription, topics={f"{topic}.nowhere": None}), revoked)
        return await t.subscribe(subscription, revoked)


class ThreeShareBadly(Bug):
    """Where a group has three members or more, every tenth message of a source goes to another one as well."""

    fails = {"30.driver", "30.bus", "31.driver"}

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


class LeavingSettles(Bug):
    """What a member holds when it leaves counts as settled."""

    fails = {"31.driver", "31.driver.leave", "33.driver.agree", "34.driver.release", "35.driver", "44.driver"}

    async def close_source(self, s: Source) -> None:
        inner: Any = s
        await s.settle([Settlement(d, Verdict.ACK) for d in list(inner.leased.values())])
        await s.close()


class ReleaseSettles(Bug):
    """What is given back with RELEASE counts as settled."""

    fails = {"31.bus", "34.driver.release", "36.driver.release"}

    async def settle(self, s: Source, batch: Sequence[Settlement]) -> Sequence[TransportError | None]:
        return await s.settle(
            [Settlement(b.delivery, Verdict.ACK) if b.verdict is Verdict.RELEASE else b for b in batch]
        )


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

    fails = {"32.driver", "32.driver.retry", "32.bus"}

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
