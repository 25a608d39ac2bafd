"""Bugs in what is left behind, torn or held up."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from switchgear import Bus
from switchgear.driver import Delivery, Outgoing, Revoked, Settlement, Source, Subscription, Transport
from switchgear.errors import TransportError
from switchgear.pull import Consumer

from .bug import Bug
from .patching import patch, restore


class SwallowsCancellation(Bug):
    """A cancelled `send` goes on and returns as if nothing had been."""

    fails = {"19.driver", "19.bus"}

    async def send(self, t: Transport, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0)
        return await t.send(batch, deadline)


class Torn(Bug):
    """What was written of a body when its `send` is cancelled stays."""

    fails = {"19.driver", "19.bus"}

    async def send(self, t: Transport, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            await t.send(
                [msgspec.structs.replace(m, body=m.body and m.body[: len(m.body) // 2]) for m in batch], deadline
            )
            raise
        return await t.send(batch, deadline)


class UnusableAfterCancellation(Bug):
    """A cancelled `send` leaves its connection locked: none after it comes through."""

    fails = {"19.driver", "19.bus"}

    def __init__(self) -> None:
        self.locked = False

    async def send(self, t: Transport, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        if self.locked:
            await asyncio.sleep(3600)
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.locked = True
            raise
        return await t.send(batch, deadline)


class CancelledAnextTakes(Bug):
    """A pull consumer's `anext` may be cancelled after it has taken its message and before it hands it out."""

    fails = {"20.bus"}

    async def connect(self, t: Transport, deadline: float) -> None:
        right: Any = vars(Consumer)["_take"]

        async def take(self: Consumer[object], until: float | None) -> Delivery | None:
            found: Delivery | None = await right(self, until)
            await asyncio.sleep(0)
            return found

        patch(self, Consumer, "_take", take)
        await t.connect(deadline)

    async def close(self, t: Transport) -> None:
        await t.close()
        restore(self, Consumer, "_take")


class TaskLeft(Bug):
    """A broadcast reader that waits while its transport is closed leaves the task that pings its connection."""

    fails = {"22.driver"}

    def __init__(self) -> None:
        self.audience: list[Source] = []
        self.waiting = 0

    async def subscribe(self, t: Transport, subscription: Subscription, revoked: Revoked) -> Source:
        source = await t.subscribe(subscription, revoked)
        if subscription.group is None:
            self.audience.append(source)
        return source

    async def receive(self, s: Source, limit: int, held: Collection[str]) -> Sequence[Delivery]:
        self.waiting += s in self.audience
        try:
            return await s.receive(limit, held)
        finally:
            self.waiting -= s in self.audience

    async def close(self, t: Transport) -> None:
        if self.waiting:
            self.ping = asyncio.create_task(asyncio.sleep(3600))
        await t.close()


class ThreadLeft(Bug):
    """Whoever sends a delayed message starts a thread that outlives `close`."""

    fails = {"22.driver", "22.bus"}

    async def send(self, t: Transport, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        if any(m.due is not None for m in batch):
            threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        return await t.send(batch, deadline)


class FileLeft(Bug):
    """Whoever sends a delayed message opens a file that nobody closes."""

    fails = {"22.driver", "22.bus"}

    async def send(self, t: Transport, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        if any(m.due is not None for m in batch):
            os.open(os.devnull, os.O_RDONLY)
        return await t.send(batch, deadline)


class Blocks(Bug):
    """To settle a hundred deliveries takes 200 ms, in which the loop stands still."""

    fails = {"24.driver", "24.bus"}

    async def settle(self, s: Source, batch: Sequence[Settlement]) -> Sequence[TransportError | None]:
        if len(batch) >= 100:
            time.sleep(0.2)  # noqa: ASYNC251  (the bug)
        return await s.settle(batch)


class AnyLoop(Bug):
    """Nobody looks at the event loop in which a bus is used."""

    fails = {"28.bus"}

    async def connect(self, t: Transport, deadline: float) -> None:
        right = Bus._running  # pyright: ignore[reportPrivateUsage]

        def running(self: Bus) -> object:
            return self._open or right(self)  # pyright: ignore[reportPrivateUsage]

        patch(self, Bus, "_running", running)
        await t.connect(deadline)

    async def close(self, t: Transport) -> None:
        await t.close()
        restore(self, Bus, "_running")
