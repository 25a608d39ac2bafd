"""A broker that acknowledges by a position per lane, as a partitioned log does; and a host for a bare consumer."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from switchgear.clock import LoopClock
from switchgear.driver import (
    Capabilities,
    Delivery,
    Fence,
    Headers,
    Order,
    Outgoing,
    Settlement,
    Settling,
    Subscription,
    Verdict,
)
from switchgear.errors import Lost, TransportError
from switchgear.knobs import Handler
from switchgear.message import Message
from switchgear.program import Program, Route
from switchgear.settings import Settings


@dataclass
class Partition:
    messages: list[tuple[bytes | None, bytes]] = field(default_factory=list)
    committed: int = 0
    """The offset that a new owner begins with."""
    note: str = ""
    commits: list[int] = field(default_factory=list)


class Log:
    """Of one group; whoever subscribes takes the partitions that he is given with `give`."""

    def __init__(self, partitions: int = 1, *, note: int = 4096, revoke_within: float = 5.0) -> None:
        self.partitions = [Partition() for _ in range(partitions)]
        self.capabilities = Capabilities(
            settling=Settling.CUMULATIVE, order=Order.KEY, groups=True, note=note, revoke_within=revoke_within
        )
        self.epoch = 0
        self.sources: list[LogSource] = []

    def append(self, key: str | None, body: bytes, partition: int = 0) -> None:
        self.partitions[partition].messages.append((None if key is None else key.encode(), body))
        for source in self.sources:
            source.wake()

    async def connect(self, deadline: float) -> None: ...

    def open(self, revoked: Callable[..., Awaitable[None]]) -> LogSource:
        return LogSource(self, revoked)

    async def subscribe(self, subscription: Subscription, revoked: Callable[..., Awaitable[None]]) -> LogSource:
        source = self.open(revoked)
        self.sources.append(source)
        return source

    async def send(self, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        raise NotImplementedError

    async def close(self) -> None: ...


class LogSource:
    def __init__(self, log: Log, revoked: Callable[..., Awaitable[None]]) -> None:
        self.capabilities = log.capabilities
        self._log, self._revoked = log, revoked
        self.lanes: dict[str, list[int]] = {}
        """[partition, next offset] by lane."""
        self.faults: list[BaseException] = []
        """Raised by the next calls of `settle`."""
        self.slow = 0.0
        """Seconds that a settlement takes."""
        self._closed = False
        self._wake = asyncio.Event()
        self.limits: list[int] = []

    def give(self, *partitions: int) -> None:
        for n in partitions:
            self._log.epoch += 1
            self.lanes[f"t/{n}#{self._log.epoch}"] = [n, self._log.partitions[n].committed]
        self.wake()

    async def take(self, *partitions: int, lost: bool) -> None:
        names = [lane for lane, (n, _) in self.lanes.items() if n in partitions]
        if lost:
            for name in names:
                del self.lanes[name]
        await self._revoked(names, lost)
        for name in names:
            self.lanes.pop(name, None)

    def rewind(self) -> None:
        """As after an interruption: hand out again from the last commit."""
        for place in self.lanes.values():
            place[1] = self._log.partitions[place[0]].committed
        self.wake()

    def wake(self) -> None:
        self._wake.set()

    async def receive(self, limit: int, held: Collection[str] = ()) -> Sequence[Delivery]:
        self.limits.append(limit)
        for attempt in (1, 2):
            out: list[Delivery] = []
            for lane, place in self.lanes.items():
                if lane in held:
                    continue
                messages = self._log.partitions[place[0]].messages
                while len(out) < limit and place[1] < len(messages):
                    key, body = messages[place[1]]
                    out.append(Delivery("t", body, None, key, lane, ("t", place[0], place[1]), None, marked=False))
                    place[1] += 1
            if out or limit <= 0 or self._closed or attempt == 2:
                return out
            self._wake.clear()
            try:
                async with asyncio.timeout(1.0):
                    await self._wake.wait()
            except TimeoutError:
                pass
        return []

    async def settle(self, batch: Sequence[Settlement]) -> Sequence[TransportError | None]:
        if self.faults:
            raise self.faults.pop(0)
        await asyncio.sleep(self.slow)
        outcomes: list[TransportError | None] = []
        for s in batch:
            assert s.verdict is Verdict.ACK
            assert len(s.note) <= self.capabilities.note
            place = self.lanes.get(s.delivery.lane)
            if place is None:
                outcomes.append(Lost("the partition is somebody else's"))
                continue
            partition = self._log.partitions[place[0]]
            token: Any = s.delivery.token
            partition.committed, partition.note = token[-1] + 1, s.note
            partition.commits.append(token[-1] + 1)
            outcomes.append(None)
        return outcomes

    async def assign(self, topics: Mapping[str, Fence | None]) -> None: ...

    def note(self, lane: str) -> str:
        place = self.lanes.get(lane)
        return "" if place is None else self._log.partitions[place[0]].note

    def headers(self, delivery: Delivery) -> Headers:
        return []

    def position(self, delivery: Delivery) -> str:
        token: Any = delivery.token
        return str(token[-1])

    def time(self, delivery: Delivery) -> float:
        return 1.0

    async def close(self) -> None:
        self._closed = True
        self.wake()


class Group(Log):
    """A log whose members own their partitions until an instant that the test decides."""

    def open(self, revoked: Callable[..., Awaitable[None]]) -> LogSource:
        return Member(self, revoked)


class Member(LogSource):
    """A source with an end: `valid_until`."""

    valid_until = math.inf


class UpLink:
    """A connection that is there."""

    def __init__(self) -> None:
        self.downs: list[BaseException] = []

    def down(self, error: BaseException) -> None:
        self.downs.append(error)

    async def wait(self) -> None:
        await asyncio.sleep(0.1 if self.downs else 0)


class Host:
    """What a consumer needs of its bus."""

    def __init__(self, transport: Any) -> None:
        self.name, self.transport = "app", transport
        self.link: Any = UpLink()
        self.clock = LoopClock()
        self.events: Counter[str] = Counter()
        self.letters: list[Outgoing] = []
        self.left_alone = False

    async def emit(self, out: Outgoing, timeout: float | None = None) -> None:
        self.letters.append(out)

    def count(self, event: str, topic: str, group: str | None, n: int) -> None:
        self.events[event] += n

    def buried(self, message: Message[Any], topic: str, group: str) -> None: ...
    async def reply(self, message: Message[Any], value: object, failure: str | None) -> None: ...

    def physical(self, name: str) -> str:
        return name

    def abandoned(self) -> None:
        self.left_alone = True


class Report:
    """What a settler tells."""

    def __init__(self) -> None:
        self.acknowledged = 0
        self.gone: list[Hashable] = []

    def handled(self, n: int) -> None:
        self.acknowledged += n

    def lost(self, tokens: Sequence[Hashable]) -> None:
        self.gone += tokens

    def settled(self) -> None: ...


def program(handle: Handler, order: Order = Order.KEY, **knobs: Any) -> Program:
    """Raw bytes of the topic "t" for the group "g"."""
    route = Route(schema=bytes, content_type="application/octet-stream", handle=handle)
    return Program(
        topic="t", group="g", settings=Settings(**knobs), order=order, physical=["t"], physical_group="g", leased=None,
        dead_letters="graves", routes={None: route}, default_type="t",
    )  # fmt: skip
