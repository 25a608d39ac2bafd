"""What members of a group may see: whatever they do, each message comes in its place and is settled once."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple, Protocol

from hypothesis import strategies as st

from switchgear.driver import Order, Verdict

KEYS = (b"a", b"a", b"b", None)
SEND = st.tuples(st.just("send"), st.sampled_from(KEYS), st.sampled_from([1, 2, 3, 20]))
RECEIVE = st.tuples(st.just("receive"), st.integers(0, 1), st.sampled_from([1, 2, 3, 8, 40]))
SETTLE = st.tuples(st.just("settle"), st.integers(0, 1), st.sampled_from(list(Verdict)), st.sampled_from([1, 2, 9, 30]))
REOPEN = st.tuples(st.just("reopen"), st.integers(0, 1))
EXPIRE = st.tuples(st.just("expire"))
STEP = st.sampled_from([SEND, SEND, RECEIVE, RECEIVE, RECEIVE, SETTLE, SETTLE, SETTLE, REOPEN, EXPIRE]).flatmap(
    lambda s: s
)


class Got(NamedTuple):
    """One delivery."""

    token: int
    number: int
    key: bytes | None
    deliveries: int
    fence: int


class Subject(Protocol):
    """What is tested: a group with two members."""

    def send(self, body: bytes, key: bytes | None) -> None: ...
    def receive(self, who: int, limit: int) -> list[Got]: ...
    def settle(self, who: int, verdict: Verdict, got: list[Got]) -> list[bool]: ...
    def reopen(self, who: int) -> None: ...
    def expire(self) -> None: ...
    def check(self) -> None: ...


class Model:
    """Plays steps on a subject and compares."""

    def __init__(self, subject: Subject, order: Order) -> None:
        self.subject, self.order = subject, order
        self.held: list[dict[int, Got]] = [{}, {}]
        self.open: dict[int, bytes | None] = {}  # not acknowledged: number and key
        self.attempts: dict[int, int] = defaultdict(lambda: 1)
        self.fences: dict[bytes | None, tuple[int, int]] = {}
        self.sent = 0

    def play(self, steps: list[tuple[object, ...]]) -> None:
        for step in steps:
            match step:
                case ("send", (bytes() | None) as key, int(count)):
                    for _ in range(count):
                        self.subject.send(str(self.sent).encode(), key)
                        self.open[self.sent] = key
                        self.sent += 1
                case ("receive", int(who), int(limit)):
                    self.receive(who, limit)
                case ("settle", int(who), Verdict() as verdict, int(count)):
                    self.settle(who, verdict, list(self.held[who].values())[:count])
                case ("reopen", int(who)):
                    self.subject.reopen(who)
                    self.held[who].clear()
                case ("expire",):
                    self.subject.expire()
                    self.expired()
                case _:
                    raise AssertionError(step)
            self.subject.check()
        rounds = 0
        while self.open:
            for who in range(2):
                self.settle(who, Verdict.ACK, list(self.held[who].values()))
                self.receive(who, 7)
            rounds += 1
            assert rounds <= 2 * self.sent + 2, f"{len(self.open)} are never handed out"

    def expired(self) -> None:
        """Every lease has ended; what was held may go to anybody, and settling it is only sometimes refused."""
        for held in self.held:
            held.clear()

    def receive(self, who: int, limit: int) -> None:
        got = self.subject.receive(who, limit)
        assert len(got) <= limit
        for g in got:
            self.check(who, g)
            self.held[who][g.token] = g

    def check(self, who: int, g: Got) -> None:
        assert g.number in self.open, "handed out after its acknowledgement, or never sent"
        assert all(g.token not in held for held in self.held), "handed out twice"
        assert g.deliveries == self.attempts[g.number]
        if self.order is Order.NONE or (self.order is Order.KEY and g.key is None):
            return
        lane = g.key if self.order is Order.KEY else b""
        theirs = self.held[1 - who].values()
        assert not [x for x in theirs if self.same(x.key, g.key)], "of this key the other member has something"
        mine = {x.number for x in self.held[who].values()}
        older = {n for n, key in self.open.items() if n < g.number and self.same(key, g.key)}
        assert older <= mine, "something older of its key was passed over"
        owner, fence = self.fences.get(lane, (who, 0))
        assert g.fence > 0
        assert g.fence > fence if owner != who else g.fence >= fence
        self.fences[lane] = who, g.fence

    def same(self, one: bytes | None, other: bytes | None) -> bool:
        return self.order is Order.TOTAL or (one is not None and one == other)

    def settle(self, who: int, verdict: Verdict, got: list[Got]) -> None:
        if not got:
            return
        assert self.subject.settle(who, verdict, got) == [True] * len(got)
        for g in got:
            if verdict is not Verdict.EXTEND:
                del self.held[who][g.token]
            if verdict is Verdict.ACK:
                del self.open[g.number]
            if verdict is Verdict.RETRY:
                self.attempts[g.number] += 1
        if verdict is not Verdict.EXTEND:
            assert self.subject.settle(who, verdict, got) == [False] * len(got)
