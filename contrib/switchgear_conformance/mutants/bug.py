"""A seeded bug: a right transport, of which one method does something wrong."""

from __future__ import annotations

import pkgutil
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from functools import lru_cache
from importlib import import_module
from typing import Any, ClassVar

from switchgear.driver import (
    Capabilities,
    Delivery,
    Drift,
    Fence,
    Headers,
    Outgoing,
    Resource,
    Revoked,
    Row,
    Settlement,
    Source,
    Start,
    Subscription,
    Transport,
)
from switchgear.errors import TransportError


class Bug:
    """Every method passes through to the right transport (`t`) or source (`s`); a bug overrides what it breaks.

    One instance serves one transport and its sources. The class's docstring says what is wrong.
    """

    fails: ClassVar[set[str]] = set()
    """Ids of the cases (`"36.driver"`) that it fails, all of them and no others."""
    over: ClassVar[str] = "memory"
    """What is broken: "memory", "sqlite", or for what is done to servers "simulated"."""

    def capabilities(self, c: Capabilities) -> Capabilities:
        return c

    async def connect(self, t: Transport, deadline: float) -> None:
        await t.connect(deadline)

    async def send(self, t: Transport, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        return await t.send(batch, deadline)

    async def subscribe(self, t: Transport, subscription: Subscription, revoked: Revoked) -> Source:
        return await t.subscribe(subscription, revoked)

    async def close(self, t: Transport) -> None:
        await t.close()

    async def receive(self, s: Source, limit: int, held: Collection[str]) -> Sequence[Delivery]:
        return await s.receive(limit, held)

    async def settle(self, s: Source, batch: Sequence[Settlement]) -> Sequence[TransportError | None]:
        return await s.settle(batch)

    async def assign(self, s: Source, topics: Mapping[str, Fence | None]) -> None:
        await s.assign(topics)

    def note(self, s: Source, lane: str) -> str:
        return s.note(lane)

    def headers(self, s: Source, d: Delivery) -> Headers:
        return s.headers(d)

    def position(self, s: Source, d: Delivery) -> str:
        return s.position(d)

    def time(self, s: Source, d: Delivery) -> float:
        return s.time(d)

    async def close_source(self, s: Source) -> None:
        await s.close()

    async def commit(
        self, t: Any, s: Source, settled: Sequence[Settlement], produced: Sequence[Outgoing], deadline: float
    ) -> None:
        await t.commit(s, settled, produced, deadline)

    async def read(self, t: Any, prefix: str) -> Mapping[str, Row]:
        found: Mapping[str, Row] = await t.read(prefix)
        return found

    async def write(self, t: Any, name: str, value: bytes | None, expect: int | None, ttl: float | None) -> int | None:
        revision: int | None = await t.write(name, value, expect=expect, ttl=ttl)
        return revision

    async def promote(self, t: Any, limit: int) -> float | None:
        left: float | None = await t.promote(limit)
        return left

    async def cancel(self, t: Any, topic: str, dedup: str) -> bool:
        return bool(await t.cancel(topic, dedup))

    async def seek(self, t: Any, topic: str, group: str, to: Start | str) -> None:
        await t.seek(topic, group, to)

    async def lag(self, t: Any, topics: Sequence[str], group: str) -> Mapping[str, int]:
        found: Mapping[str, int] = await t.lag(topics, group)
        return found

    def browse(self, t: Any, topic: str, start: Start, end: float | None) -> AsyncIterator[tuple[Delivery, Headers]]:
        found: AsyncIterator[tuple[Delivery, Headers]] = t.browse(topic, start, end)
        return found

    async def provision(self, t: Any, wanted: Sequence[Resource], apply: bool) -> Sequence[Drift]:
        found: Sequence[Drift] = await t.provision(wanted, apply)
        return found


@lru_cache(maxsize=1)
def bugs() -> dict[str, type[Bug]]:
    """Every bug of this package by name: the class's, in kebab-case."""
    found: dict[str, type[Bug]] = {}
    package = import_module("switchgear_conformance.mutants")
    for module in pkgutil.iter_modules(package.__path__, "switchgear_conformance.mutants."):
        if not module.name.rpartition(".")[2].startswith("bugs_"):
            continue
        for value in vars(import_module(module.name)).values():
            if isinstance(value, type) and issubclass(value, Bug) and value.__module__ == module.name:
                name = "".join(f"-{c.lower()}" if c.isupper() else c for c in value.__name__).lstrip("-")
                if name in found:
                    raise RuntimeError(f"two bugs are named {name}: in {found[name].__module__} and {module.name}")
                found[name] = value
    return dict(sorted(found.items()))
