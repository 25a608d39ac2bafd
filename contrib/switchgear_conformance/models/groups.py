"""Groups: each sees what was sent since it is there, or since where it was moved; its members share it."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from switchgear.driver import Delivery, Seekable, Transport
from switchgear.errors import NotFound, Refused
from switchgear_conformance.context import Context
from switchgear_conformance.member import PATIENCE, Member, out

from .play import Program, program, step

GROUPS = 2


def groups(c: Context) -> SearchStrategy[Program]:
    """Programs in which members of two groups come and go, and groups are moved while nobody reads."""
    virtual = c.harness.virtual
    which, some = st.integers(0, GROUPS - 1), st.sampled_from([1, 2, 5, 40])
    send, read = step("send", st.integers(1, 20 if virtual else 5)), step("read", which, some)
    seek = step("seek", which, st.sampled_from(["earliest", "new", 0, 3]))
    return program(
        send, send, step("join", which), step("join", which), read, read, step("hold", which, some),
        step("leave", which), step("leave", which), seek, first=step("open"), size=40 if virtual else 15,
    )  # fmt: skip


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
        if len(g.members) < 2:
            g.members.append(await self.c.join(self.transport, self.c.name(), group=f"group{which}"))
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

    async def finish(self) -> None:
        """Every group that is there gets what it waits for, and nothing else."""
        for which, g in enumerate(self.groups):
            while g.members:
                await self.leave(which)
            await self.join(which)
        await self.send(1)  # behind it nothing may come
        for which, g in enumerate(self.groups):
            ends = self.c.time() + PATIENCE
            while g.waiting:
                assert self.c.time() < ends, f"group {which} is never handed messages {sorted(g.waiting)[:10]}"
                await self.read(which, 100)
            if self.c.virtual:
                await g.members[0].nothing(40.0)
            await self.leave(which)
        await self.keeper.close()
