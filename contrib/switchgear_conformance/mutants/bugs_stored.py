"""Bugs in what is stored: where groups begin, what they collect, what is known of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from msgspec.structs import replace

from switchgear.driver import Delivery, Drift, Headers, Resource, Revoked, Source, Start, Subscription, Transport
from switchgear.errors import Refused

from .bug import Bug


class EarliestIsNew(Bug):
    """A group that starts at "earliest" begins with what comes."""

    fails = {"44.driver", "44.bus", "76.driver", "76.bus"}

    async def subscribe(self, t: Transport, subscription: Subscription, revoked: Revoked) -> Source:
        start = "new" if subscription.start == "earliest" else subscription.start
        return await t.subscribe(replace(subscription, start=start), revoked)


class TimeIsEarliest(Bug):
    """A group that starts at a time begins with everything."""

    fails = {"44.driver.time", "44.bus.time"}

    async def subscribe(self, t: Transport, subscription: Subscription, revoked: Revoked) -> Source:
        start = subscription.start if isinstance(subscription.start, str) else "earliest"
        return await t.subscribe(replace(subscription, start=start), revoked)


class SeekBehind(Bug):
    """Seeking a position goes on behind it."""

    fails = {"44.driver.seek", "77.driver"}

    async def seek(self, t: Any, topic: str, group: str, to: Start | str) -> None:
        await t.seek(topic, group, str(int(to) + 1) if isinstance(to, str) and to.isdecimal() else to)


class BrowseOnePage(Bug):
    """Browsing ends after its first page."""

    fails = {"44.driver.browse", "76.driver"}

    async def browse(
        self, t: Any, topic: str, start: Start, end: float | None
    ) -> AsyncIterator[tuple[Delivery, Headers]]:
        page = 0
        async for found in t.browse(topic, start, end):
            page += 1
            if page > 100:
                return
            yield found


class SmallBacklog(Bug):
    """A group that nobody reads collects 35 messages; when there are more, all are dropped."""

    fails = {"45.bus", "45.driver", "60.driver", "61.driver"}
    over = "sqlite"

    async def subscribe(self, t: Any, subscription: Subscription, revoked: Revoked) -> Source:
        for topic in subscription.topics if subscription.group is not None else ():
            lag: Mapping[str, int] = await t.lag([topic], subscription.group)
            if sum(lag.values()) > 35:
                with suppress(Refused):  # somebody reads it
                    await t.seek(topic, subscription.group, "new")
        source: Source = await t.subscribe(subscription, revoked)
        return source


class LagOfWhatWaits(Bug):
    """Lag leaves out what is in flight."""

    fails = {"45.driver.lag"}

    async def lag(self, t: Any, topics: Sequence[str], group: str) -> Mapping[str, int]:
        found: Mapping[str, int] = await t.lag(topics, group)
        groups = {name: t._broker.topics[name].groups[group] for name in found}
        flying = {
            name: sum(d.topic == name for m in groups[name].members.values() for d in m.leased.values())
            for name in found
        }
        return {name: count - flying[name] for name, count in found.items()}


class ProvisionsAnyway(Bug):
    """What is only to be compared is made as well."""

    fails = {"13.bus", "45.driver.provision"}

    async def provision(self, t: Any, wanted: Sequence[Resource], apply: bool) -> Sequence[Drift]:
        drifts: Sequence[Drift] = await t.provision(wanted, True)
        return [replace(drift, applied=apply) for drift in drifts]


class RetentionInMinutes(Bug):
    """A retention of so many seconds is kept for so many minutes."""

    fails = {"45.driver.retention"}

    async def provision(self, t: Any, wanted: Sequence[Resource], apply: bool) -> Sequence[Drift]:
        minutes = [replace(r, retention=None if r.retention is None else 60 * r.retention) for r in wanted]
        drifts: Sequence[Drift] = await t.provision(minutes, apply)
        return [replace(d, wanted=_seconds(d.wanted), found=_seconds(d.found)) for d in drifts]


def _seconds(value: object) -> object:
    return value / 60 if isinstance(value, float) else value
