"""A driver used as the core uses it: connected again after `Unavailable`, subscribed anew after `Lost`."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from contextlib import suppress
from typing import TYPE_CHECKING

from switchgear.driver import Delivery, Order, Outgoing, Transport
from switchgear.errors import Lost, TransportError, Unavailable

from .member import PATIENCE, Member

if TYPE_CHECKING:
    from .context import Context

PAUSE = 0.02  # seconds between tries


def patience(c: Context) -> float:
    """Seconds until what a fault delays must have come: some leases may have to end first."""
    return 5.0 + 3.0 * c.lease


async def reconnect(c: Context, t: Transport, within: float = PATIENCE) -> None:
    """Call `connect` until it succeeds; AssertionError after `within` seconds."""
    ends = c.time() + within
    while True:
        try:
            await t.connect(c.deadline(min(5.0, within)))
            return
        except Unavailable as error:
            assert c.time() < ends, f"connect() did not succeed within {within:g} s: {error}"
            await asyncio.sleep(PAUSE)


async def attempt(c: Context, t: Transport, message: Outgoing, within: float = PATIENCE) -> TransportError | None:
    """Send one message, once; the error is returned, whether it was raised or is the item's outcome."""
    try:
        (outcome,) = await t.send([message], c.deadline(within))
    except TransportError as error:
        return error
    return outcome


async def insist(c: Context, t: Transport, message: Outgoing, within: float = PATIENCE) -> list[TransportError]:
    """Send one message until it is stored. Returns what failed on the way."""
    failures: list[TransportError] = []
    ends = c.time() + within
    while (error := await attempt(c, t, message, max(0.1, ends - c.time()))) is not None:
        failures.append(error)
        assert c.time() < ends, f"not stored within {within:g} s: {error!r}"
        await reconnect(c, t)
        await asyncio.sleep(PAUSE)
    return failures


class Reader:
    """A member that reads and acknowledges through whatever happens to its broker and its connection."""

    def __init__(
        self, c: Context, t: Transport, *topics: str, group: str = "group", order: Order = Order.NONE,
        lease: float | None = None,
    ) -> None:  # fmt: skip
        self._c, self.transport, self._topics = c, t, topics
        self._group, self._order, self._lease = group, order, c.lease if lease is None else lease
        self._member: Member | None = None
        self.read: list[bytes] = []
        """Every body that was handed out, each time."""
        self.settled: set[bytes] = set()
        """Bodies whose acknowledgement was confirmed."""
        self.returned: set[bytes] = set()
        """Bodies that were handed out after that."""

    async def join(self) -> Reader:
        """Be a member, as a new consumer if it was one; it tries again while the broker is away."""
        while self._member is None:
            try:
                self._member = await self._c.join(
                    self.transport, *self._topics, group=self._group, order=self._order, lease=self._lease
                )
            except TransportError:
                await reconnect(self._c, self.transport)
        return self

    async def step(self) -> list[Delivery]:
        """Receive and acknowledge once; nothing where the broker is away."""
        await self.join()
        assert self._member is not None
        try:
            found = await self._member.receive()
            for d in found:
                body = d.body or b""
                self.read.append(body)
                if body in self.settled:
                    self.returned.add(body)
            outcomes = await self._member.outcomes(found)
        except Lost:
            await self.leave()
            return []
        except TransportError:
            await reconnect(self._c, self.transport)
            return []
        if self._member.cumulative:
            outcomes = [next((o for o in outcomes if o), None)] * len(found)  # an error tells of a whole lane
        for d, outcome in zip(found, outcomes, strict=True):
            if outcome is None:
                self.settled.add(d.body or b"")
        return found

    async def until(self, wanted: Collection[bytes | str]) -> None:
        """Read until each of these bodies came; AssertionError names what did not."""
        bodies = {w.encode() if isinstance(w, str) else w for w in wanted}
        ends = self._c.time() + patience(self._c)
        while missing := bodies - set(self.read):
            assert self._c.time() < ends, f"lost: {sorted(missing)[:10]} ({len(missing)} of {len(bodies)})"
            await self.step()

    async def more(self, count: int) -> None:
        """Read until so many more came; AssertionError when they do not."""
        ends, goal = self._c.time() + patience(self._c), len(self.read) + count
        while len(self.read) < goal:
            assert self._c.time() < ends, (
                f"nothing came any more, or too little: {goal - len(self.read)} of {count} miss"
            )
            await self.step()

    async def quiet(self) -> None:
        """Read on for the quiet window; whatever comes is in `read`."""
        ends = self._c.time() + self._c.quiet
        while self._c.time() < ends:
            await self.step()

    async def leave(self) -> None:
        """Close the source."""
        member, self._member = self._member, None
        if member is not None:
            with suppress(TransportError):  # what it held returns after its lease
                await member.close()
