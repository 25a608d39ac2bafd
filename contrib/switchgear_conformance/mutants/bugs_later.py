"""Bugs in what is due later, what expires, what is sent twice, and in rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from msgspec import structs
from msgspec.structs import replace

from switchgear.driver import Capabilities, Outgoing, Row, Transport
from switchgear.errors import TransportError

from .bug import Bug


class DueEarly(Bug):
    """What is due later comes a tenth of a second early."""

    fails = {"46.driver", "46.bus"}

    async def send(self, t: Transport, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        return await t.send([m if m.due is None else structs.replace(m, due=m.due - 0.1) for m in batch], deadline)


class PastIsTomorrow(Bug):
    """What was due in the past is due in a day."""

    fails = {"46.driver.past"}

    async def send(self, t: Any, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        if t._broker is not None:
            now: float = t._broker.now()
            late = now + 86400
            batch = [structs.replace(m, due=late) if m.due is not None and m.due < now else m for m in batch]
        outcomes: Sequence[TransportError | None] = await t.send(batch, deadline)
        return outcomes


class EqualTimesReversed(Bug):
    """Of messages that are sent together and due at the same time the last comes first."""

    fails = {"46.driver.order"}

    async def send(self, t: Transport, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        due = [m for m in batch if m.due is not None]
        if len({m.due for m in due}) != 1 or len({m.key for m in due}) != 1:
            return await t.send(batch, deadline)
        turned = iter(due[::-1])
        return await t.send([m if m.due is None else next(turned) for m in batch], deadline)


class CancelsTwice(Bug):
    """What was taken back once can be taken back again."""

    fails = {"46.driver.cancel", "46.bus.cancel"}

    def __init__(self) -> None:
        self._cancelled: set[tuple[str, str]] = set()

    async def cancel(self, t: Any, topic: str, dedup: str) -> bool:
        if await t.cancel(topic, dedup):
            self._cancelled.add((topic, dedup))
        return (topic, dedup) in self._cancelled


class NothingIsDue(Bug):
    """`promote` always says that nothing waits."""

    fails = {"46.driver.promote"}

    async def promote(self, t: Any, limit: int) -> float | None:
        await t.promote(limit)
        return None


class DelayedInProcess(Bug):
    """What is due later is kept by the process that sent it, and ends with it."""

    fails = {"47.driver", "47.bus"}
    over = "sqlite"

    def __init__(self) -> None:
        self._waiting: set[tuple[str, str]] = set()

    async def send(self, t: Transport, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        self._waiting.update((m.topic, m.dedup) for m in batch if m.due is not None and m.dedup is not None)
        return await t.send(batch, deadline)

    async def close(self, t: Any) -> None:
        for topic, dedup in self._waiting:
            await t.cancel(topic, dedup)
        self._waiting.clear()
        await t.close()


class TtlIgnored(Bug):
    """A time to live is declared, and what has expired is delivered."""

    fails = {"48.driver"}

    def capabilities(self, c: Capabilities) -> Capabilities:
        return replace(c, ttl=True)


class ExpiryNotStored(Bug):
    """The header that says when a message expires is not stored."""

    fails = {"43.driver", "43.bus", "48.bus", "74.bus"}

    async def send(self, t: Transport, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        kept = [[h for h in m.headers if not h[0].endswith("expirytime")] for m in batch]
        return await t.send([structs.replace(m, headers=h) for m, h in zip(batch, kept, strict=True)], deadline)


class DedupIgnored(Bug):
    """A window for tokens is declared, and none is remembered."""

    fails = {"52.driver", "52.driver.batch", "52.bus"}
    over = "sqlite"

    async def send(self, t: Transport, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        return await t.send([m if m.due is not None else structs.replace(m, dedup=None) for m in batch], deadline)


# ---- rows


class AnyRevision(Bug):
    """A row that is there may be written over whatever revision is expected."""

    fails = {"92.driver.registry"}

    async def write(self, t: Any, name: str, value: bytes | None, expect: int | None, ttl: float | None) -> int | None:
        if value is not None and expect and name in await t.read(name):
            expect = None
        revision: int | None = await t.write(name, value, expect=expect, ttl=ttl)
        return revision


class DeletesAnything(Bug):
    """A row is deleted whatever revision is expected."""

    fails = {"92.driver.deletion"}

    async def write(self, t: Any, name: str, value: bytes | None, expect: int | None, ttl: float | None) -> int | None:
        revision: int | None = await t.write(name, value, expect=None if value is None else expect, ttl=ttl)
        return revision


class RowsForGood(Bug):
    """A row outlives its time to live."""

    fails = {"92.driver.expiry"}

    async def write(self, t: Any, name: str, value: bytes | None, expect: int | None, ttl: float | None) -> int | None:
        revision: int | None = await t.write(name, value, expect=expect, ttl=None)
        return revision


class PrefixIsPattern(Bug):
    """What rows are asked for by is read as a pattern."""

    fails = {"92.driver.prefix"}

    async def read(self, t: Any, prefix: str) -> Mapping[str, Row]:
        rows: Mapping[str, Row] = await t.read("")
        return {name: row for name, row in rows.items() if fnmatchcase(name, prefix + "*")}
