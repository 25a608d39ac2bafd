"""A broker that declares less than it can, so that what the core adds can be seen at work on any transport.

`weak://?inner=URL` is the transport of URL without a delay, without RETRY, without a count of deliveries
and without transactions.
`weak://log?inner=URL` also acknowledges by a position for each topic, as a log does: for one member at a time, over a
transport whose `Delivery.token` rises along a topic. `weak://transactions?inner=URL` is such a log with transactions;
`weak://stumbles?inner=URL` and `weak://stumbling-log?inner=URL` have transactions most of which fail.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection, Sequence
from typing import Any
from urllib.parse import SplitResult, quote

from msgspec import structs
from msgspec.structs import replace

from switchgear import plugins
from switchgear.driver import (
    Capabilities,
    Delivery,
    Outgoing,
    Revoked,
    Settlement,
    Settling,
    Source,
    Subscription,
    Transport,
    Verdict,
)
from switchgear.errors import Lost, MaybeSent, NotSent, TransportError, Unavailable
from switchgear.plugins import hookimpl

from .mutants.bug import Bug
from .mutants.plugin import inner_url, mutated


@hookimpl
def open_transport(scheme: str, url: SplitResult, tuning: Sequence[object]) -> Transport | None:
    """See the module."""
    if scheme != "weak":
        return None
    return mutated(KINDS[url.netloc](), plugins.open_transport(inner_url(url.geturl())))


def weak_url(inner: str, kind: str = "") -> str:
    """The same broker, weaker."""
    return f"weak://{kind}?inner={quote(inner, safe='')}"


class Weak(Bug):
    """Declares no delay, no RETRY, no counting, no transactions."""

    def capabilities(self, c: Capabilities) -> Capabilities:
        return replace(c, delay=0.0, retry_delay=None, counting="none", transactions=False)

    async def receive(self, s: Source, limit: int, held: Collection[str]) -> Sequence[Delivery]:
        return [structs.replace(d, deliveries=None) for d in await s.receive(limit, held)]

    async def settle(self, s: Source, batch: Sequence[Settlement]) -> Sequence[TransportError | None]:
        assert all(b.verdict is not Verdict.RETRY for b in batch), "RETRY, which is not declared"
        return await s.settle(batch)


class Log(Weak):
    """Also acknowledges by position. Its notes are the transport's own: who comes from another knows the position."""

    def __init__(self) -> None:
        self._open: dict[Source, dict[str, dict[int, Delivery]]] = {}
        """By lane and offset, what was handed out and not acknowledged."""
        self._groups: dict[Source, str] = {}
        self._epoch = 0
        self._notes: dict[str, str] = {}
        """By topic and group, what was stored with the last position."""

    def capabilities(self, c: Capabilities) -> Capabilities:
        return replace(super().capabilities(c), settling=Settling.CUMULATIVE, note=4096, revoke_within=5.0)

    async def subscribe(self, t: Transport, subscription: Subscription, revoked: Revoked) -> Source:
        source = await t.subscribe(replace(subscription, lease=1e9), revoked)
        self._epoch += 1
        self._open[source], self._groups[source] = {}, f"{subscription.group}#{self._epoch}"
        return source

    async def receive(self, s: Source, limit: int, held: Collection[str]) -> Sequence[Delivery]:
        if held and set(self._open[s]) <= set(held):  # a lane that has none yet is not in the way
            await asyncio.sleep(0.5)
            return []
        out: list[Delivery] = []
        for d in await super().receive(s, limit, held):
            lane = f"{d.topic}#{self._groups[s]}"
            assert isinstance(d.token, int)
            self._open[s].setdefault(lane, {})[d.token] = d
            out.append(structs.replace(d, lane=lane, token=(d.topic, d.token), until=math.inf))
        return out

    async def settle(self, s: Source, batch: Sequence[Settlement]) -> Sequence[TransportError | None]:
        outcomes: list[TransportError | None] = []
        for one in batch:
            assert one.verdict is Verdict.ACK, f"{one.verdict} on a log"
            assert len(one.note) <= 4096
            there = self._open.get(s, {}).get(one.delivery.lane)
            if there is None:
                outcomes.append(Lost(f"{one.delivery.lane} is no longer ours"))
                continue
            failed = await s.settle(self._up_to(one, there))
            outcomes.append(next((error for error in failed if error is not None), None))
            if outcomes[-1] is None:
                self._notes[_kept(one.delivery.lane)] = one.note
        return outcomes

    async def commit(
        self, t: Any, s: Source, settled: Sequence[Settlement], produced: Sequence[Outgoing], deadline: float
    ) -> None:
        inner: list[Settlement] = []
        for one in settled:
            there = self._open.get(s, {}).get(one.delivery.lane)
            if there is None:
                raise Lost(f"{one.delivery.lane} is no longer ours")
            inner += self._up_to(one, dict(there))
        await t.commit(s, inner, produced, deadline)
        for one in settled:
            self._up_to(one, self._open[s][one.delivery.lane])
            self._notes[_kept(one.delivery.lane)] = one.note

    def note(self, s: Source, lane: str) -> str:
        return self._notes.get(_kept(lane), "")

    @staticmethod
    def _up_to(one: Settlement, there: dict[int, Delivery]) -> list[Settlement]:
        """Take out what a position acknowledges."""
        token = one.delivery.token
        assert isinstance(token, tuple)
        done = [offset for offset in there if offset <= token[-1]]
        return [Settlement(there.pop(offset), Verdict.ACK) for offset in done]

    async def close_source(self, s: Source) -> None:
        self._open.pop(s, None)
        await s.close()


class Transactions(Log):
    """Also has transactions, if the transport does; a note is 100 bytes, so that it gets full."""

    def capabilities(self, c: Capabilities) -> Capabilities:
        return replace(super().capabilities(c), transactions=c.transactions, note=100)


class Stumbles(Bug):
    """Most transactions fail, in each way in turn, and of those whose outcome is not told every second was stored."""

    def __init__(self) -> None:
        self._turn = 0

    async def commit(
        self, t: Any, s: Source, settled: Sequence[Settlement], produced: Sequence[Outgoing], deadline: float
    ) -> None:
        self._turn += 1
        match self._turn % 6:
            case 2:
                raise NotSent("stumbled: no room")
            case 3:
                raise MaybeSent("stumbled: no answer, and not stored")
            case 5:
                raise Unavailable("stumbled: no connection")
            case _:
                pass
        await super().commit(t, s, settled, produced, deadline)
        if self._turn % 6 == 1:
            raise MaybeSent("stumbled: no answer, and stored")


class StumblingLog(Stumbles, Transactions):
    """The same on a log."""

    def __init__(self) -> None:
        Stumbles.__init__(self)
        Transactions.__init__(self)


KINDS: dict[str, type[Bug]] = {
    "": Weak, "log": Log, "transactions": Transactions, "stumbles": Stumbles, "stumbling-log": StumblingLog,
}  # fmt: skip


def _kept(lane: str) -> str:
    """A lane's name without the number of its assignment."""
    return lane.rpartition("#")[0]
