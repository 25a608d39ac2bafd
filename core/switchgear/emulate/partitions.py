"""Order where the broker keeps none for groups: a topic is several lanes, a key has its lane, a member leases them.

Until lanes are shared out one by one, a group has one active member per topic; the others stand by.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from switchgear.clock import Clock
from switchgear.driver import Fence, Registry
from switchgear.errors import TransportError

log = logging.getLogger("switchgear.lease")

POLL = 0.4  # seconds between a stand-by's looks at the lease


def murmur2(data: bytes) -> int:
    """Java's murmur2 as Kafka's default partitioner uses it, made positive (org.apache.kafka.common.utils.Utils)."""
    length = len(data)
    m, mask = 0x5BD1E995, 0xFFFFFFFF
    h = (0x9747B28C ^ length) & mask
    whole = length & ~3
    for i in range(0, whole, 4):
        k = int.from_bytes(data[i : i + 4], "little")
        k = (k * m) & mask
        k ^= k >> 24
        k = (k * m) & mask
        h = ((h * m) & mask) ^ k
    rest = data[whole:]
    if rest:
        h ^= int.from_bytes(rest, "little")
        h = (h * m) & mask
    h ^= h >> 13
    h = (h * m) & mask
    h ^= h >> 15
    return h & 0x7FFFFFFF


class Lease:
    """The right of one member to be the active one of a group, kept in a registry row that expires.

    The row's revision is the fence: whoever takes the lease after us has a higher one, and the broker refuses the
    settlements of a lower.
    """

    def __init__(self, registry: Registry, row: str, member: str, ttl: float, clock: Clock) -> None:
        self._registry, self.row, self._member, self._ttl, self._clock = registry, row, member.encode(), ttl, clock
        self._revision: int | None = None
        self.until = 0.0
        """When our right ends unless it is renewed, on the clock; no handler may start after it."""

    async def acquire(self, standby: Callable[[str], None]) -> Fence:
        """Wait until the lease is ours; `standby` is told once with the holder's name. Raises Unavailable."""
        told = False
        while True:
            began = self._clock.monotonic()
            revision = await self._take()
            if revision is not None:
                self.until = began + self._ttl
                return Fence(self.row, revision)
            if not told:
                holder = (await self._registry.read(self.row)).get(self.row)
                if holder is None:
                    continue  # it has just ended
                told = True
                standby(holder.value.decode("utf-8", "replace"))
            await self._clock.sleep(POLL)

    async def _take(self) -> int | None:
        """Write the row if there is none. Cancelled meanwhile, it still learns whether the lease is ours: `release`."""
        writing = asyncio.ensure_future(self._registry.write(self.row, self._member, expect=0, ttl=self._ttl))
        try:
            self._revision = await asyncio.shield(writing)
        except asyncio.CancelledError:
            await asyncio.wait([writing], timeout=1.0)
            if writing.done() and not writing.cancelled() and writing.exception() is None:
                self._revision = writing.result()
            writing.cancel()
            raise
        return self._revision

    async def keep(self, renewed: Callable[[float], None]) -> None:
        """Renew until the lease is lost; then return. `renewed` is told until when it is ours.

        An unreachable broker ends it only by time.
        """
        pause = self._ttl / 3
        while self._revision is not None:
            await self._clock.sleep(min(pause, max(0.0, self.until - self._clock.monotonic())))
            began = self._clock.monotonic()
            if began >= self.until:
                log.warning("lost the lease %s: not renewed in time", self.row)
                break
            try:
                async with asyncio.timeout(max(0.05, min(self._ttl / 3, self.until - began))):
                    revision = await self._registry.write(self.row, self._member, expect=self._revision, ttl=self._ttl)
            except (TransportError, TimeoutError) as error:
                log.debug("the lease %s is not renewed: %s", self.row, str(error) or "no answer")
                pause = min(POLL, self._ttl / 10)
                continue
            pause = self._ttl / 3
            if revision is None:
                log.warning("lost the lease %s to another member", self.row)
                break
            self.until = began + self._ttl
            renewed(self.until)
        self._revision = None
        self.until = 0.0
        renewed(0.0)

    async def release(self) -> None:
        """Give the lease back, so that a stand-by takes over at once. Raises TransportError."""
        revision, self._revision = self._revision, None
        self.until = 0.0
        if revision is not None:
            await self._registry.write(self.row, None, expect=revision, ttl=None)
