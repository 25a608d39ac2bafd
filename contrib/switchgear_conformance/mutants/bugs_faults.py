"""Bugs that show when brokers, lines and members fail."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence

from msgspec import structs

from switchgear.driver import Delivery, Outgoing, Revoked, Settlement, Source, Subscription, Transport, Verdict
from switchgear.errors import ConfigurationError, Lost, MaybeSent, Refused, TransportError, Unavailable
from switchgear_conformance.simulated import wire
from switchgear_conformance.simulated.protocol import LENGTH

from .bug import Bug
from .patching import patch, restore

LARGE = 16_384  # bytes
LATER = 0.3  # seconds
STILL = 2.3  # seconds; a receive takes one


class Later:
    """Sends that were answered already, and are made afterwards."""

    def __init__(self) -> None:
        self._batches: list[Sequence[Outgoing]] = []
        self._task: asyncio.Task[None] | None = None

    async def put(self, t: Transport, batch: Sequence[Outgoing]) -> None:
        self._batches.append(batch)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(t))
        await asyncio.sleep(0.002)  # as long as a good answer takes

    async def _run(self, t: Transport) -> None:
        await asyncio.sleep(LATER)
        while self._batches:
            try:
                await t.send(self._batches.pop(0), asyncio.get_running_loop().time() + 10.0)
            except TransportError:
                continue

    async def close(self) -> None:
        if self._task is not None:
            await self._task


def probing(batch: Sequence[Outgoing]) -> bool:
    """The kit's own messages, by which it measures and sees whether a broker is there."""
    return any("probe" in m.topic for m in batch)


class AnsweredEarly(Bug):
    """Sends are answered at once, and made a little later."""

    over = "simulated"
    fails = {
        "60.bus", "61.driver", "61.bus", "62.driver", "63.driver", "63.bus", "65.driver", "65.bus", "67.driver",
        "67.bus", "73.driver", "73.bus", "78.driver", "78.bus",
    }  # fmt: skip

    def __init__(self) -> None:
        self.later = Later()

    async def send(self, t: Transport, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        if probing(batch):
            return await t.send(batch, deadline)
        await self.later.put(t, batch)
        return [None] * len(batch)

    async def close(self, t: Transport) -> None:
        await self.later.close()
        await t.close()


class AnsweredBeforeTheCommit(Bug):
    """What has a key is answered at once, and committed to the file a little later."""

    over = "sqlite"
    fails = {"60.driver", "61.driver"}

    def __init__(self) -> None:
        self.later = Later()

    async def send(self, t: Transport, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        if any(m.key is None for m in batch):
            return await t.send(batch, deadline)
        await self.later.put(t, batch)
        return [None] * len(batch)

    async def close(self, t: Transport) -> None:
        await self.later.close()
        await t.close()


class SilentAfterBreak(Bug):
    """A source whose connection broke or stood still hands out nothing any more, and does not say so."""

    over = "simulated"
    fails = {
        "61.driver", "61.bus", "62.bus", "64.driver", "64.bus", "65.driver", "65.bus", "78.driver", "78.bus",
    }  # fmt: skip

    def __init__(self) -> None:
        self.dead: set[Source] = set()

    async def receive(self, s: Source, limit: int, held: Collection[str]) -> Sequence[Delivery]:
        if s in self.dead:
            await asyncio.sleep(0.1)
            return []
        began = asyncio.get_running_loop().time()
        try:
            found = await s.receive(limit, held)
        except (Lost, Unavailable):
            self.dead.add(s)
            return []
        if asyncio.get_running_loop().time() - began > STILL:
            self.dead.add(s)
        return found


class ConnectsForever(Bug):
    """Connecting has no deadline."""

    over = "simulated"
    fails = {"65.driver.black_hole"}

    async def connect(self, t: Transport, deadline: float) -> None:
        await t.connect(deadline + 30.0)


class NobodyIsWrong(Bug):
    """A broker that is not there yet when a transport connects for the first time counts as a wrong address."""

    over = "simulated"
    fails = {"68.driver", "68.bus"}

    def __init__(self) -> None:
        self.connected = False

    async def connect(self, t: Transport, deadline: float) -> None:
        try:
            await t.connect(deadline)
        except Unavailable as error:
            if not self.connected and isinstance(error.__cause__, ConnectionRefusedError):
                raise ConfigurationError(f"nobody is there: {error}") from error
            raise
        self.connected = True


class LengthInOnePiece(Bug):
    """The length before a frame is read as if its four bytes always came in one segment."""

    over = "simulated"
    fails = {"66.driver", "66.bus"}

    async def connect(self, t: Transport, deadline: float) -> None:
        async def frame(reader: asyncio.StreamReader) -> bytes | None:
            head = await reader.read(LENGTH.size)
            return await reader.readexactly(LENGTH.unpack(head.ljust(LENGTH.size, b"\0"))[0]) if head else None

        patch(self, wire.Wire, "read_frame", staticmethod(frame))
        await t.connect(deadline)

    async def close(self, t: Transport) -> None:
        await t.close()
        restore(self, wire.Wire, "read_frame")


class SentAgainAsAnother(Bug):
    """When the answer to a large message is lost, the driver sends it again, without its token."""

    over = "simulated"
    fails = {"67.driver", "67.bus"}

    async def send(self, t: Transport, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        try:
            return await t.send(batch, deadline)
        except MaybeSent:
            if not any(len(m.body or b"") > LARGE for m in batch):
                raise
            await t.connect(deadline)
            return await t.send([Outgoing(m.topic, m.body, m.media, m.headers, m.key) for m in batch], deadline)


class CertainOfLargeOnes(Bug):
    """When the answer to a large message is lost, it counts as not stored."""

    over = "simulated"
    fails = {"67.driver"}

    async def send(self, t: Transport, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        try:
            return await t.send(batch, deadline)
        except MaybeSent as error:
            if any(len(m.body or b"") > LARGE for m in batch):
                raise Unavailable(str(error)) from error
            raise


class ManySettlementsRefused(Bug):
    """When the connection breaks under the settlement of hundreds, that counts as a refusal."""

    over = "simulated"
    fails = {"67.driver.settle"}

    async def settle(self, s: Source, batch: Sequence[Settlement]) -> Sequence[TransportError | None]:
        try:
            return await s.settle(batch)
        except Unavailable as error:
            if len(batch) >= 200:
                raise Refused(str(error)) from error
            raise


class BatchSettledEarly(Bug):
    """Ten messages or more that come together are acknowledged before they are handed out."""

    over = "simulated"
    fails = {"64.driver.held"}

    async def receive(self, s: Source, limit: int, held: Collection[str]) -> Sequence[Delivery]:
        found = await s.receive(limit, held)
        if len(found) >= 10:
            await s.settle([Settlement(d, Verdict.ACK) for d in found])
        return found

    async def settle(self, s: Source, batch: Sequence[Settlement]) -> Sequence[TransportError | None]:
        return [None if isinstance(o, Lost) else o for o in await s.settle(batch)]


class LeaseToldTooLong(Bug):
    """Ten messages or more that are handed out together are said to be ours for a minute more than they are."""

    over = "sqlite"
    fails = {"72.bus.backlog"}

    async def receive(self, s: Source, limit: int, held: Collection[str]) -> Sequence[Delivery]:
        found = await s.receive(limit, held)
        return found if len(found) < 10 else [structs.replace(d, until=d.until + 60.0) for d in found]


class LostIsSentAgain(Bug):
    """What a member lost before it acknowledged it is published once more."""

    over = "sqlite"
    fails = {"72.driver", "72.driver.process", "72.bus"}

    async def subscribe(self, t: Transport, subscription: Subscription, revoked: Revoked) -> Source:
        self.t = t
        return await t.subscribe(subscription, revoked)

    async def settle(self, s: Source, batch: Sequence[Settlement]) -> Sequence[TransportError | None]:
        outcomes = await s.settle(batch)
        lost = [one.delivery for one, o in zip(batch, outcomes, strict=True) if isinstance(o, Lost)]
        again = [Outgoing(d.topic, d.body, d.media, s.headers(d), d.key, marked=d.marked) for d in lost]
        if again:
            await self.t.send(again, asyncio.get_running_loop().time() + 10.0)
        return outcomes
