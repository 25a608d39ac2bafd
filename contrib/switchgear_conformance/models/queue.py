"""A queue: whatever its members do, each message comes in its place, and never again once it is acknowledged."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection
from typing import Literal, NamedTuple

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from switchgear.driver import Delivery, Order, Settling, Transport, Verdict
from switchgear.errors import Lost
from switchgear_conformance.context import Context
from switchgear_conformance.member import ACK, EXTEND, PATIENCE, RELEASE, RETRY, Member, out

from .play import Program, program, step

Keeps = Literal["NONE", "KEY", "TOTAL"]
LEASE = 30.0  # seconds; where time is real no program is to outlast it


def queues(c: Context, *orders: Keeps) -> SearchStrategy[Program]:
    """Programs of two members of a group that read in one of these orders."""
    virtual, offered = c.harness.virtual, c.capabilities
    one_by_one = offered.settling is Settling.INDIVIDUAL
    who, some = st.integers(0, 1), st.sampled_from([1, 2, 9, 30])
    last = st.booleans() if one_by_one else st.just(False)
    send = step("send", st.sampled_from([b"a", b"b", None]), st.sampled_from([1, 2, 3, 20] if virtual else [1, 2, 5]))
    receive = step("receive", who, st.sampled_from([1, 2, 3, 8, 40]))
    settling = [step("ack", who, some, last)]
    if offered.retry_delay is not None:
        settling.append(step("retry", who, some, last))
    if one_by_one:
        settling.append(step("release", who, some, last))
    if offered.lease_cap:
        settling.append(step("extend", who, some, last))
    life = [step("reopen", who), step("crash", who)]
    if offered.lease_cap and virtual:
        life.append(step("expire"))
    return program(
        *[send] * 4, *[receive] * 6, *settling, *settling, *life,
        first=step("open", st.sampled_from(orders)), size=60 if virtual else 15,
    )  # fmt: skip


class Held(NamedTuple):
    """What a member has: the message's number, and until when it is surely its own."""

    number: int
    delivery: Delivery
    until: float


class Queue:
    """Two members of one group, each with a connection of its own, and what is known of the messages."""

    def __init__(self, context: Context) -> None:
        self.c = context
        self.order = Order.NONE
        self.members: list[Member] = []
        self.held: list[dict[object, Held]] = [{}, {}]
        self.waiting: dict[int, bytes | None] = {}  # not acknowledged: number and key
        self.unsure: set[int] = set()  # acknowledged after the lease had ended: may come again, or not
        self.handed: Counter[int] = Counter()
        self.failed: Counter[int] = Counter()
        self.fences: dict[bytes | None, tuple[int, int]] = {}
        self.sent = 0

    # ---- steps

    async def open(self, order: Keeps) -> None:
        """Two members join, to read in this order."""
        self.order = Order[order]
        self._keeper = await self.c.open()  # a broker that lives with its users goes on
        self.members = [await self._join(who, await self.c.open()) for who in range(2)]

    async def send(self, key: bytes | None, count: int) -> None:
        """Store `count` messages."""
        numbers = range(self.sent, self.sent + count)
        self.sent += count
        await self.c.stored(self._keeper, *(out(self.c.name(), str(n), key) for n in numbers))
        self.waiting |= dict.fromkeys(numbers, key)

    async def receive(self, who: int, limit: int) -> None:
        """Receive once; not where nothing can come and waiting for it takes time."""
        if not self.c.virtual and not self._may_get(who):
            return
        began = self.c.time()
        found = await self.members[who].receive(limit)
        assert len(found) <= limit, f"receive({limit}) handed out {len(found)}"
        for d in found:
            self._check(who, d)
            self.held[who][d.token] = Held(int(d.body or b""), d, began + LEASE)

    async def ack(self, who: int, count: int, last: bool = False) -> None:
        """Acknowledge the first or last `count` that the member holds."""
        await self._settle(who, ACK, count, last)

    async def retry(self, who: int, count: int, last: bool = False) -> None:
        """Say RETRY, at once."""
        await self._settle(who, RETRY, count, last)

    async def release(self, who: int, count: int, last: bool = False) -> None:
        """Give back unhandled."""
        await self._settle(who, RELEASE, count, last)

    async def extend(self, who: int, count: int, last: bool = False) -> None:
        """Ask for a whole lease from now."""
        await self._settle(who, EXTEND, count, last)

    async def reopen(self, who: int) -> None:
        """Close the source; what it holds goes back."""
        await self.members[who].close()
        await self._rejoin(who, self.members[who].transport)

    async def crash(self, who: int) -> None:
        """Close the connection with all that is open."""
        await self.members[who].transport.close()
        await self._rejoin(who, await self.c.open())

    async def expire(self) -> None:
        """Wait until every lease has ended."""
        await asyncio.sleep(LEASE + 1)

    async def finish(self) -> None:
        """Settle everything; it must all come, and then nothing more."""
        progress = self.c.time()
        while self.waiting:
            before = len(self.waiting)
            for who in range(2):
                await self.ack(who, self.sent)
                if self.waiting:
                    await self.receive(who, 7)
            if len(self.waiting) < before:
                progress = self.c.time()
            assert self.c.time() < progress + PATIENCE + self._longest(), (
                f"never handed out (again) within {PATIENCE:g} s: messages {sorted(self.waiting)[:10]}"
            )
        one, other = self.members
        await other.close()
        await self.c.stored(self._keeper, out(self.c.name(), str(self.sent)))  # behind it nothing may come
        self.waiting[self.sent] = None
        while self.waiting:
            assert self.c.time() < progress + 2 * PATIENCE + self._longest(), "a last message was sent and never came"
            await self.receive(0, 7)
            await self.ack(0, self.sent + 1)
        if self.c.virtual:
            await one.nothing(LEASE + 1)
        await one.close()

    # ---- the model

    async def _join(self, who: int, transport: Transport) -> Member:
        async def revoked(lanes: Collection[str], lost: bool) -> None:
            for token in [token for token, h in self.held[who].items() if h.delivery.lane in lanes]:
                del self.held[who][token]

        return await self.c.join(transport, self.c.name(), order=self.order, lease=LEASE, revoked=revoked)

    async def _rejoin(self, who: int, transport: Transport) -> None:
        self.held[who].clear()
        self.members[who] = await self._join(who, transport)

    def _longest(self) -> float:
        """Seconds: a lease may have to end first."""
        return LEASE if any(self.held) else 0.0

    def _together(self, one: bytes | None, other: bytes | None) -> bool:
        if self.order is Order.KEY:
            return one is not None and one == other
        return self.order is Order.TOTAL

    def _ours(self, who: int) -> list[Held]:
        """What is surely still the member's."""
        return [h for h in self.held[who].values() if h.until > self.c.time()]

    def _may_get(self, who: int) -> bool:
        taken = {h.number for held in self.held for h in held.values()}
        theirs = [h.delivery.key for h in self._ours(1 - who)]
        return any(
            n not in taken and not any(self._together(key, other) for other in theirs)
            for n, key in self.waiting.items()
        )

    def _check(self, who: int, d: Delivery) -> None:
        body = (d.body or b"").decode()
        number = int(body) if body.isdigit() else self.sent
        assert number in self.waiting or number < self.sent, f"handed out, and never sent: {d.body!r}"
        assert number in self.waiting or number in self.unsure, f"message {number} came after its acknowledgement"
        mine, theirs = self._ours(who), self._ours(1 - who)
        assert number not in {h.number for h in mine + theirs}, f"message {number} was handed out while somebody has it"
        assert not self.held[who].get(d.token) or self.held[who][d.token].number == number, "a token of two messages"
        self.handed[number] += 1
        self._count(number, d)
        if self.order is Order.NONE or number in self.unsure:
            return
        if self.order is Order.KEY and d.key is None:
            return
        assert not [h for h in theirs if self._together(h.delivery.key, d.key)], (
            f"message {number}: the other member still has one of its key"
        )
        have = {h.number for h in self.held[who].values()}
        passed = {n for n, key in self.waiting.items() if n < number and self._together(key, d.key)} - have
        assert not passed, f"message {number} of key {d.key!r} came before {sorted(passed)[:5]}"
        if self.members[who].cumulative:  # the core counts how often a lane changes hands, in its notes
            return
        lane = d.key if self.order is Order.KEY else b""
        owner, fence = self.fences.get(lane, (who, 0))
        risen = d.fence > fence if owner != who else d.fence >= max(fence, 1)
        assert risen, f"message {number}: fence {d.fence} after {fence}, when its key had changed hands or had none"
        self.fences[lane] = who, d.fence

    def _count(self, number: int, d: Delivery) -> None:
        counting, failed = self.c.capabilities.counting, self.failed[number]
        if counting == "none" or number in self.unsure:
            return
        most = 1 + failed if counting == "exact" else self.handed[number]
        assert d.deliveries is not None and 1 + failed <= d.deliveries <= most, (
            f"message {number}: deliveries={d.deliveries} after {failed} RETRY and {self.handed[number]} hand-outs; "
            f"counting is {counting!r}"
        )

    async def _settle(self, who: int, verdict: Verdict, count: int, last: bool) -> None:
        held, now = list(self.held[who].values()), self.c.time()
        chosen = held[-count:] if last else held[:count]
        if not chosen:
            return
        m = self.members[who]
        outcomes = await m.outcomes((h.delivery for h in chosen), verdict, LEASE if verdict is EXTEND else 0.0)
        if m.cumulative:
            outcomes = [next((o for o in outcomes if o is not None), None)] * len(chosen)  # one a lane
        for h, outcome in zip(chosen, outcomes, strict=True):
            sure = h.until > self.c.time() and h.delivery.token in self.held[who]  # unless its lane went meanwhile
            assert outcome is None or (isinstance(outcome, Lost) and not sure), (
                f"{verdict.name} of message {h.number}, which is the member's: {outcome!r}"
            )
            self._settled(who, h._replace(until=h.until if sure else 0.0), verdict, outcome is None, now)
        if verdict is not EXTEND and not m.cumulative:
            again = await m.outcomes((h.delivery for h in chosen), verdict)
            assert all(o is None or isinstance(o, Lost) for o in again), f"settled twice: {again!r}"

    def _settled(self, who: int, h: Held, verdict: Verdict, done: bool, now: float) -> None:
        if verdict is EXTEND and done:
            self.held[who][h.delivery.token] = h._replace(until=now + LEASE)
            return
        self.held[who].pop(h.delivery.token, None)
        if not h.until:  # the lease had ended, or the lane gone: nobody knows whether the verdict counted
            self.unsure.add(h.number)
        if verdict is ACK and done and (h.until or h.number not in {o.number for o in self._ours(1 - who)}):
            self.waiting.pop(h.number, None)
        if verdict is RETRY:
            self.failed[h.number] += 1
