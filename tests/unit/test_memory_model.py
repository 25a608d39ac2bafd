"""The claim rule of the memory transport against the model."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from switchgear.clock import Timer
from switchgear.driver import Delivery, Order, Outgoing, Verdict
from switchgear_memory.agenda import Agenda
from switchgear_memory.group import Group, Stored
from tests.support.claim_model import STEP, Got, Model

LEASE = 30.0


class Still:
    """A clock whose timers nobody needs."""

    def now(self) -> float:
        return 0.0

    monotonic = now

    def call_at(self, when: float, callback: object) -> Timer:
        raise AssertionError("nothing is retried later here")

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("nothing here sleeps")


class Holder:
    """A member, as a group sees it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.leased: dict[object, Delivery] = {}

    def wake(self) -> None: ...


class Queue:
    """Two members of a group, and time that stands still until a lease is to end."""

    def __init__(self, order: Order) -> None:
        clock = Still()
        self.group = Group("orders", "g", order, Agenda(clock, clock.now))
        self.members = [Holder(1), Holder(2)]
        self.group.members = {1: self.members[0], 2: self.members[1]}
        self.position, self.now = 0, 1000.0

    def send(self, body: bytes, key: bytes | None) -> None:
        self.position += 1
        self.group.ready.append(Stored(self.position, Outgoing(topic="orders", body=body, key=key), 0.0))

    def receive(self, who: int, limit: int) -> list[Got]:
        if self.group.reap_at <= self.now:
            self.group.reap(self.now)
        out: list[Delivery] = []
        self.group.take(self.members[who], limit, self.now + LEASE, out)
        return [got(d) for d in out]

    def settle(self, who: int, verdict: Verdict, deliveries: list[Got]) -> list[bool]:
        leased, outcomes = self.members[who].leased, []
        for g in deliveries:
            d = leased.pop(g.token, None)
            outcomes.append(d is not None)
            if d is None:
                continue
            if verdict is Verdict.ACK:
                self.group.settled(d)
            elif verdict is Verdict.RETRY:
                self.group.retried(d, None)
            elif verdict is Verdict.RELEASE:
                self.group.returned([d])
            else:
                leased[g.token] = d
        return outcomes

    def reopen(self, who: int) -> None:
        old = self.members[who]
        del self.group.members[old.number]
        self.group.returned(old.leased.values())
        self.members[who] = Holder(max(m.number for m in self.members) + 1)
        self.group.members[self.members[who].number] = self.members[who]

    def expire(self) -> None:
        self.now += LEASE + 1

    def check(self) -> None:
        """The books agree: what is parked, and what nobody has settled."""
        group = self.group
        assert group.parked == sum(len(hold.waiting or ()) for hold in group._holds.values())
        assert len(group) == len(list(group.unsettled()))
        for hold in group._holds.values():
            assert hold.held or hold.paused or hold.waiting


def got(d: Delivery) -> Got:
    assert isinstance(d.token, int)
    assert d.deliveries is not None
    return Got(d.token, int(d.body or b""), d.key, d.deliveries, d.fence)


@pytest.mark.parametrize("order", list(Order))
@settings(max_examples=300, deadline=None)
@given(steps=st.lists(STEP, min_size=5, max_size=80))
def test_members_against_a_model(order: Order, steps: list[tuple[object, ...]]) -> None:
    Model(Queue(order), order).play(steps)
