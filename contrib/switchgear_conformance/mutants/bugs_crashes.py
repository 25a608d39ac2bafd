"""Bugs that show when a process is killed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from msgspec.structs import replace

from switchgear.driver import Outgoing, Revoked, Settlement, Source, Subscription, Transport, Verdict
from switchgear.errors import TransportError

from .bug import Bug

LATE = 2.0  # seconds


class Buffer:
    """Stores what it is given after a while (seconds), in order."""

    def __init__(self, pause: float) -> None:
        self._pause = pause
        self._tasks: set[asyncio.Task[None]] = set()
        self._line = asyncio.Lock()

    def put(self, t: Transport, batch: Sequence[Outgoing]) -> None:
        if batch:
            task = asyncio.get_running_loop().create_task(self._store(t, batch))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _store(self, t: Transport, batch: Sequence[Outgoing]) -> None:
        await asyncio.sleep(self._pause)
        async with self._line:
            await t.send(batch, asyncio.get_running_loop().time() + 10)

    async def flush(self) -> None:
        await asyncio.gather(*self._tasks)


class LeaseForGood(Bug):
    """A lease never ends: what a dead member held is nobody's."""

    over = "sqlite"
    fails = {
        "42.bus.crash",
        "61.driver",
        "69.bus",
        "69.bus.keys",
        "69.driver",
        "72.bus",
        "72.driver",
        "72.driver.process",
    }

    async def subscribe(self, t: Transport, subscription: Subscription, revoked: Revoked) -> Source:
        return await t.subscribe(replace(subscription, lease=3600.0), revoked)


class AckLater(Bug):
    """Acknowledgements are confirmed at once and carried out two seconds later, or at the end."""

    over = "sqlite"
    fails = {"45.driver.lag", "70.bus", "70.driver", "72.driver", "72.driver.process"}

    def __init__(self) -> None:
        self._late: list[Settlement] = []
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def settle(self, s: Source, batch: Sequence[Settlement]) -> Sequence[TransportError | None]:
        if any(one.verdict is not Verdict.ACK for one in batch):
            return await s.settle(batch)
        self._late += batch
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LATE, self._begin, s)
        return [None] * len(batch)

    def _begin(self, s: Source) -> None:
        task = asyncio.get_running_loop().create_task(self._carry_out(s))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry_out(self, s: Source) -> None:
        late, self._late = self._late, []
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if late:
            await s.settle(late)

    async def close_source(self, s: Source) -> None:
        await self._carry_out(s)
        await s.close()


class StoredLater(Bug):
    """`send` returns at once; what it was given is stored a moment later."""

    over = "sqlite"
    fails = {
        "45.driver.lag",
        "45.driver.provision",
        "60.driver",
        "61.driver",
        "71.bus",
        "71.driver",
        "73.bus",
        "73.driver",
    }

    def __init__(self) -> None:
        self._buffer = Buffer(0.1)

    async def send(self, t: Transport, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        self._buffer.put(t, [m for m in batch if not m.private])
        await asyncio.sleep(0.001)
        await t.send([m for m in batch if m.private], deadline)
        return [None] * len(batch)

    async def close(self, t: Transport) -> None:
        await self._buffer.flush()
        await t.close()


class LettersLater(Bug):
    """What is for one group alone (dead letters) is confirmed at once and stored a second later."""

    over = "sqlite"
    fails = {"42.bus.crash"}

    def __init__(self) -> None:
        self._buffer = Buffer(1.0)

    async def send(self, t: Transport, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        private = [m for m in batch if m.private]
        if len(private) < len(batch):
            return await t.send(batch, deadline)
        self._buffer.put(t, private)
        return [None] * len(batch)

    async def close(self, t: Transport) -> None:
        await self._buffer.flush()
        await t.close()
