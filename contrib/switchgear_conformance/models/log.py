"""A log: whoever reads it from the start reads all of it, each key in the order in which it was written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from switchgear import Topic
from switchgear.driver import Browsable, Order, Transport
from switchgear_conformance.context import Context
from switchgear_conformance.member import PATIENCE, Member, out

from .play import Program, program, step

READERS = 3
Written = tuple[str, str]
"""Key and number."""


def logs(c: Context) -> SearchStrategy[Program]:
    """Programs that write, and read by groups that come and go, each from the earliest message on."""
    who, virtual = st.integers(0, READERS - 1), c.harness.virtual
    write = step("write", st.sampled_from("abc"), st.integers(1, 20 if virtual else 5))
    read = step("read", who, st.sampled_from([1, 2, 5, 40]))
    look = step("look", who, st.sampled_from([1, 2, 5, 40]))
    return program(write, write, read, read, look, step("leave", who), first=step("open"), size=40 if virtual else 12)


def check_prefix(log: Iterable[Written], seen: Iterable[Written], ordered: bool) -> None:
    """What a reader has seen was written, once; of each key it is what was written first."""
    written, read = _by_key(log), _by_key(seen)
    for key, numbers in read.items():
        have = written.get(key, [])
        assert set(numbers) <= set(have), f"key {key}: read, and never written: {sorted(set(numbers) - set(have))[:5]}"
        assert len(numbers) == len(set(numbers)), f"key {key}: read twice, the first time acknowledged: {numbers[:40]}"
        if ordered:
            assert numbers == have[: len(numbers)], f"key {key}: read {numbers[:40]}, written {have[:40]}"


def _by_key(items: Iterable[Written]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key, number in items:
        found.setdefault(key, []).append(number)
    return found


class Log:
    """A topic on the bare driver, a group that keeps it by reading nothing, and groups of one reader each."""

    def __init__(self, context: Context) -> None:
        self.c = context
        self.order = min(Order.KEY, context.capabilities.order)
        self.log: list[Written] = []
        self.seen: list[list[Written]] = [[] for _ in range(READERS)]
        self.readers: dict[int, Member] = {}

    async def open(self) -> None:
        """Begin; what the keeper has not settled is kept on every broker."""
        self.transport: Transport = await self.c.open()
        self.keeper = await self.c.join(self.transport, self.c.name(), group="keeper")

    async def write(self, key: str, count: int) -> None:
        """Store so many more messages of a key."""
        new = [(key, str(len(self.log) + i)) for i in range(count)]
        await self.c.stored(self.transport, *(out(self.c.name(), number, key) for key, number in new))
        self.log += new

    async def read(self, who: int, limit: int) -> None:
        """Receive once and acknowledge; the first time from the earliest on."""
        if len(self.seen[who]) == len(self.log) and not self.c.virtual:
            return
        m = await self._reader(who)
        found = await m.receive(limit)
        await m.settle(found)
        self.seen[who] += [((d.key or b"").decode(), (d.body or b"").decode()) for d in found]
        check_prefix(self.log, self.seen[who], self.order is Order.KEY)

    async def look(self, who: int, limit: int) -> None:
        """Receive once, and leave without settling."""
        if len(self.seen[who]) < len(self.log) or self.c.virtual:
            await (await self._reader(who)).receive(limit)
        await self.leave(who)

    async def leave(self, who: int) -> None:
        """Close the reader's source."""
        if (m := self.readers.pop(who, None)) is not None:
            await m.close()

    async def finish(self) -> None:
        """Every reader reads to the end: it has read the log."""
        for who in range(READERS):
            ends = self.c.time() + PATIENCE
            while len(self.seen[who]) < len(self.log):
                missing = set(self.log) - set(self.seen[who])
                assert self.c.time() < ends, f"a group read from the earliest on, and these never came: {_few(missing)}"
                await self.read(who, 100)
            await self.leave(who)
        if isinstance(self.transport, Browsable):
            browsed = [
                ((d.key or b"").decode(), (d.body or b"").decode())
                async for d, _ in self.transport.browse(self.c.name(), "earliest", None)
            ]
            assert sorted(browsed) == sorted(self.log), f"browsing misses {_few(set(self.log) - set(browsed))}"
            check_prefix(self.log, browsed, ordered=True)
        await self.keeper.close()

    async def _reader(self, who: int) -> Member:
        if who not in self.readers:
            self.readers[who] = await self.c.join(
                self.transport, self.c.name(), group=f"reader{who}", start="earliest", order=self.order
            )
        return self.readers[who]


def _few(items: Iterable[Written]) -> list[Written]:
    return sorted(items, key=lambda item: int(item[1]))[:5]


# ---- through Bus


def journals(c: Context) -> SearchStrategy[Program]:
    """Programs that publish, and read by groups that come and go, each from the earliest message on."""
    who = st.integers(0, READERS - 1)
    publish = step("publish", st.sampled_from("abc"), st.integers(1, 5))
    return program(publish, step("read", who, st.integers(1, 9)), first=step("open"), size=20 if c.virtual else 8)


class Journal:
    """An ordered topic, a group that keeps it by reading nothing, and groups of one consumer each."""

    def __init__(self, context: Context) -> None:
        self.c = context
        self.bus = context.bus()
        self.topic = Topic("orders", Mapping[str, str], key=lambda item: item["key"], partitions=2)
        self.log: list[Written] = []
        self.seen: list[list[Written]] = [[] for _ in range(READERS)]

    async def open(self) -> None:
        """Begin; what the keeper has not settled is kept on every broker."""
        await self.c.opened(self.bus)
        async with self.bus.consumer(self.topic, group="keeper"):
            """It has joined, and that is all."""

    async def publish(self, key: str, count: int) -> None:
        """Publish so many more messages of a key."""
        new = [(key, str(len(self.log) + i)) for i in range(count)]
        await self.bus.publish_many(self.topic, [{"key": key, "number": number} for key, number in new])
        self.log += new

    async def read(self, who: int, count: int) -> None:
        """Take up to so many, acknowledge them, and leave."""
        count = min(count, len(self.log) - len(self.seen[who]))
        if count <= 0:
            return
        async with self.bus.consumer(self.topic, group=f"reader{who}", start="earliest", idle=PATIENCE) as messages:
            async for message in messages:
                self.seen[who].append((message.body["key"], message.body["number"]))
                check_prefix(self.log, self.seen[who], ordered=True)
                await message.ack()
                count -= 1
                if not count:
                    return
        missing = set(self.log) - set(self.seen[who])
        raise AssertionError(f"a group read from the earliest on, and these never came: {_few(missing)}")

    async def finish(self) -> None:
        """Every reader reads to the end: it has read the log."""
        for who in range(READERS):
            await self.read(who, len(self.log))
        await self.bus.close()
