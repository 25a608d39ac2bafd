"""The plugin of the scheme `mutant`: `mutant://NAME?inner=URL` is the transport of URL with the bug NAME.

It is one of the kit's own schemes (`switchgear_conformance.schemes`).
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, parse_qs, quote, urlsplit

from switchgear import plugins
from switchgear.driver import (
    Browsable,
    Capabilities,
    Clocked,
    Delivery,
    Fence,
    Headers,
    Lagged,
    Outgoing,
    Provisioner,
    Registry,
    Revoked,
    Scheduling,
    Seekable,
    Settlement,
    Source,
    Subscription,
    Transactional,
    Transport,
)
from switchgear.errors import TransportError
from switchgear.plugins import hookimpl

from .bug import Bug, bugs

if TYPE_CHECKING:
    from switchgear.clock import Clock


@hookimpl
def open_transport(scheme: str, url: SplitResult, tuning: Sequence[object]) -> Transport | None:
    """See the module."""
    if scheme != "mutant":
        return None
    return mutated(bugs()[url.netloc](), plugins.open_transport(inner_url(url.geturl())))


def inner_url(url: str) -> str:
    """The URL of what a mutant breaks."""
    (inner,) = parse_qs(urlsplit(url).query)["inner"]
    return inner


def mutant_url(bug: str, inner: str) -> str:
    return f"mutant://{bug}?inner={quote(inner, safe='')}"


def mutated(bug: Bug, inner: Transport) -> Transport:
    """The transport with the bug. It has the optional protocols that `inner` has, and no others."""
    methods: dict[str, Any] = {}
    if isinstance(inner, Registry):
        methods |= {"read": _read, "write": _write}
    if isinstance(inner, Scheduling):
        methods |= {"promote": _promote, "cancel": _cancel}
    if isinstance(inner, Seekable):
        methods["seek"] = _seek
    if isinstance(inner, Lagged):
        methods["lag"] = _lag
    if isinstance(inner, Browsable):
        methods["browse"] = _browse
    if isinstance(inner, Provisioner):
        methods |= {"provision": _provision, "topics": _topics}
    if isinstance(inner, Transactional):
        methods["commit"] = _commit
    if isinstance(inner, Clocked):
        methods["set_clock"] = _set_clock
    transport: Transport = type("Mutant", (Mutated,), methods)(bug, inner)
    return transport


class Mutated:
    """A transport whose every call goes by the bug."""

    def __init__(self, bug: Bug, inner: Transport) -> None:
        self.bug, self.inner = bug, inner

    @property
    def capabilities(self) -> Capabilities:
        return self.bug.capabilities(self.inner.capabilities)

    async def connect(self, deadline: float) -> None:
        await self.bug.connect(self.inner, deadline)

    async def send(self, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        return await self.bug.send(self.inner, batch, deadline)

    async def subscribe(self, subscription: Subscription, revoked: Revoked) -> Source:
        return MutatedSource(self.bug, await self.bug.subscribe(self.inner, subscription, revoked))

    async def close(self) -> None:
        await self.bug.close(self.inner)


class MutatedSource:
    """A source whose every call goes by the bug."""

    def __init__(self, bug: Bug, inner: Source) -> None:
        self.bug, self.inner = bug, inner

    @property
    def capabilities(self) -> Capabilities:
        return self.bug.capabilities(self.inner.capabilities)

    @property
    def trimmed(self) -> Mapping[str, int]:
        return getattr(self.inner, "trimmed", {})

    @property
    def valid_until(self) -> float:
        until: float = getattr(self.inner, "valid_until", math.inf)
        return until

    async def receive(self, limit: int, held: Collection[str] = ()) -> Sequence[Delivery]:
        return await self.bug.receive(self.inner, limit, held)

    async def settle(self, batch: Sequence[Settlement]) -> Sequence[TransportError | None]:
        return await self.bug.settle(self.inner, batch)

    async def assign(self, topics: Mapping[str, Fence | None]) -> None:
        await self.bug.assign(self.inner, topics)

    def note(self, lane: str) -> str:
        return self.bug.note(self.inner, lane)

    def headers(self, delivery: Delivery) -> Headers:
        return self.bug.headers(self.inner, delivery)

    def position(self, delivery: Delivery) -> str:
        return self.bug.position(self.inner, delivery)

    def time(self, delivery: Delivery) -> float:
        return self.bug.time(self.inner, delivery)

    async def close(self) -> None:
        await self.bug.close_source(self.inner)


async def _read(self: Mutated, prefix: str) -> Any:
    return await self.bug.read(self.inner, prefix)


async def _write(self: Mutated, name: str, value: bytes | None, *, expect: int | None, ttl: float | None) -> int | None:
    return await self.bug.write(self.inner, name, value, expect, ttl)


async def _promote(self: Mutated, limit: int) -> float | None:
    return await self.bug.promote(self.inner, limit)


async def _cancel(self: Mutated, topic: str, dedup: str) -> bool:
    return await self.bug.cancel(self.inner, topic, dedup)


async def _seek(self: Mutated, topic: str, group: str, to: Any) -> None:
    await self.bug.seek(self.inner, topic, group, to)


async def _lag(self: Mutated, topics: Sequence[str], group: str) -> Any:
    return await self.bug.lag(self.inner, topics, group)


def _browse(self: Mutated, topic: str, start: Any, end: float | None) -> AsyncIterator[tuple[Delivery, Headers]]:
    return self.bug.browse(self.inner, topic, start, end)


async def _provision(self: Mutated, wanted: Any, apply: bool) -> Any:
    return await self.bug.provision(self.inner, wanted, apply)


async def _topics(self: Mutated, prefix: str) -> Any:
    inner: Any = self.inner
    return await inner.topics(prefix)


async def _commit(
    self: Mutated, source: Source, settled: Sequence[Settlement], produced: Sequence[Outgoing], deadline: float
) -> None:
    assert isinstance(source, MutatedSource)
    await self.bug.commit(self.inner, source.inner, settled, produced, deadline)


def _set_clock(self: Mutated, clock: Clock) -> None:
    inner: Any = self.inner
    inner.set_clock(clock)
