"""Bugs in copies: what a group is given another time, and what waits in delay topics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import structs

from switchgear.driver import Outgoing, Revoked, Settlement, Source, Subscription, Transport, Verdict
from switchgear.errors import TransportError

from .bug import Bug

RETRY, DELAY = "sg.retry.", "sg.delay."


class TokenOfTheOriginal(Bug):
    """Every copy for another attempt is sent under the id of the original alone."""

    fails = {"80.bus", "80.bus.replay", "89.bus.copy"}
    over = "sqlite"

    async def send(self, t: Transport, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        return await t.send([_with_id(m) if RETRY in m.topic else m for m in batch], deadline)


class TokenOfTheFirstHop(Bug):
    """Every hop of a delayed message, but not of a copy, is sent under the id of the message alone."""

    fails = {"80.bus.hops"}
    over = "sqlite"

    async def send(self, t: Transport, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        return await t.send(
            [_with_id(m) if DELAY in m.topic and "retry" not in (m.dedup or "") else m for m in batch], deadline
        )


def _with_id(m: Outgoing) -> Outgoing:
    return structs.replace(m, dedup=None if m.dedup is None else m.dedup.partition("/")[0])


class CopyForAll(Bug):
    """A copy for one group goes to the topic, which every group reads."""

    fails = {"89.bus.copy", "89.bus.replay"}

    async def send(self, t: Transport, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        return await t.send(
            [
                structs.replace(m, topic=m.topic.replace(RETRY, "").rpartition(".")[0]) if RETRY in m.topic else m
                for m in batch
            ],
            deadline,
        )


class RetryForAll(Bug):
    """Where several groups read a topic, what one gives back is handed to all."""

    fails = {"79.bus", "89.bus"}

    def __init__(self) -> None:
        self._groups: dict[str, set[str]] = {}
        self._transport: Transport | None = None

    async def subscribe(self, t: Transport, subscription: Subscription, revoked: Revoked) -> Source:
        self._transport = t
        for topic in subscription.topics:
            self._groups.setdefault(topic, set()).add(subscription.group or "")
        return await t.subscribe(subscription, revoked)

    async def settle(self, s: Any, batch: Sequence[Settlement]) -> Sequence[TransportError | None]:
        for b in batch:
            if b.verdict is Verdict.RETRY and len(self._groups[b.delivery.topic]) > 1 and self._transport is not None:
                native: Any = b.delivery.native
                await self._transport.send([native.message], float("inf"))
        outcomes: Sequence[TransportError | None] = await s.settle(batch)
        return outcomes


class WaitingEndsWithItsMember(Bug):
    """What waits for its RETRY time comes back at once when the member leaves that gave it back."""

    fails = {"90.bus"}

    async def close_source(self, s: Any) -> None:
        groups = dict(s._groups)
        await s.close()
        for group in groups.values():
            for position, (_, handle) in list(group._sleeping.items()):
                if group._agenda.cancel(handle):
                    group._wake_up(position)


class AttemptNotStored(Bug):
    """The header that says which attempt a copy is for is not stored."""

    fails = {"89.bus.copy", "90.bus.broker", "90.bus.copy", "90.bus.order"}

    async def send(self, t: Transport, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        kept = [
            structs.replace(m, headers=[h for h in m.headers if not h[0].endswith("sgattempt")])
            if RETRY in m.topic or DELAY in m.topic
            else m
            for m in batch
        ]
        return await t.send(kept, deadline)


REPLAY = "/replay/"


class ReplayForAll(Bug):
    """What a group replays goes to the topic, which every group reads."""

    fails = {"89.bus.replay"}

    async def send(self, t: Transport, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        return await t.send(
            [
                structs.replace(m, topic=m.topic.replace(RETRY, "").rpartition(".")[0])
                if REPLAY in (m.dedup or "")
                else m
                for m in batch
            ],
            deadline,
        )


class TokenOfTheFirstReplay(Bug):
    """A message that is replayed once more is sent under the token of its first replay."""

    fails = {"80.bus.replay"}
    over = "sqlite"

    async def send(self, t: Transport, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        return await t.send(
            [
                structs.replace(m, dedup=(m.dedup or "").partition(REPLAY)[0] + REPLAY)
                if REPLAY in (m.dedup or "")
                else m
                for m in batch
            ],
            deadline,
        )


class TokenOfTheAttemptAlone(Bug):
    """Copies and dead letters of what was replayed have the tokens of those that were made before."""

    fails = {"80.bus.replay"}
    over = "sqlite"

    async def send(self, t: Transport, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        return await t.send(
            [
                m if REPLAY in (m.dedup or "") or DELAY in m.topic else structs.replace(m, dedup=_placeless(m.dedup))
                for m in batch
            ],
            deadline,
        )


def _placeless(token: str | None) -> str | None:
    return None if token is None else token.partition("@")[0]
