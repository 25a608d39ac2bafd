"""The partitions that a member has: lanes, each for one assignment, and their watermarks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TypeAlias, cast

import msgspec

from switchgear.driver import Delivery, Settlement
from switchgear.errors import Lost, TransportError

from .cluster import Committed, TopicPartition, lane

Commit: TypeAlias = Callable[[Mapping[TopicPartition, Committed]], Awaitable[Mapping[TopicPartition, TransportError]]]
"""Commit positions; what was refused, and why."""


class Lane(msgspec.Struct):
    """A partition for as long as it is assigned."""

    name: str
    tp: TopicPartition
    place: str
    offset: int
    """What is committed."""
    note: str
    """What is committed with it."""


class Lanes:
    """All that is assigned to a member."""

    def __init__(self, at: str) -> None:
        self._at = at
        self.by_name: dict[str, Lane] = {}
        self.current: dict[TopicPartition, Lane] = {}
        self.lock = asyncio.Lock()
        """Held while a commit is under way: they are made one after the other."""
        self._epoch = 0
        """How often partitions were assigned."""

    def __len__(self) -> int:
        return len(self.by_name)

    def open(self, begun: Mapping[TopicPartition, Committed]) -> None:
        """These are ours from now on."""
        self._epoch += 1
        for tp, committed in begun.items():
            opened = Lane(f"{lane(tp)}#{self._epoch}", tp, lane(tp), committed.offset, committed.note)
            self.by_name[opened.name] = self.current[tp] = opened

    def drop(self, tps: Iterable[TopicPartition]) -> None:
        """These are ours no more."""
        for tp in tps:
            if (gone := self.current.pop(tp, None)) is not None:
                del self.by_name[gone.name]

    def forget(self) -> None:
        """None is ours any more."""
        self.by_name.clear()
        self.current.clear()

    def note(self, name: str) -> str:
        """What was committed with the lane's position."""
        found = self.by_name.get(name)
        return found.note if found is not None else ""

    def watermarks(
        self, batch: Sequence[Settlement], outcomes: list[TransportError | None]
    ) -> dict[TopicPartition, Committed]:
        """The highest position of each lane; what is of a lane that is not ours gets `Lost` as its outcome."""
        offsets: dict[TopicPartition, Committed] = {}
        for n, settlement in enumerate(batch):
            found = self.by_name.get(settlement.delivery.lane)
            if found is None:
                outcomes[n] = Lost(f"{self._at}: {settlement.delivery.lane} is no longer assigned to us")
                continue
            before = offsets.get(found.tp)
            offset = offset_of(settlement.delivery) + 1
            if before is None or offset >= before.offset:
                offsets[found.tp] = Committed(offset, settlement.note)
        return offsets

    async def settle(self, batch: Sequence[Settlement], commit: Commit) -> Sequence[TransportError | None]:
        """Commit watermarks of what is ours; Lost for all else."""
        outcomes: list[TransportError | None] = [None] * len(batch)
        async with self.lock:
            offsets = self.watermarks(batch, outcomes)
            if not offsets:
                return outcomes
            refused = await commit(offsets)
            for n, settlement in enumerate(batch):
                if outcomes[n] is not None:
                    continue
                found = self.by_name.get(settlement.delivery.lane)
                if found is None:
                    outcomes[n] = Lost(f"{self._at}: {settlement.delivery.lane} was taken from us")
                elif (error := refused.get(found.tp)) is not None:
                    outcomes[n] = error
                else:
                    found.offset, found.note = offsets[found.tp]
        return outcomes

    async def confirm(self, commit: Commit) -> bool:
        """Whether the group has us as a member: it takes once more, of one lane, what is committed."""
        async with self.lock:
            for one in self.current.values():
                return not await commit({one.tp: Committed(one.offset, one.note)})
        return False

    @asynccontextmanager
    async def together(self, batch: Sequence[Settlement]) -> AsyncGenerator[Mapping[TopicPartition, Committed]]:
        """The watermarks, to be committed inside, all of them. Raises Lost where one is of a lane that is not ours."""
        outcomes: list[TransportError | None] = [None] * len(batch)
        async with self.lock:
            offsets = self.watermarks(batch, outcomes)
            for outcome in outcomes:
                if outcome is not None:
                    raise outcome
            ours = {tp: self.current[tp] for tp in offsets}
            yield offsets
            for tp, one in ours.items():
                one.offset, one.note = offsets[tp]


def offset_of(delivery: Delivery) -> int:
    """The delivery's offset."""
    _, offset = cast("tuple[str, int]", delivery.token)
    return offset
