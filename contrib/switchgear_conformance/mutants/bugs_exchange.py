"""Bugs in requests, plans, and what tells one delivery from another."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from msgspec import structs
from msgspec.structs import replace

from switchgear.driver import (
    Capabilities,
    Delivery,
    Headers,
    Order,
    Outgoing,
    Revoked,
    Row,
    Settlement,
    Source,
    Subscription,
    Transport,
)
from switchgear.errors import TransportError
from switchgear.replies import Replies

from .bug import Bug
from .bugs_handover import unordered
from .patching import patch, restore


class AnswersMixedUp(Bug):
    """An answer is stored with the reference of the one before it."""

    fails = {"56.bus", "56.bus.failure", "56.bus.timeout"}

    def __init__(self) -> None:
        self._last: tuple[str, bytes] | None = None

    async def send(self, t: Transport, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        return await t.send([self._mixed(m) for m in batch], deadline)

    def _mixed(self, m: Outgoing) -> Outgoing:
        mine = next((h for h in m.headers if h[0].endswith("causationid")), None)
        if not m.private or mine is None:
            return m
        last, self._last = self._last or mine, mine
        return structs.replace(m, headers=[last if h is mine else h for h in m.headers])


class TextIsNotPrivate(Bug):
    """What is for one group alone is dropped where it is text: so the reason of a rejected request."""

    fails = {"56.bus.failure"}

    async def send(self, t: Transport, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        kept = [m for m in batch if not m.private or m.media != b"text/plain"]
        return await t.send(kept, deadline) if len(kept) == len(batch) else [None] * len(batch)


class RequestsWait(Bug):
    """The core waits for answers five seconds longer than `timeout` says."""

    fails = {"56.bus.timeout"}

    async def connect(self, t: Transport, deadline: float) -> None:
        right = Replies.wait

        async def wait(self: Replies, id_: str, schema: Any, deadline: float, timeout: float, topic: str) -> Any:
            return await right(self, id_, schema, deadline + 5, timeout, topic)

        patch(self, Replies, "wait", wait)
        await t.connect(deadline)

    async def close(self, t: Transport) -> None:
        await t.close()
        restore(self, Replies, "wait")


class RowsOfOneConnection(Bug):
    """Registry rows are seen only by the connection that wrote them."""

    fails = {
        "42.bus.park",
        "92.bus",
        "92.bus.race",
        "92.driver.expiry",
        "92.driver.registry",
        "90.bus.broker",
        "90.bus.copy",
        "90.bus.order",
    }

    def _mine(self, name: str) -> str:
        return f"{id(self)}/{name}"

    async def read(self, t: Any, prefix: str) -> Mapping[str, Row]:
        rows: Mapping[str, Row] = await t.read(self._mine(prefix))
        return {name.partition("/")[2]: row for name, row in rows.items()}

    async def write(self, t: Any, name: str, value: bytes | None, expect: int | None, ttl: float | None) -> int | None:
        revision: int | None = await t.write(self._mine(name), value, expect=expect, ttl=ttl)
        return revision


class FirstIsNotAlone(Bug):
    """A row that must not be there yet is written over; reading takes its time, so that several find none."""

    fails = {"92.bus.race", "92.driver.registry"}

    async def read(self, t: Any, prefix: str) -> Mapping[str, Row]:
        rows = await super().read(t, prefix)
        await asyncio.sleep(0.01)
        return rows

    async def write(self, t: Any, name: str, value: bytes | None, expect: int | None, ttl: float | None) -> int | None:
        return await super().write(t, name, value, expect or None, ttl)


class TokensPerTopic(Bug):
    """The token of a delivery is its number in its topic, and the core has to make partitions."""

    fails = {
        "4.bus.keys",
        "15.driver",
        "33.bus",
        "34.bus",
        "41.bus.keys",
        "51.bus.keys",
        "53.bus",
        "53.bus.keys",
        "53.bus.log",
        "81.driver.lanes",
        "82.bus",
        "82.driver.lanes",
        "83.bus",
        "83.driver.lanes",
        "87.bus.keys",
        "88.bus.keys",
        "90.bus.order",
        "94.bus",
        "94.driver",
    }

    def __init__(self) -> None:
        self._right: dict[tuple[str, int], Delivery] = {}
        self._numbers: dict[tuple[str, object], int] = {}
        self._last: Counter[str] = Counter()

    def capabilities(self, c: Capabilities) -> Capabilities:
        return replace(c, order=Order.NONE)

    async def subscribe(self, t: Transport, subscription: Subscription, revoked: Revoked) -> Source:
        return await t.subscribe(unordered(subscription), revoked)

    async def receive(self, s: Source, limit: int, held: Collection[str]) -> Sequence[Delivery]:
        return [self._wrong(d) for d in await s.receive(limit, held)]

    def _wrong(self, d: Delivery) -> Delivery:
        number = self._numbers.get((d.topic, d.token))
        if number is None:
            self._last[d.topic] += 1
            number = self._numbers[d.topic, d.token] = self._last[d.topic]
        self._right[d.topic, number] = d
        return structs.replace(d, token=number)

    def _back(self, d: Delivery) -> Delivery:
        assert isinstance(d.token, int)
        return self._right[d.topic, d.token]

    async def settle(self, s: Source, batch: Sequence[Settlement]) -> Sequence[TransportError | None]:
        return await s.settle([structs.replace(one, delivery=self._back(one.delivery)) for one in batch])

    async def commit(
        self, t: Any, s: Source, settled: Sequence[Settlement], produced: Sequence[Outgoing], deadline: float
    ) -> None:
        right = [structs.replace(one, delivery=self._back(one.delivery)) for one in settled]
        await t.commit(s, right, produced, deadline)

    def headers(self, s: Source, d: Delivery) -> Headers:
        return s.headers(self._back(d))
