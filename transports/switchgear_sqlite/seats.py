"""Groups and their members: who has a seat, and in what order the group reads."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable

from switchgear.driver import Order, Start, Subscription
from switchgear.errors import Refused

from . import store
from .claims import Seat
from .schema import NEVER, create_topic

ALIVE = 30.0  # seconds that a member counts as present after a sign of life


def join(db: sqlite3.Connection, subscription: Subscription, topic: str, owner: int) -> Seat:
    """Take a seat; a new group begins. Raises Refused where the group is being read in another order."""
    assert subscription.group is not None
    number = create_topic(db, topic)
    group = create_group(db, number, subscription.group, subscription.order, subscription.start)
    seat = Seat(topic, number, group, owner, subscription.order)
    (order,) = db.execute("SELECT ordering FROM sg_groups WHERE id = ?", (group,)).fetchone()
    if order != subscription.order:
        if members(db, group):
            raise Refused(
                f"group {subscription.group!r} of topic {topic!r} is being read with order "
                f"{Order(order).name.lower()}, not {subscription.order.name.lower()}: one group, one order"
            )
        reorder(db, seat)
    present(db, (seat,))
    return seat


def create_group(db: sqlite3.Connection, topic: int, name: str, order: Order, start: Start) -> int:
    """The group's number; a new one begins at `start`."""
    found = db.execute("SELECT id FROM sg_groups WHERE topic = ? AND name = ?", (topic, name)).fetchone()
    if found is not None:
        return int(found[0])
    cursor = store.before(db, topic, start)
    group = db.execute(
        "INSERT INTO sg_groups(topic, name, ordering, cursor) VALUES (?, ?, ?, ?)", (topic, name, int(order), cursor)
    ).lastrowid
    assert group is not None
    return group


def reorder(db: sqlite3.Connection, seat: Seat) -> None:
    """Keep another order from now on: what is in flight gets the keys that it is kept by."""
    keys = {
        Order.NONE: "NULL",
        Order.KEY: f"(SELECT key FROM sg_m{seat.number} m WHERE m.id = sg_flight.id)",  # noqa: S608
        Order.TOTAL: "x''",
    }
    change = f"key = {keys[seat.order]}, at = CASE at WHEN ? THEN 0 ELSE at END"
    db.execute(f"UPDATE sg_flight SET {change} WHERE grp = ?", (NEVER, seat.group))  # noqa: S608
    db.execute("UPDATE sg_groups SET ordering = ? WHERE id = ?", (int(seat.order), seat.group))


def present(db: sqlite3.Connection, seats: Iterable[Seat]) -> None:
    """A sign of life."""
    now = time.time()
    for seat in seats:
        db.execute("DELETE FROM sg_members WHERE grp = ? AND until <= ?", (seat.group, now))
        db.execute("INSERT OR REPLACE INTO sg_members VALUES (?, ?, ?)", (seat.group, seat.owner, now + ALIVE))


def members(db: sqlite3.Connection, group: int) -> int:
    """How many members there are."""
    (count,) = db.execute(
        "SELECT count(*) FROM sg_members WHERE grp = ? AND until > ?", (group, time.time())
    ).fetchone()
    return int(count)


def leave(db: sqlite3.Connection, seats: Iterable[Seat]) -> None:
    """Give the seats up and everything that is unsettled back."""
    for seat in seats:
        mine = (seat.group, seat.owner)
        db.execute("UPDATE sg_flight SET owner = NULL, at = 0 WHERE grp = ? AND owner = ?", mine)
        db.execute("DELETE FROM sg_members WHERE grp = ? AND owner = ?", mine)
