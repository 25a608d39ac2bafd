"""Bugs in what is handed to those who have no room."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence

from switchgear.driver import Delivery, Revoked, Settlement, Source, Subscription, Transport, Verdict
from switchgear.errors import TransportError

from .bug import Bug


class ZeroIsNoLimit(Bug):
    """`receive` with a limit of 0 hands out what there is."""

    fails = {"57.driver", "57.bus", "58.driver", "58.bus", "86.driver"}

    async def receive(self, s: Source, limit: int, held: Collection[str]) -> Sequence[Delivery]:
        return await s.receive(limit or 100, held)


class Unsettled:
    """What each source has handed out and not been told the end of."""

    def __init__(self) -> None:
        self._tokens: dict[Source, set[object]] = {}

    def took(self, s: Source, found: Sequence[Delivery]) -> None:
        self._tokens.setdefault(s, set()).update(d.token for d in found)

    def settled(self, s: Source, batch: Sequence[Settlement]) -> None:
        ended = (item.delivery.token for item in batch if item.verdict is not Verdict.EXTEND)
        self._tokens.setdefault(s, set()).difference_update(ended)

    def left(self, s: Source) -> None:
        self._tokens.pop(s, None)

    def __getitem__(self, s: Source) -> int:
        return len(self._tokens.get(s, ()))


class Wedged(Bug):
    """A source that holds a dozen deliveries and has no room for more is never woken again."""

    fails = {"57.bus", "58.driver", "58.bus"}

    def __init__(self) -> None:
        self.unsettled = Unsettled()
        self.wedged: set[Source] = set()

    async def receive(self, s: Source, limit: int, held: Collection[str]) -> Sequence[Delivery]:
        if not limit and self.unsettled[s] >= 12:
            self.wedged.add(s)
        if limit and s in self.wedged:
            await asyncio.sleep(1)
            return []
        found = await s.receive(limit, held)
        self.unsettled.took(s, found)
        return found

    async def settle(self, s: Source, batch: Sequence[Settlement]) -> Sequence[TransportError | None]:
        self.unsettled.settled(s, batch)
        return await s.settle(batch)


class GroupsShareRoom(Bug):
    """While one group has not settled fifteen of its deliveries, the others are handed nothing."""

    fails = {"59.driver", "59.bus"}

    def __init__(self) -> None:
        self.unsettled = Unsettled()
        self.groups: dict[Source, str | None] = {}

    async def subscribe(self, t: Transport, subscription: Subscription, revoked: Revoked) -> Source:
        source = await t.subscribe(subscription, revoked)
        self.groups[source] = subscription.group
        return source

    async def receive(self, s: Source, limit: int, held: Collection[str]) -> Sequence[Delivery]:
        mine = self.groups[s]
        if limit and any(group != mine and self.unsettled[other] >= 15 for other, group in self.groups.items()):
            await asyncio.sleep(0.5)
            return []
        found = await s.receive(limit, held)
        self.unsettled.took(s, found)
        return found

    async def settle(self, s: Source, batch: Sequence[Settlement]) -> Sequence[TransportError | None]:
        self.unsettled.settled(s, batch)
        return await s.settle(batch)

    async def close_source(self, s: Source) -> None:
        self.unsettled.left(s)
        await s.close()
