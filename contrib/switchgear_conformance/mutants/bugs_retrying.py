"""Bugs in what is given back, and in leases."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from msgspec import structs
from msgspec.structs import replace

from switchgear.driver import Delivery, Revoked, Settlement, Source, Subscription, Transport, Verdict
from switchgear.errors import TransportError

from .bug import Bug


class RetryLosesHeaders(Bug):
    """What is handed out again has lost the headers that are not CloudEvents attributes."""

    fails = {"15.driver", "36.driver", "42.bus"}

    def headers(self, s: Source, d: Delivery) -> list[tuple[str, bytes]]:
        return [h for h in s.headers(d) if d.deliveries == 1 or h[0].startswith("ce-")]


class RedriveLimit(Bug):
    """The broker has a limit of its own: what was given back three times is gone."""

    fails = {"37.driver", "37.bus", "41.driver", "41.bus", "75.bus"}

    async def settle(self, s: Source, batch: Sequence[Settlement]) -> Sequence[TransportError | None]:
        return await s.settle([
            Settlement(b.delivery, Verdict.ACK) if b.verdict is Verdict.RETRY and b.delivery.deliveries == 3 else b
            for b in batch
        ])  # fmt: skip


class RetryAtOnce(Bug):
    """The first RETRY of a message does not wait."""

    fails = {"32.driver.retry", "34.driver.delay", "38.driver", "38.bus", "41.driver", "41.bus", "90.bus"}

    async def settle(self, s: Source, batch: Sequence[Settlement]) -> Sequence[TransportError | None]:
        return await s.settle([
            Settlement(b.delivery, Verdict.RETRY) if b.verdict is Verdict.RETRY and b.delivery.deliveries == 1 else b
            for b in batch
        ])  # fmt: skip


class CumulativeAck(Bug):
    """Acknowledging a message settles all that its member took before it."""

    fails = {"39.bus", "39.driver", "42.bus.crash"}
    over = "sqlite"

    def __init__(self) -> None:
        self._taken: dict[Source, list[Delivery]] = {}

    async def receive(self, s: Source, limit: int, held: Collection[str]) -> Sequence[Delivery]:
        found = await s.receive(limit, held)
        self._taken.setdefault(s, []).extend(found)
        return found

    async def settle(self, s: Source, batch: Sequence[Settlement]) -> Sequence[TransportError | None]:
        taken = self._taken.get(s, [])
        done = {b.delivery.token for b in batch if b.verdict is Verdict.ACK}
        last = max((i for i, d in enumerate(taken) if d.token in done), default=-1)
        if skipped := [d for d in taken[: last + 1] if d.token not in {b.delivery.token for b in batch}]:
            await s.settle([Settlement(d, Verdict.ACK) for d in skipped])
        self._taken[s] = taken[last + 1 :]
        return await s.settle(batch)


class ExtendIgnored(Bug):
    """EXTEND is confirmed and changes nothing."""

    fails = {
        "40.driver",
        "40.bus",
        "75.driver",
        "75.driver.ordered",
        "81.driver",
        "81.driver.keys",
        "86.driver",
        "86.bus",
    }

    async def receive(self, s: Source, limit: int, held: Collection[str]) -> Sequence[Delivery]:
        return [structs.replace(d) for d in await s.receive(limit, held)]  # of its own, since the core writes `until`

    async def settle(self, s: Source, batch: Sequence[Settlement]) -> Sequence[TransportError | None]:
        outcomes = iter(await s.settle([b for b in batch if b.verdict is not Verdict.EXTEND]))
        return [None if b.verdict is Verdict.EXTEND else next(outcomes) for b in batch]


class LeaseNeverEnds(Bug):
    """What a member took is kept for it for an hour, whatever lease was asked for."""

    fails = {
        "40.driver.ended",
        "54.driver.fenced",
        "72.driver",
        "81.driver",
        "81.driver.keys",
        "82.driver",
        "88.bus.lease",
        "88.driver.lease",
    }

    async def subscribe(self, t: Transport, subscription: Subscription, revoked: Revoked) -> Source:
        return await t.subscribe(replace(subscription, lease=3600.0), revoked)
