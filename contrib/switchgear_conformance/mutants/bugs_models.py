"""Bugs that need a run of steps that nobody would have written down."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Sequence
from typing import Any

from msgspec.structs import replace

from switchgear.driver import (
    Delivery,
    Order,
    Outgoing,
    Revoked,
    Settlement,
    Source,
    Start,
    Subscription,
    Transport,
    Verdict,
)
from switchgear.errors import MaybeSent, NotSent, TransportError, Unavailable

from .bug import Bug


class LosesWhatWasExtended(Bug):
    """Where no order is kept, a delivery that is released after its lease was extended is settled for good."""

    fails = {"75.driver"}

    def __init__(self) -> None:
        self._extended: set[tuple[Source, Hashable]] = set()
        self._ordered: set[Source] = set()

    async def subscribe(self, t: Transport, subscription: Subscription, revoked: Revoked) -> Source:
        source = await t.subscribe(subscription, revoked)
        if subscription.order is not Order.NONE:
            self._ordered.add(source)
        return source

    async def settle(self, s: Source, batch: Sequence[Settlement]) -> Sequence[TransportError | None]:
        given = list(batch)
        for i, item in enumerate(given):
            token = s, item.delivery.token
            if item.verdict is Verdict.EXTEND and s not in self._ordered:
                self._extended.add(token)
            elif item.verdict is Verdict.RELEASE and token in self._extended:
                given[i] = replace(item, verdict=Verdict.ACK)
        return await s.settle(given)


class FencesEnd(Bug):
    """Where order is kept, the fence of a transport's third source does not rise any more."""

    fails = {"75.driver.ordered", "75.driver.total"}

    def __init__(self) -> None:
        self._sources: list[Source] = []

    async def subscribe(self, t: Transport, subscription: Subscription, revoked: Revoked) -> Source:
        source = await t.subscribe(subscription, revoked)
        if subscription.order is not Order.NONE:
            self._sources.append(source)
        return source

    async def receive(self, s: Source, limit: int, held: Collection[str]) -> Sequence[Delivery]:
        found = await s.receive(limit, held)
        if s in self._sources[2:]:
            return [replace(d, fence=min(d.fence, 2)) for d in found]
        return found


class ThirdReleaseStays(Bug):
    """Of three or more that are released together the last is settled for good."""

    fails = {
        "26.bus",
        "26.driver",
        "27.bus",
        "31.bus",
        "34.driver.release",
        "42.bus.stop",
        "51.driver",
        "51.driver.topics",
        "75.bus",
        "75.bus.ordered",
        "75.driver",
        "75.driver.ordered",
        "75.driver.total",
        "76.bus",
        "77.bus",
        "82.bus",
        "82.driver.return",
        "87.bus",
        "87.bus.keys",
        "88.bus",
        "88.bus.keys",
        "88.driver",
        "90.bus.order",
    }

    async def settle(self, s: Source, batch: Sequence[Settlement]) -> Sequence[TransportError | None]:
        given = list(batch)
        released = [i for i, item in enumerate(given) if item.verdict is Verdict.RELEASE]
        if len(released) > 2:
            given[released[-1]] = replace(given[released[-1]], verdict=Verdict.ACK)
        return await s.settle(given)


class ThirdDeadLetterVanishes(Bug):
    """Every third dead letter is said to be stored, and is not."""

    fails = {"42.bus.park", "43.bus", "79.bus", "79.bus.ordered", "85.bus", "89.bus.replay"}

    def __init__(self) -> None:
        self._dead = 0

    async def send(self, t: Transport, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        kept: list[Outgoing] = []
        for m in batch:
            self._dead += (dead := "/dlq/" in (m.dedup or ""))
            if not dead or self._dead % 3:
                kept.append(m)
        outcomes = iter(await t.send(kept, deadline) if kept else ())
        stored = {id(m) for m in kept}
        return [next(outcomes) if id(m) in stored else None for m in batch]


class RetriedTogether(Bug):
    """Of those that are given RETRY together only the first is counted."""

    fails = {
        "21.bus.within",
        "37.bus",
        "37.driver",
        "75.driver",
        "75.driver.ordered",
        "75.driver.total",
        "79.bus",
        "89.bus",
    }

    async def settle(self, s: Source, batch: Sequence[Settlement]) -> Sequence[TransportError | None]:
        given = list(batch)
        for i in [i for i, item in enumerate(given) if item.verdict is Verdict.RETRY][1:]:
            given[i] = replace(given[i], verdict=Verdict.RELEASE)
        return await s.settle(given)


class MediaCut(Bug):
    """A content type loses its parameters."""

    fails = {"2.driver", "74.driver"}

    async def send(self, t: Transport, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        return await t.send([replace(m, media=m.media and m.media.partition(b";")[0]) for m in batch], deadline)


class SpacesAlike(Bug):
    """In headers a space that does not break becomes one that does."""

    fails = {"74.driver", "74.bus"}

    async def send(self, t: Transport, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        hard = "\u00a0".encode()
        return await t.send(
            [replace(m, headers=[(n, v.replace(hard, b" ")) for n, v in m.headers]) for m in batch], deadline
        )


class ThirdTimeSkips(Bug):
    """A group that joins for the third time to read from the earliest message on misses the next one that it is due."""

    fails = {"76.driver", "76.bus"}

    def __init__(self) -> None:
        self._times: Counter[str | None] = Counter()
        self._skip: set[Source] = set()

    async def subscribe(self, t: Transport, subscription: Subscription, revoked: Revoked) -> Source:
        source = await t.subscribe(subscription, revoked)
        if subscription.start == "earliest":
            self._times[subscription.group] += 1
            if self._times[subscription.group] == 3:
                self._skip.add(source)
        return source

    async def receive(self, s: Source, limit: int, held: Collection[str]) -> Sequence[Delivery]:
        found = list(await s.receive(limit, held))
        if found and s in self._skip:
            self._skip.remove(s)
            await s.settle([Settlement(found.pop(0), Verdict.ACK)])
        return found


class SeeksOnce(Bug):
    """A group is moved to its earliest message once; the second time nothing happens."""

    fails = {"77.driver"}

    def __init__(self) -> None:
        self._moved: set[tuple[str, str]] = set()

    async def seek(self, t: Any, topic: str, group: str, to: Start | str) -> None:
        if to != "earliest" or (topic, group) not in self._moved:
            await t.seek(topic, group, to)
        if to == "earliest":
            self._moved.add((topic, group))


class SecondBreakDefinite(Bug):
    """From the second time on, a send that got no answer is said not to have been stored."""

    fails = {"61.driver", "67.driver", "78.driver"}
    over = "simulated"

    def __init__(self) -> None:
        self._breaks = 0

    async def send(self, t: Transport, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        try:
            outcomes = await t.send(batch, deadline)
        except MaybeSent as error:
            outcomes = [error] * len(batch)
        if any(isinstance(o, MaybeSent) for o in outcomes):
            self._breaks += 1
        if self._breaks < 2:
            return outcomes
        return [NotSent(str(o)) if isinstance(o, MaybeSent) else o for o in outcomes]


class SecondBreakStored(Bug):
    """From the second time on, a send over a connection that broke is said to have been stored."""

    fails = {
        "61.bus",
        "61.driver",
        "63.bus",
        "63.driver",
        "65.driver",
        "67.bus",
        "73.bus",
        "73.driver",
        "78.bus",
        "78.driver",
    }
    over = "simulated"

    def __init__(self) -> None:
        self._breaks = 0

    async def send(self, t: Transport, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        try:
            outcomes = await t.send(batch, deadline)
        except (MaybeSent, Unavailable) as error:
            outcomes = [error] * len(batch)
        self._breaks += any(outcomes)
        return [None] * len(batch) if self._breaks > 1 else outcomes
