"""What the tests do with a source, said briefly."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Sequence

from switchgear.driver import (
    Delivery,
    Order,
    Outgoing,
    Scheduling,
    Settlement,
    Source,
    Start,
    Subscription,
    Transport,
    Verdict,
)
from switchgear.errors import TransportError

ACK, RETRY, EXTEND, RELEASE = Verdict.ACK, Verdict.RETRY, Verdict.EXTEND, Verdict.RELEASE
PATIENCE = 10.0  # seconds until something that must come counts as lost
QUIET = 0.4  # seconds without anything that count as "nothing more comes"


async def revoked(lanes: object, lost: bool) -> None:
    """None of these tests keeps what a revocation would take."""


def out(topic: str, body: bytes | str, key: bytes | str | None = None, **fields: object) -> Outgoing:
    body = body.encode() if isinstance(body, str) else body
    key = key.encode() if isinstance(key, str) else key
    return Outgoing(topic=topic, body=body, key=key, **fields)  # type: ignore[arg-type]


async def send(transport: Transport, *batch: Outgoing) -> Sequence[TransportError | None]:
    outcomes: list[TransportError | None] = []
    size = transport.capabilities.batch
    for begin in range(0, len(batch), size):
        part = batch[begin : begin + size]
        outcomes += await transport.send(part, asyncio.get_running_loop().time() + PATIENCE)
    return outcomes


async def stored(transport: Transport, *batch: Outgoing) -> None:
    assert await send(transport, *batch) == [None] * len(batch)


class Member:
    """A source with the manners of the core: it promotes what is due and is called until it has what is expected."""

    def __init__(self, transport: Transport, source: Source) -> None:
        self.transport, self.source = transport, source
        self._pending: asyncio.Task[Sequence[Delivery]] | None = None

    async def receive(self, limit: int = 100) -> list[Delivery]:
        if isinstance(self.transport, Scheduling):
            await self.transport.promote(1000)
        pending, self._pending = self._pending, None
        return list(await (pending if pending is not None else self.source.receive(limit)))

    async def take(self, count: int, within: float = PATIENCE) -> list[Delivery]:
        """Exactly `count` deliveries."""
        found: list[Delivery] = []
        ends = time.monotonic() + within
        while len(found) < count:
            assert time.monotonic() < ends, f"{len(found)} of {count} came within {within:g} s"
            found += await self.receive(count - len(found))
        return found

    async def one(self, within: float = PATIENCE) -> Delivery:
        (delivery,) = await self.take(1, within)
        return delivery

    async def nothing(self, quiet: float = QUIET) -> None:
        """Nothing comes for a while."""
        ends = time.monotonic() + quiet
        while (left := ends - time.monotonic()) > 0:
            if self._pending is None:
                if isinstance(self.transport, Scheduling):
                    await self.transport.promote(1000)
                self._pending = asyncio.create_task(self._receive_one())
            done, _ = await asyncio.wait([self._pending], timeout=left)  # never cancelled: the next receive awaits it
            if done:
                assert bodies(await self.receive()) == []

    async def _receive_one(self) -> Sequence[Delivery]:
        return await self.source.receive(1)

    async def settle(self, deliveries: Iterable[Delivery], verdict: Verdict = ACK, seconds: float = 0.0) -> None:
        batch = [Settlement(d, verdict, seconds) for d in deliveries]
        assert await self.source.settle(batch) == [None] * len(batch)

    async def drain(self, count: int, within: float = PATIENCE) -> list[Delivery]:
        """Take and acknowledge `count`."""
        found: list[Delivery] = []
        ends = time.monotonic() + within
        while len(found) < count:
            assert time.monotonic() < ends, f"{len(found)} of {count} came within {within:g} s"
            some = await self.receive(count - len(found))
            await self.settle(some)
            found += some
        return found


def bodies(deliveries: Iterable[Delivery]) -> list[bytes | None]:
    return [d.body for d in deliveries]


def each_once(deliveries: Iterable[Delivery], expected: Iterable[bytes]) -> None:
    assert Counter(bodies(deliveries)) == Counter(expected)


async def join(
    transport: Transport,
    *topics: str,
    group: str | None = "group",
    consumer: str = "one",
    start: Start = "new",
    order: Order = Order.NONE,
    lease: float = 30.0,
) -> Member:
    subscription = Subscription(
        topics=dict.fromkeys(topics), group=group, consumer=consumer, start=start, order=order, lease=lease
    )
    return Member(transport, await transport.subscribe(subscription, revoked))
