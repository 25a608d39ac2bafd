"""Order where the broker keeps none for groups: a topic is several lanes, a key has its lane, a member leases them.

Until lanes are shared out one by one, a group has one active member per topic; the others stand by.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from switchgear.clock import Clock
from switchgear.driver import Fence, Registry
from switchgear.errors import Unavailable

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
            revision = await self._registry.write(self.row, self._member, expect=0, ttl=self._ttl)
            if revision is not None:
                self._revision = revision
                self.until = began + self._ttl
                return Fence(self.row, revision)
            if not told:
                told = True
                holder = (await self._registry.read(self.row)).get(self.row)
                standby(holder.value.decode("utf-8", "replace") if holder else "another member")
            await self._clock.sleep(POLL)

    async def keep(self) -> None:
        """Renew until the lease is lost; then return. Never raises for an unreachable broker: time decides."""
        while self._revision is not None:
            await self._clock.sleep(self._ttl / 3)
            began = self._clock.monotonic()
            try:
                async with asyncio.timeout(max(0.05, self.until - began)):
                    renewed = await self._registry.write(self.row, self._member, expect=self._revision, ttl=self._ttl)
            except (Unavailable, TimeoutError) as error:
                if self._clock.monotonic() >= self.until:
                    log.warning("lost the lease %s: %s", self.row, str(error) or "not renewed in time")
                    break
                continue
            if renewed is None:
                log.warning("lost the lease %s to another member", self.row)
                break
            self.until = began + self._ttl
        self._revision = None
        self.until = 0.0

    async def release(self) -> None:
        """Give the lease back, so that a stand-by takes over at once. Raises Unavailable."""
        revision, self._revision = self._revision, None
        self.until = 0.0
        if revision is not None:
            await self._registry.write(self.row, None, expect=revision, ttl=None)
