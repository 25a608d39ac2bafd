"""Bugs in how things end."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from switchgear import Bus, Drop, Message
from switchgear.consumer import Consumer
from switchgear.driver import Capabilities, Delivery, Outgoing, Revoked, Settlement, Source, Subscription, Transport
from switchgear.errors import TransportError
from switchgear.fate import Fate
from switchgear.publisher import Publisher
from switchgear_conformance.member import ACK, EXTEND, RELEASE, RETRY

from .bug import Bug
from .patching import patch, restore


class CancelledIsDropped(Bug):
    """A handler that was cancelled counts as one that has dropped its message."""

    fails = {"21.bus.within"}

    async def connect(self, t: Transport, deadline: float) -> None:
        right = Fate.conclude

        async def conclude(self: Fate, message: Message[Any], failure: Exception) -> bool:
            if isinstance(failure.__cause__, asyncio.CancelledError):
                failure = Drop("cancelled")
            return await right(self, message, failure)

        patch(self, Fate, "conclude", conclude)
        await t.connect(deadline)

    async def close(self, t: Transport) -> None:
        await t.close()
        restore(self, Fate, "conclude")


class CancelledIsHandled(Bug):
    """What is given back while handlers are being cancelled is acknowledged."""

    fails = {"21.bus.shutdown", "82.bus", "87.bus", "87.bus.keys", "88.bus", "88.bus.keys"}

    async def connect(self, t: Transport, deadline: float) -> None:
        right = Consumer.release

        def release(self: Consumer, deliveries: Iterable[Delivery]) -> None:
            if not self.leaving:
                right(self, deliveries)
                return
            for delivery in deliveries:
                self.dismiss(delivery)

        patch(self, Consumer, "release", release)
        await t.connect(deadline)

    async def close(self, t: Transport) -> None:
        await t.close()
        restore(self, Consumer, "release")


class GraceStretched(Bug):
    """Closing takes 3 seconds more than its grace where handlers need them."""

    fails = {"23.bus"}

    async def connect(self, t: Transport, deadline: float) -> None:
        right = Bus._deadline  # pyright: ignore[reportPrivateUsage]

        def later(self: Bus) -> float:
            return right(self) + 3.0

        patch(self, Bus, "_deadline", later)
        await t.connect(deadline)

    async def close(self, t: Transport) -> None:
        await t.close()
        restore(self, Bus, "_deadline")


class CloseWaits(Bug):
    """`close` waits for an answer to what a group's `receive` has asked for."""

    fails = {"23.driver"}

    def __init__(self) -> None:
        self.members: list[Source] = []
        self.waiting = 0

    async def subscribe(self, t: Transport, subscription: Subscription, revoked: Revoked) -> Source:
        source = await t.subscribe(subscription, revoked)
        if subscription.group is not None:
            self.members.append(source)
        return source

    async def receive(self, s: Source, limit: int, held: Collection[str]) -> Sequence[Delivery]:
        self.waiting += s in self.members
        try:
            return await s.receive(limit, held)
        finally:
            self.waiting -= s in self.members

    async def close(self, t: Transport) -> None:
        if self.waiting:
            await asyncio.sleep(6)
        await t.close()


class CloseDeadlocks(Bug):
    """`close` and a `send` that is under way wait for each other, until one gives up."""

    fails = {"23.driver.busy"}

    def __init__(self) -> None:
        self.sending = 0

    async def send(self, t: Transport, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        self.sending += 1
        try:
            await asyncio.sleep(0)
            return await t.send(batch, deadline)
        finally:
            self.sending -= 1

    async def close(self, t: Transport) -> None:
        if self.sending:
            await asyncio.sleep(6)
        await t.close()


class LostOnClose(Bug):
    """`send` returns before it has stored a batch, and `close` does not wait for it."""

    fails = {"25.driver"}

    def __init__(self) -> None:
        self.storing: set[asyncio.Task[Any]] = set()

    async def send(self, t: Transport, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        if len(batch) < 50 or any(m.due or m.private or m.key or m.headers or not m.body for m in batch):
            return await t.send(batch, deadline)

        async def store() -> None:
            await asyncio.sleep(0)
            await t.send(batch, deadline)

        self.storing.add(asyncio.create_task(store()))
        return [None] * len(batch)

    async def close(self, t: Transport) -> None:
        for task in self.storing:
            task.cancel()
        await asyncio.gather(*self.storing, return_exceptions=True)
        await t.close()


class Unflushed(Bug):
    """Closing a bus gives up at once what waits in its publish buffer."""

    fails = {"25.bus"}

    def capabilities(self, c: Capabilities) -> Capabilities:
        return replace(c, immediate=False, sends=1, batch=10)

    async def send(self, t: Transport, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        await asyncio.sleep(0)
        return await t.send(batch, deadline)

    async def connect(self, t: Transport, deadline: float) -> None:
        right = Publisher.close

        async def close(self: Publisher, deadline: float) -> None:
            await right(self, asyncio.get_running_loop().time())

        patch(self, Publisher, "close", close)
        await t.connect(deadline)

    async def close(self, t: Transport) -> None:
        await t.close()
        restore(self, Publisher, "close")


class ReleaseCounts(Bug):
    """What is given back without having been handled counts as one more attempt."""

    fails = {
        "21.bus.shutdown", "26.driver", "26.bus", "27.bus", "36.driver.release", "75.driver", "75.driver.ordered",
        "75.driver.total", "88.driver", "88.bus", "88.bus.keys",
    }  # fmt: skip

    async def settle(self, s: Source, batch: Sequence[Settlement]) -> Sequence[TransportError | None]:
        return await s.settle([msgspec.structs.replace(i, verdict=RETRY) if i.verdict is RELEASE else i for i in batch])


class MembersOverflow(Bug):
    """A table holds eight members: what later ones give back or leave when they go is lost."""

    fails = {"27.driver", "27.bus", "76.driver"}

    def __init__(self) -> None:
        self.members = 0
        self.late: list[Source] = []
        self.open: dict[tuple[int, object], Delivery] = {}

    async def subscribe(self, t: Transport, subscription: Subscription, revoked: Revoked) -> Source:
        source = await t.subscribe(subscription, revoked)
        self.members += 1
        if self.members > 8:
            self.late.append(source)
        return source

    async def receive(self, s: Source, limit: int, held: Collection[str]) -> Sequence[Delivery]:
        found = await s.receive(limit, held)
        self.open |= {(id(s), d.token): d for d in found}
        return found

    async def settle(self, s: Source, batch: Sequence[Settlement]) -> Sequence[TransportError | None]:
        for item in batch:
            if item.verdict is not EXTEND:
                self.open.pop((id(s), item.delivery.token), None)
            if item.verdict is RELEASE and s in self.late:
                item.verdict = ACK
        return await s.settle(batch)

    async def close_source(self, s: Source) -> None:
        left = [d for (source, _), d in self.open.items() if source == id(s)] if s in self.late else []
        await s.settle([Settlement(d, ACK) for d in left])
        await s.close()
