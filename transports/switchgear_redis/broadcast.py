"""A reader without a group: it sees everything, settles nothing and leaves nothing behind."""

# ruff: noqa: ARG002  (the signatures are the contract's)

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from redis.exceptions import ResponseError

from switchgear.driver import Capabilities, Delivery, Fence, Headers, Settlement, Subscription, Verdict
from switchgear.errors import MaybeSent, Refused, TransportError, Unavailable

from . import entries
from .source import BLOCK
from .stream import entry_id, entry_time, start_ids
from .tuning import Settings
from .wire import Wire, refusal


class BroadcastSource:
    """Plain XREAD from a position that only this process knows."""

    def __init__(
        self, wire: Wire, settings: Settings, capabilities: Capabilities, subscription: Subscription,
        left: Callable[[BroadcastSource], object],
    ) -> None:  # fmt: skip
        self.capabilities = replace(
            capabilities, retry_delay=None, lease_cap=0.0, fencing=False, counting="none", waiting=0
        )
        self._wire, self._settings, self._subscription, self._left = wire, settings, subscription, left
        self._line = wire.line()
        self._last: dict[str, str] = {}
        self._turn = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = asyncio.Event()

    async def assign(self, topics: Mapping[str, Fence | None]) -> None:
        """Read these from now on, new ones from the subscription's start."""
        added = [name for name in topics if name not in self._last]
        starts = dict(zip(added, await start_ids(self._wire, added, self._subscription.start), strict=True))
        self._last = {name: self._last.get(name) or starts[name] for name in topics}

    async def receive(self, limit: int, held: Collection[str] = ()) -> Sequence[Delivery]:
        """What is new; waits about a second. Raises Unavailable and then goes on where it was."""
        if self._closed.is_set() or limit <= 0 or not self._last:
            return []
        names = list(self._last)
        if len(names) > 1:
            self._turn = (self._turn + 1) % len(names)
            names = (names[self._turn :] + names[: self._turn])[:limit]
        lasts = [self._last[name] for name in names]
        deadline = asyncio.get_running_loop().time() + BLOCK + self._settings.tuning.timeout
        command = (
            "XREAD", "COUNT", limit // len(names), "BLOCK", int(BLOCK * 1000), "STREAMS", *names, *lasts
        )  # fmt: skip
        self._idle.clear()
        try:
            reply = (await self._line.ask([command], deadline))[0]
        except (Unavailable, MaybeSent) as error:
            if self._closed.is_set():
                return []
            await self._line.close()
            raise Unavailable(str(error)) from error.__cause__
        finally:
            self._idle.set()
        if isinstance(reply, ResponseError):
            raise refusal(self._wire.address, reply) from reply
        out: list[Delivery] = []
        if self._closed.is_set():
            return out
        for raw, found in reply or ():
            name = raw.decode()
            self._last[name] = found[-1][0].decode()
            for id, fields in found:
                out.append(entries.one(name, "", (name, id), fields, None, float("inf"), 0))
        return out

    async def settle(self, batch: Sequence[Settlement]) -> Sequence[TransportError | None]:
        """Nothing to do; RETRY is refused, since nothing is kept for this reader."""
        return [
            Refused(f"{self._wire.address}: a broadcast reader of {s.delivery.topic!r} gets nothing twice")
            if s.verdict is Verdict.RETRY
            else None
            for s in batch
        ]

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

    async def close(self) -> None:
        """Stop reading."""
        if self._closed.is_set():
            return
        self._closed.set()
        with suppress(TransportError, TimeoutError):
            if self._line.id is not None and not self._idle.is_set():
                await self._wire.one("CLIENT", "UNBLOCK", self._line.id)
            async with asyncio.timeout(BLOCK):
                await self._idle.wait()
        await self._line.close()
        self._left(self)
