"""Groups: each sees what was sent since it is there, or since where it was moved; its members share it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import AsyncExitStack
from functools import partial

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from switchgear import Topic
from switchgear.driver import Delivery, Seekable, Transport
from switchgear.errors import NotFound, Refused
from switchgear_conformance.context import Context
from switchgear_conformance.member import PATIENCE, Member, out

from .play import Program, program, step

GROUPS = 2
LEASE = 30.0  # seconds: the default


def groups(c: Context) -> SearchStrategy[Program]:
    """Programs in which members of two groups come and go, and groups are moved while nobody reads."""
    virtual = c.harness.virtual
    which, some = st.integers(0, GROUPS - 1), st.sampled_from([1, 2, 5, 40])
    send, read = step("send", st.integers(1, 20 if virtual else 5)), step("read", which, some)
    to = st.sampled_from(["earliest", "earliest", "new", 0, 3])
    life = [step("join", which), step("join", which), step("leave", which), step("leave", which)]
    moves = [step("seek", which, to), step("move", which, to), step("move", which, to)]
    return program(
        send, send, read, read, step("hold", which, some), *life, *moves, first=step("open"), size=40 if virtual else 15
    )


class Group:
    """What is known of one group."""

    def __init__(self) -> None:
        self.exists = False
        self.members: list[Member] = []
        self.held: dict[int, tuple[Member, Delivery]] = {}
        self.waiting: set[int] = set()  # not settled, or to be read again


class Groups:
    """Two groups on the bare driver, and a third that keeps the topic by reading nothing."""

    def __init__(self, context: Context) -> None:
        self.c = context
        self.groups = [Group() for _ in range(GROUPS)]
        self.positions: dict[int, str] = {}
        self.sent = 0

    async def open(self) -> None:
        """Begin."""
        self.transport: Transport = await self.c.open()
        self.keeper = await self.c.join(self.transport, self.c.name(), group="keeper")

    async def send(self, count: int) -> None:
        """Store so many messages."""
        numbers = range(self.sent, self.sent + count)
        self.sent += count
        await self.c.stored(self.transport, *(out(self.c.name(), str(n)) for n in numbers))
        for g in self.groups:
            if g.exists:
                g.waiting.update(numbers)

    async def join(self, which: int) -> None:
        """One member more, up to two."""
        g = self.groups[which]
        if len(g.members) == 2:
            return

        async def revoked(lanes: Collection[str], lost: bool) -> None:
            g.held = {n: (m, d) for n, (m, d) in g.held.items() if m is not joined or d.lane not in lanes}

        joined = await self.c.join(self.transport, self.c.name(), group=f"group{which}", revoked=revoked)
        g.members.append(joined)
        g.exists = True

    async def leave(self, which: int) -> None:
        """The member that is longest there leaves; what it holds goes back."""
        g = self.groups[which]
        if g.members:
            m = g.members.pop(0)
            await m.close()
            g.held = {n: (holder, d) for n, (holder, d) in g.held.items() if holder is not m}

    async def read(self, which: int, limit: int) -> None:
        """A member receives once, and settles all that it has."""
        g = self.groups[which]
        await self.hold(which, limit)
        if g.members:
            mine = {n: d for n, (holder, d) in g.held.items() if holder is g.members[-1]}
            await g.members[-1].settle(mine.values())
            g.waiting -= set(mine)
            g.held = {n: both for n, both in g.held.items() if n not in mine}

    async def hold(self, which: int, limit: int) -> None:
        """A member receives once; the next time it is the other's turn."""
        g = self.groups[which]
        if not g.members or (not self.c.virtual and not g.waiting - set(g.held)):
            return
        g.members.append(m := g.members.pop(0))
        for d in await m.receive(limit):
            number = int(d.body or b"")
            assert number in g.waiting, (
                f"group {which} was handed message {number}, and waits for {sorted(g.waiting)[:10]} alone: it was sent "
                "before the group was there or moved, or it is settled"
            )
            assert number not in g.held, f"message {number} was handed out while another member has it"
            g.held[number] = m, d
            self.positions[number] = m.source.position(d)

    async def seek(self, which: int, to: str | int) -> None:
        """Move the group to the earliest message, to the end, or to a message of which the position is known."""
        if not isinstance(self.transport, Seekable):
            return
        g = self.groups[which]
        if isinstance(to, int) and (to not in self.positions):
            return
        target = self.positions[to] if isinstance(to, int) else to
        name = f"{self.c.namespace}group{which}"
        try:
            await self.transport.seek(self.c.name(), name, target)
        except NotFound:
            assert not g.exists, "seek says that there is no such group, and it has been joined"
            return
        except Refused:
            assert g.members, f"seek to {to!r} was refused, and nobody reads in the group"
            return
        assert g.exists, "seek moved a group that was never joined"
        assert not g.members, "seek moved a group that is being read"
        first = self.sent if to == "new" else to if isinstance(to, int) else 0
        g.waiting = set(range(first, self.sent))

    async def move(self, which: int, to: str | int) -> None:
        """Stop reading, then move the group."""
        await self._stop(which)
        await self.seek(which, to)

    async def finish(self) -> None:
        """Every group that is there gets what it waits for, and nothing else."""
        for which in range(GROUPS):
            await self._stop(which)
            await self.join(which)
        await self.send(1)  # behind it nothing may come
        for which, g in enumerate(self.groups):
            ends = self.c.time() + PATIENCE
            while g.waiting:
                assert self.c.time() < ends, f"group {which} is never handed messages {sorted(g.waiting)[:10]}"
                await self.read(which, 100)
            if self.c.virtual:
                await g.members[0].nothing(1.0 if which else LEASE + 1)
            await self.leave(which)
        await self.keeper.close()

    async def _stop(self, which: int) -> None:
        while self.groups[which].members:
            await self.leave(which)


# ---- through Bus


def crews(c: Context) -> SearchStrategy[Program]:
    """Programs in which buses that serve two groups start and stop."""
    which, virtual = st.integers(0, GROUPS - 1), c.harness.virtual
    publish = step("publish", st.integers(1, 20 if virtual else 5))
    start, stop = step("start", which), step("stop", which)
    return program(publish, publish, start, start, stop, first=step("open"), size=30 if virtual else 8)


class Crews:
    """Up to two buses a group, and one that publishes."""

    def __init__(self, context: Context) -> None:
        self.c = context
        self.topic = Topic("orders", int)
        self.publisher = context.bus()
        self.crews: list[list[AsyncExitStack]] = [[] for _ in range(GROUPS)]
        self.due: list[set[int]] = [set() for _ in range(GROUPS)]
        self.there: set[int] = set()
        self.logs = [context.log() for _ in range(GROUPS)]
        self.sent = 0
        context.closed(self._close)

    async def open(self) -> None:
        """Begin."""
        await self.c.opened(self.publisher)

    async def publish(self, count: int) -> None:
        """So many messages, for the groups that are there."""
        numbers = range(self.sent, self.sent + count)
        self.sent += count
        await self.publisher.publish_many(self.topic, numbers)
        for which in self.there:
            self.due[which].update(numbers)

    async def start(self, which: int) -> None:
        """One bus more, up to two."""
        if len(self.crews[which]) == 2:
            return
        bus = self.c.bus()

        @bus.subscribe(self.topic, group=f"group{which}")
        async def handle(number: int) -> None:
            self.logs[which].add(number)

        stack = AsyncExitStack()
        self.crews[which].append(stack)
        await stack.enter_async_context(bus.serving())
        self.there.add(which)

    async def stop(self, which: int) -> None:
        """The bus that is longest there drains and closes."""
        if self.crews[which]:
            await self.crews[which].pop(0).aclose()

    async def finish(self) -> None:
        """Every group has handled what was published since it is there, each message once."""
        for which in sorted(self.there):
            if not self.crews[which]:
                await self.start(which)
        await self.publish(1)
        for which in sorted(self.there):
            log, due = self.logs[which], self.due[which]
            await log.until(partial(_all, due, log.items), f"group {which} handles {len(due)} messages")
        if self.c.virtual:
            await self.logs[0].quiet(LEASE + 1)
        await self._close()
        for which in sorted(self.there):
            found, due = self.logs[which].items, self.due[which]
            early = sorted(set(found) - due)
            assert not early, f"group {which} handled what was published before it was there: {early[:5]}"
            twice = sorted({n for n in found if found.count(n) > 1})
            assert not twice, f"group {which} handled messages twice, and nobody crashed: {twice[:5]}"

    async def _close(self) -> None:
        for which in range(GROUPS):
            while self.crews[which]:
                await self.stop(which)
        await self.publisher.close()


def _all(due: set[int], found: Iterable[int]) -> bool:
    return due <= set(found)
