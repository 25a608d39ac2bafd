"""The claim rule in SQL against the same model as memory's, on a database without threads."""

from __future__ import annotations

import sqlite3

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from switchgear.driver import Order, Verdict
from switchgear_sqlite import claims, schema, seats, store
from switchgear_sqlite.claims import Seat
from switchgear_sqlite.schema import NEVER
from tests.support.claim_model import STEP, Got, Model

LEASE = 30.0


class Tables:
    """Two members of a group, and time that stands still until a lease is to end."""

    def __init__(self, order: Order) -> None:
        self.db = sqlite3.connect(":memory:", isolation_level=None)
        schema.prepare(self.db, "model")
        self.topic = schema.create_topic(self.db, "orders")
        self.group = seats.create_group(self.db, self.topic, "g", order, "new")
        self.order = order
        self.owners = [1, 2]
        self.now = 1_700_000_000.0

    def seat(self, who: int) -> Seat:
        return Seat("orders", self.topic, self.group, self.owners[who], self.order)

    def send(self, body: bytes, key: bytes | None) -> None:
        store.insert(self.db, self.topic, [(self.now, key, None, None, None, 0, body)])

    def receive(self, who: int, limit: int) -> list[Got]:
        taken, fence = claims.claim(self.db, self.seat(who), limit, LEASE, self.now)
        return [Got(id, int(body), key, attempts, fence) for id, attempts, key, _, _, body, _, _ in taken]

    def settle(self, who: int, verdict: Verdict, got: list[Got]) -> list[bool]:
        items = [(g.token, g.key, verdict, LEASE if verdict is Verdict.EXTEND else 0.0) for g in got]
        lost, _ = claims.settle(self.db, self.seat(who), items, self.now)
        return [g.token not in lost for g in got]

    def reopen(self, who: int) -> None:
        seats.leave(self.db, [self.seat(who)])
        self.owners[who] = max(self.owners) + 1

    def expire(self) -> None:
        self.now += LEASE + 1

    def check(self) -> None:
        """What waits of a key, while nothing of it is in flight, can be found."""
        lost = self.db.execute(
            "SELECT key FROM sg_flight WHERE grp = ? AND at = ? GROUP BY key HAVING key NOT IN "
            "(SELECT key FROM sg_flight WHERE grp = ? AND at < ? AND key IS NOT NULL)",
            (self.group, NEVER, self.group, NEVER),
        ).fetchall()
        assert lost == [], "parked behind nothing"


@pytest.mark.parametrize("order", list(Order))
@settings(max_examples=300, deadline=None)
@given(steps=st.lists(STEP, min_size=5, max_size=80))
def test_members_against_a_model(order: Order, steps: list[tuple[object, ...]]) -> None:
    Model(Tables(order), order).play(steps)
