"""Bugs in the order of keys and topics."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import Any

from msgspec import structs
from msgspec.structs import replace

from switchgear.driver import Delivery, Order, Outgoing, Revoked, Settlement, Source, Subscription, Transport, Verdict
from switchgear.errors import Refused, TransportError

from .bug import Bug

SOON = 10.0  # seconds for a send of the bug's own


class KeysIgnored(Bug):
    """Keys have no order: members share them out message by message."""

    fails = {
        "33.driver",
        "33.driver.agree",
        "33.driver.claim",
        "33.bus",
        "34.driver.delay",
        "75.driver.ordered",
        "82.driver",
        "82.driver.return",
        "82.bus",
        "83.driver",
    }

    async def subscribe(self, t: Transport, subscription: Subscription, revoked: Revoked) -> Source:
        order = Order.NONE if subscription.order is Order.KEY else subscription.order
        return await t.subscribe(replace(subscription, order=order), revoked)


class OneKeyAtATime(Bug):
    """A source that keeps order hands out nothing of a key while it has anything of another in flight."""

    fails = {
        "33.driver.hot",
        "34.bus",
        "41.bus.keys",
        "51.bus.keys",
        "53.bus.keys",
        "81.driver.keys",
        "82.driver",
        "83.bus",
        "83.driver",
    }

    def __init__(self) -> None:
        self._flying: dict[Source, dict[object, bytes]] = {}

    async def subscribe(self, t: Transport, subscription: Subscription, revoked: Revoked) -> Source:
        source = await t.subscribe(subscription, revoked)
        if subscription.order is Order.KEY:
            self._flying[source] = {}
        return source

    async def receive(self, s: Source, limit: int, held: Collection[str]) -> Sequence[Delivery]:
        found = await s.receive(limit, held)
        if s not in self._flying:
            return found
        flying, kept, back = self._flying[s], list[Delivery](), list[Delivery]()
        for d in found:
            if d.key is None:
                kept.append(d)
            elif not flying or d.key in flying.values():
                flying[d.token] = d.key
                kept.append(d)
            else:
                back.append(d)
        if back:
            await s.settle([Settlement(d, Verdict.RELEASE) for d in back])
            await asyncio.sleep(0.01)
        return kept

    async def settle(self, s: Source, batch: Sequence[Settlement]) -> Sequence[TransportError | None]:
        for one in batch:
            if one.verdict is not Verdict.EXTEND:
                self._flying.get(s, {}).pop(one.delivery.token, None)
        return await s.settle(batch)


class KeylessFenced(Bug):
    """With key order, messages without a key are treated as if they had one: they have a fence."""

    fails = {"33.driver.keyless"}

    def __init__(self) -> None:
        self._ordered: set[Source] = set()

    async def subscribe(self, t: Transport, subscription: Subscription, revoked: Revoked) -> Source:
        source = await t.subscribe(subscription, revoked)
        if subscription.order is Order.KEY:
            self._ordered.add(source)
        return source

    async def receive(self, s: Source, limit: int, held: Collection[str]) -> Sequence[Delivery]:
        found = await s.receive(limit, held)
        if s in self._ordered:
            return [structs.replace(d, fence=1) if d.key is None else d for d in found]
        return found


class LastOrderCounts(Bug):
    """The order of a group is what the last member asked for."""

    fails = {"33.driver.agree"}

    async def subscribe(self, t: Any, subscription: Subscription, revoked: Revoked) -> Source:
        try:
            source: Source = await t.subscribe(subscription, revoked)
        except Refused:
            for topic in subscription.topics:
                t._broker.topics[topic].groups[subscription.group].reorder(subscription.order)
            source = await t.subscribe(subscription, revoked)
        return source


class ReturnsAsNew(Bug):
    """Where order is kept, what is given back is stored again, behind all that is there."""

    fails = {
        "34.driver", "34.driver.delay", "34.driver.release", "75.driver.ordered", "75.driver.total", "76.bus",
        "82.driver.return", "87.bus.keys",
    }  # fmt: skip

    def __init__(self) -> None:
        self._ordered: dict[Source, Transport] = {}

    async def subscribe(self, t: Transport, subscription: Subscription, revoked: Revoked) -> Source:
        source = await t.subscribe(subscription, revoked)
        if subscription.order is not Order.NONE:
            self._ordered[source] = t
        return source

    async def settle(self, s: Source, batch: Sequence[Settlement]) -> Sequence[TransportError | None]:
        if s not in self._ordered:
            return await s.settle(batch)
        back = [b for b in batch if b.verdict in (Verdict.RETRY, Verdict.RELEASE)]
        outcomes = await s.settle([Settlement(b.delivery, Verdict.ACK) if b in back else b for b in batch])
        again: list[Outgoing] = []
        for b, outcome in zip(batch, outcomes, strict=True):
            if b in back and outcome is None:
                inner: Any = b.delivery.native
                due = inner.time + b.seconds if b.seconds else None
                again.append(structs.replace(inner.message, due=due))
        await self._ordered[s].send(again, asyncio.get_running_loop().time() + SOON)
        return outcomes


class LinePerKey(Bug):
    """A total order is kept key by key."""

    fails = {"35.driver", "35.bus", "75.driver.total"}

    async def subscribe(self, t: Transport, subscription: Subscription, revoked: Revoked) -> Source:
        order = Order.KEY if subscription.order is Order.TOTAL else subscription.order
        return await t.subscribe(replace(subscription, order=order), revoked)
