"""What cases do with a source, said briefly; a source with the manners of the core."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from switchgear.driver import (
    Delivery,
    Headers,
    Outgoing,
    Scheduling,
    Settlement,
    Settling,
    Source,
    Transactional,
    Transport,
    Verdict,
)
from switchgear.errors import TransportError

if TYPE_CHECKING:
    from .context import Context

ACK, RETRY, EXTEND, RELEASE = Verdict.ACK, Verdict.RETRY, Verdict.EXTEND, Verdict.RELEASE
PATIENCE = 10.0  # seconds until something that must come counts as lost


def out(
    topic: str, body: bytes | str | None, key: bytes | str | None = None, *, media: bytes | None = None,
    headers: Headers | None = None, dedup: str | None = None, due: float | None = None, expires: float | None = None,
    priority: int | None = None, private: bool = False, marked: bool = False,
) -> Outgoing:  # fmt: skip
    """A message to send; text is encoded."""
    return Outgoing(
        topic, body.encode() if isinstance(body, str) else body, media, headers or [],
        key.encode() if isinstance(key, str) else key, dedup, due, expires, priority, private, marked,
    )  # fmt: skip


def bodies(deliveries: Iterable[Delivery]) -> list[bytes | None]:
    return [d.body for d in deliveries]


def each_once(found: Iterable[bytes | None], expected: Iterable[bytes | str]) -> None:
    """The same bodies, each as often: nothing lost, nothing doubled, nothing from nowhere."""
    wanted: Counter[bytes | None] = Counter(e.encode() if isinstance(e, str) else e for e in expected)
    have: Counter[bytes | None] = Counter(found)
    lost, extra = wanted - have, have - wanted
    wrong = f"lost: {sorted(map(repr, lost))[:10]}, too many: {sorted(map(repr, extra))[:10]}"
    assert not (lost or extra), wrong


async def raised(call: Awaitable[object], *kinds: type[BaseException]) -> BaseException:
    """What a call raised, which must be one of these; AssertionError when it raised nothing."""
    try:
        await call
    except kinds as error:
        return error
    raise AssertionError(f"nothing was raised, expected {' or '.join(kind.__name__ for kind in kinds)}")


class Member:
    """One source. It promotes what is due; a cumulative broker it acknowledges lane by lane, as the core does."""

    def __init__(self, context: Context, transport: Transport, source: Source) -> None:
        self.context, self.transport, self.source = context, transport, source
        self._pending: asyncio.Task[Sequence[Delivery]] | None = None
        self._order: dict[str, list[Delivery]] = {}
        self._done: set[object] = set()
        self._receiving = False

    @property
    def cumulative(self) -> bool:
        return self.source.capabilities.settling is Settling.CUMULATIVE

    async def receive(self, limit: int = 100, held: Sequence[str] = ()) -> list[Delivery]:
        """One `receive`; it may return nothing."""
        if isinstance(self.transport, Scheduling):
            await self.transport.promote(1000)
        pending, self._pending = self._pending, None
        self._receiving = True
        try:
            found = list(await (pending if pending is not None else self.source.receive(limit, held)))
        finally:
            self._receiving = False
        if self.cumulative:
            for d in found:
                self._order.setdefault(d.lane, []).append(d)
        return found

    async def keep(self) -> None:
        """Have the membership kept, unless a `receive` is under way."""
        if not self._receiving and self._pending is None:
            self._receiving = True
            try:
                with suppress(TransportError):  # the next `receive` says so, too
                    await self.source.receive(0)
            finally:
                self._receiving = False

    async def take(self, count: int, within: float = PATIENCE) -> list[Delivery]:
        """Exactly `count` deliveries, unsettled; AssertionError when they do not come."""
        found: list[Delivery] = []
        ends = self.context.time() + within
        while len(found) < count:
            assert self.context.time() < ends, f"{len(found)} of {count} messages came within {within:g} s"
            found += await self.receive(count - len(found))
        assert len(found) == count, f"receive({count}) handed out more than its limit"
        return found

    async def one(self, within: float = PATIENCE) -> Delivery:
        (delivery,) = await self.take(1, within)
        return delivery

    async def nothing(self, window: float | None = None) -> None:
        """Nothing comes for a while: the measured quiet window, if not said otherwise (seconds)."""
        ends = self.context.time() + (self.context.quiet if window is None else window)
        while (left := ends - self.context.time()) > 0:
            if self._pending is None:
                if isinstance(self.transport, Scheduling):
                    await self.transport.promote(1000)
                self._pending = asyncio.create_task(self._receive_one())
            done, _ = await asyncio.wait([self._pending], timeout=left)  # never cancelled: the next receive awaits it
            if done:
                found = bodies(await self.receive())
                assert found == [], f"nothing more should come, and {found!r} did"

    async def _receive_one(self) -> Sequence[Delivery]:
        return await self.source.receive(1)

    async def outcomes(
        self, deliveries: Iterable[Delivery], verdict: Verdict = ACK, seconds: float = 0.0
    ) -> list[TransportError | None]:
        """Settle and say what the driver said, one an item (a cumulative broker: one a lane whose head moved)."""
        settlements = self.settlements(deliveries, verdict, seconds)
        return list(await self.source.settle(settlements)) if settlements or not self.cumulative else []

    def settlements(
        self, deliveries: Iterable[Delivery], verdict: Verdict = ACK, seconds: float = 0.0
    ) -> list[Settlement]:
        """What the core would ask the driver to carry out."""
        given = list(deliveries)
        if not self.cumulative:
            return [Settlement(d, verdict, seconds) for d in given]
        assert verdict is ACK, f"a cumulative broker is given ACK alone, not {verdict}"
        self._done.update(d.token for d in given)
        heads: list[Delivery] = []
        for line in self._order.values():
            head: Delivery | None = None
            while line and line[0].token in self._done:
                head = line.pop(0)
            if head is not None:
                heads.append(head)
        return [Settlement(d, ACK) for d in heads]

    async def commit(self, deliveries: Iterable[Delivery], *produced: Outgoing) -> None:
        """Acknowledge and store in one transaction."""
        assert isinstance(self.transport, Transactional), "transactions are declared, and there is no commit()"
        await self.transport.commit(self.source, self.settlements(deliveries), produced, self.context.deadline())

    async def settle(self, deliveries: Iterable[Delivery], verdict: Verdict = ACK, seconds: float = 0.0) -> None:
        """Settle; every item must succeed."""
        refused = [o for o in await self.outcomes(deliveries, verdict, seconds) if o is not None]
        assert not refused, f"{verdict.name} was refused: {refused[0]!r}"

    async def drain(self, count: int, within: float = PATIENCE) -> list[Delivery]:
        """Take and acknowledge `count`."""
        found: list[Delivery] = []
        ends = self.context.time() + within
        while len(found) < count:
            assert self.context.time() < ends, f"{len(found)} of {count} messages came within {within:g} s"
            some = await self.receive(count - len(found))
            await self.settle(some)
            found += some
        return found

    async def close(self) -> None:
        """Leave the group; a receive that waits ends first."""
        await self.source.close()
        if self._pending is not None:
            await self._pending
            self._pending = None
