"""A reader without a group: it sees everything and leaves nothing behind."""

# ruff: noqa: ARG002  (the signatures are the contract's)

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from contextlib import suppress
from heapq import heappop, heappush
from itertools import count

from msgspec.structs import replace
from redis.exceptions import ResponseError

from switchgear.driver import Capabilities, Delivery, Fence, Headers, Settlement, Subscription, Verdict
from switchgear.errors import MaybeSent, TransportError, Unavailable

from . import entries
from .source import BLOCK
from .stream import entry_id, entry_time, start_ids
from .tuning import Settings
from .wire import Command, Wire, refusal

RETRY, RELEASE = Verdict.RETRY, Verdict.RELEASE


class BroadcastSource:
    """Plain XREAD from a position that only this process knows; what is to come again waits in this process."""

    def __init__(
        self, wire: Wire, settings: Settings, capabilities: Capabilities, subscription: Subscription,
        left: Callable[[BroadcastSource], object],
    ) -> None:  # fmt: skip
        self.capabilities = replace(capabilities, lease_cap=0.0, fencing=False, ack_durable=False)
        self._wire, self._settings, self._subscription, self._left = wire, settings, subscription, left
        self._line = wire.line()
        self._last: dict[str, str] = {}
        self._turn = 0
        self._time = asyncio.get_running_loop().time
        self._returning: list[tuple[float, int, Delivery]] = []  # by due time
        self._order = count()
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = asyncio.Event()

    async def assign(self, topics: Mapping[str, Fence | None]) -> None:
        """Read these from now on, new ones from the subscription's start."""
        added = [name for name in topics if name not in self._last]
        starts = dict(zip(added, await start_ids(self._wire, added, self._subscription.start), strict=True))
        self._last = {name: self._last.get(name) or starts[name] for name in topics}

    async def receive(self, limit: int, held: Collection[str] = ()) -> Sequence[Delivery]:
        """What is due again, what is new; waits about a second. Raises Unavailable and then goes on where it was."""
        if self._closed.is_set() or limit <= 0 or not self._last:
            await asyncio.sleep(0)  # whoever calls on must not starve the loop
            return []
        now = self._time()
        out: list[Delivery] = []
        while self._returning and self._returning[0][0] <= now and len(out) < limit:
            out.append(heappop(self._returning)[2])
        if out:
            return out
        wait = min(BLOCK, self._returning[0][0] - now) if self._returning else BLOCK
        names = list(self._last)
        if len(names) > 1:
            self._turn = (self._turn + 1) % len(names)
            names = (names[self._turn :] + names[: self._turn])[:limit]
        lasts = [self._last[name] for name in names]
        command = ("XREAD", "COUNT", limit // len(names), "BLOCK", math.ceil(wait * 1000), "STREAMS", *names, *lasts)
        self._idle.clear()
        try:
            return await self._read(command, now + wait + self._settings.tuning.timeout)
        finally:
            self._idle.set()

    async def _read(self, command: Command, deadline: float) -> list[Delivery]:
        out: list[Delivery] = []
        try:
            reply = (await self._line.ask([command], deadline))[0]
        except (Unavailable, MaybeSent) as error:
            if self._closed.is_set():
                return out
            await self._line.close()
            raise Unavailable(str(error)) from error.__cause__
        if isinstance(reply, ResponseError):
            raise refusal(self._wire.address, reply) from reply
        if self._closed.is_set():
            return out
        for raw, found in reply or ():
            name = raw.decode()
            if name not in self._last:
                continue  # taken away meanwhile
            self._last[name] = found[-1][0].decode()
            out += [entries.one(name, "", (name, id), fields, 1, math.inf, 0) for id, fields in found]
        return out

    async def settle(self, batch: Sequence[Settlement]) -> Sequence[TransportError | None]:
        """Nothing is stored; RETRY and RELEASE bring a message back to this reader."""
        seen: set[Hashable] = {delivery.token for _, _, delivery in self._returning}
        for item in batch:
            if item.verdict not in (RETRY, RELEASE) or item.delivery.token in seen:
                continue
            d = item.delivery
            again = entries.one(d.topic, "", d.token, entries.fields(d), d.deliveries, math.inf, 0)
            wait = 0.0
            if item.verdict is RETRY:
                wait, again.deliveries = item.seconds, (d.deliveries or 0) + 1
            heappush(self._returning, (self._time() + wait, next(self._order), again))
            await self._unblock()
        return [None] * len(batch)

    def note(self, lane: str) -> str:
        """Nothing: settling is individual."""
        return ""

    def headers(self, delivery: Delivery) -> Headers:
        """From the packed field, or the fields of a foreign entry."""
        return entries.headers(delivery)

    def position(self, delivery: Delivery) -> str:
        """The entry's id."""
        return entry_id(delivery).decode()

    def time(self, delivery: Delivery) -> float:
        """The entry's id begins with the server's milliseconds."""
        return entry_time(delivery)

    async def _unblock(self) -> None:
        if self._line.id is not None and not self._idle.is_set():
            with suppress(TransportError):
                await self._wire.one("CLIENT", "UNBLOCK", self._line.id)

    async def close(self) -> None:
        """Stop reading."""
        if self._closed.is_set():
            return
        self._closed.set()
        await self._unblock()
        with suppress(TimeoutError):
            async with asyncio.timeout(BLOCK):
                await self._idle.wait()
        await self._line.close()
        self._left(self)
