"""How a group takes messages and settles them, in the writer's transaction.

A group has a cursor in its topic. What it takes beyond the cursor gets a row in `sg_flight` until it is settled; `at`
says from when on a row may be taken (again): the end of its lease, the time of its retry, 0 for at once. With order, a
key that has deliveries in flight belongs to their owner: others, and beyond a run the owner too, get nothing of it.
What the cursor passes of such a key is parked (`at` = NEVER), so that it is looked at once and not at every claim, and
the oldest of it is woken by the settlement that makes room. So whatever of a key waits while none of it is in flight
has a row whose `at` comes.
"""

# ruff: noqa: S608  (the only names put into statements are the numbers of topics)

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from switchgear.driver import Order, Verdict

from .schema import NEVER
from .store import promote

KEY_RUN, TOTAL_RUN = 16, 256  # deliveries of one key that its owner may have at once
PARKED = 20_000  # rows that a group parks before it waits for its keys
PROMOTE = 500  # due messages moved by one claim
ONE_KEY = b""  # the key of all, in total order

Taken = tuple[int, int, bytes | None, bytes | None, bytes | None, bytes, float, int]
"""id, attempts, key, media, headers, body, time, marked."""
BY_KEY = "sg_flight INDEXED BY sg_flight_key"  # said outright: the planner knows nothing of how many are parked
COLUMNS = "m.key, m.media, m.headers, m.body, m.time, m.marked"


@dataclass(frozen=True, slots=True)
class Seat:
    """A member's place in a group of one topic."""

    topic: str
    number: int
    """The topic's."""
    group: int
    owner: int
    """The member's, random."""
    order: Order

    @property
    def run(self) -> int:
        """Deliveries of one key at once."""
        return TOTAL_RUN if self.order is Order.TOTAL else KEY_RUN


def available(db: sqlite3.Connection, seat: Seat) -> float | None:
    """When there is something to claim, unix seconds (0: now); None when nothing is known to come."""
    (fresh,) = db.execute(
        f"SELECT (SELECT max(id) FROM sg_m{seat.number}) > cursor FROM sg_groups WHERE id = ?", (seat.group,)
    ).fetchone() or (None,)
    if fresh:
        return 0.0
    (at,) = db.execute("SELECT min(at) FROM sg_flight WHERE grp = ?", (seat.group,)).fetchone()
    (due,) = db.execute("SELECT min(due) FROM sg_later WHERE topic = ?", (seat.number,)).fetchone()
    times = [time for time in (at, due) if time is not None and time < NEVER]
    return min(times, default=None)


def report_lost(db: sqlite3.Connection, seat: Seat) -> int:
    """How many unread messages retention has taken from the group since somebody last asked."""
    (lost,) = db.execute("SELECT lost FROM sg_groups WHERE id = ?", (seat.group,)).fetchone() or (0,)
    if lost:
        db.execute("UPDATE sg_groups SET lost = 0 WHERE id = ?", (seat.group,))
    return int(lost)


def claim(db: sqlite3.Connection, seat: Seat, limit: int, lease: float, now: float) -> tuple[list[Taken], int]:
    """Take up to `limit` messages for `lease` seconds, oldest first per key; with them the fence, 0 without order."""
    promote(db, (seat.number,), PROMOTE, now)
    found = db.execute("SELECT cursor, fence, last FROM sg_groups WHERE id = ?", (seat.group,)).fetchone()
    if found is None:  # the group was deleted by hand
        return [], 0
    cursor, fence, last = found
    if seat.order is Order.NONE:
        taken = _take_returned(db, seat, limit, now + lease, now)
        fresh = _fresh(db, seat, cursor, limit - len(taken))
        if fresh:
            _fly(db, seat, cursor, fresh[-1][0], now + lease)
        return taken + fresh, 0
    taken = _take_waiting(db, seat, limit, now + lease, now)
    if len(taken) < limit:
        taken += _take_fresh(db, seat, cursor, limit - len(taken), now + lease, now)
    if taken and last != seat.owner:
        fence += 1
        db.execute("UPDATE sg_groups SET fence = ?, last = ? WHERE id = ?", (fence, seat.owner, seat.group))
    return taken, fence


def _fresh(db: sqlite3.Connection, seat: Seat, cursor: int, limit: int) -> list[Taken]:
    return db.execute(
        f"SELECT m.id, 1, {COLUMNS} FROM sg_m{seat.number} m WHERE m.id > ? ORDER BY m.id LIMIT ?", (cursor, limit)
    ).fetchall()


def _fly(db: sqlite3.Connection, seat: Seat, cursor: int, end: int, until: float) -> None:
    """Move the cursor; everything that it passes is the member's."""
    key = {Order.NONE: "NULL", Order.KEY: "key", Order.TOTAL: "x''"}[seat.order]
    db.execute(
        f"INSERT INTO sg_flight SELECT ?, id, {key}, ?, ?, 1 FROM sg_m{seat.number} WHERE id > ? AND id <= ?",
        (seat.group, seat.owner, until, cursor, end),
    )
    db.execute("UPDATE sg_groups SET cursor = ? WHERE id = ?", (end, seat.group))


def _read(db: sqlite3.Connection, seat: Seat, ids: Iterable[int]) -> list[Taken]:
    """Rows in flight with their messages; what has been trimmed meanwhile is forgotten."""
    taken: list[Taken] = []
    for id in ids:
        found = db.execute(
            f"SELECT m.id, f.attempts, {COLUMNS} FROM sg_flight f JOIN sg_m{seat.number} m ON m.id = f.id "
            "WHERE f.grp = ? AND f.id = ?",
            (seat.group, id),
        ).fetchone()
        if found is None:
            db.execute("DELETE FROM sg_flight WHERE grp = ? AND id = ?", (seat.group, id))
        else:
            taken.append(found)
    return taken


def _own(db: sqlite3.Connection, seat: Seat, ids: Iterable[int], until: float) -> None:
    db.executemany(
        "UPDATE sg_flight SET owner = ?, at = ? WHERE grp = ? AND id = ?",
        [(seat.owner, until, seat.group, id) for id in ids],
    )


def _take_returned(db: sqlite3.Connection, seat: Seat, limit: int, until: float, now: float) -> list[Taken]:
    """What was given back, or whose lease has ended, where no order is kept."""
    ids = [
        id
        for (id,) in db.execute(
            "SELECT id FROM sg_flight WHERE grp = ? AND at <= ? ORDER BY at, id LIMIT ?", (seat.group, now, limit)
        ).fetchall()
    ]
    _own(db, seat, ids, until)
    return _read(db, seat, sorted(ids))


def _take_waiting(db: sqlite3.Connection, seat: Seat, limit: int, until: float, now: float) -> list[Taken]:
    """The same with order: of each key that has something to offer the oldest, if it is free or the member's own."""
    ids: list[int] = []
    seen: set[bytes] = set()
    for id, key in db.execute(
        "SELECT id, key FROM sg_flight WHERE grp = ? AND at <= ? ORDER BY at, id LIMIT ?", (seat.group, now, limit)
    ).fetchall():
        if len(ids) >= limit:
            break
        if key is None:
            ids.append(id)
            _own(db, seat, (id,), until)
        elif key not in seen:
            seen.add(key)
            mine = _take_key(db, seat, key, limit - len(ids), now)
            _own(db, seat, mine, until)
            ids += mine
            db.execute(  # some of the key is in flight now, or was: what is left waits for that
                "UPDATE sg_flight SET owner = NULL, at = ? WHERE grp = ? AND key = ? AND at <= ?",
                (NEVER, seat.group, key, now),
            )
    return _read(db, seat, ids)


def _take_key(db: sqlite3.Connection, seat: Seat, key: bytes, limit: int, now: float) -> list[int]:
    blocking = db.execute(
        "SELECT owner FROM sg_flight WHERE grp = ? AND key = ? AND at > ? AND at < ?", (seat.group, key, now, NEVER)
    ).fetchall()
    if any(owner != seat.owner for (owner,) in blocking):
        return []
    room = min(limit, seat.run - len(blocking))
    waits = f"SELECT id FROM {BY_KEY} WHERE grp = ? AND key = ? AND at"
    back = db.execute(f"{waits} <= ? ORDER BY id LIMIT ?", (seat.group, key, now, room)).fetchall()
    parked = db.execute(f"{waits} = ? AND owner IS NULL ORDER BY id LIMIT ?", (seat.group, key, NEVER, room)).fetchall()
    return sorted(id for (id,) in back + parked)[:room]


def _take_fresh(db: sqlite3.Connection, seat: Seat, cursor: int, limit: int, until: float, now: float) -> list[Taken]:
    """What lies beyond the cursor; what belongs behind another of its key is parked."""
    if seat.order is Order.TOTAL:
        held = db.execute(
            "SELECT count(*), sum(owner IS NOT ? OR at <= ?) FROM sg_flight WHERE grp = ?",
            (seat.owner, now, seat.group),
        ).fetchone()
        if held[1]:  # somebody else's, or something that comes first
            return []
        fresh = _fresh(db, seat, cursor, max(0, min(limit, seat.run - held[0])))
        if fresh:
            _fly(db, seat, cursor, fresh[-1][0], until)
        return fresh
    (parked,) = db.execute(
        "SELECT count(*) FROM (SELECT 1 FROM sg_flight WHERE grp = ? AND at = ? LIMIT ?)", (seat.group, NEVER, PARKED)
    ).fetchone()
    taken: list[Taken] = []
    for _ in range(4):  # claims that find nothing but parked keys go on for a bounded while
        if len(taken) >= limit or parked >= PARKED:
            break
        fresh = _fresh(db, seat, cursor, limit - len(taken))
        if not fresh:
            break
        end = fresh[-1][0]
        mine, blocked = _keys(db, seat, cursor, end, now)
        park: list[int] = []
        for message in fresh:
            key = message[2]
            if key is None:
                taken.append(message)
            elif key in blocked:
                park.append(message[0])
            else:
                mine[key] = mine.get(key, 0) + 1
                if mine[key] >= seat.run:
                    blocked.add(key)
                taken.append(message)
        _fly(db, seat, cursor, end, until)
        db.executemany(
            "UPDATE sg_flight SET owner = NULL, at = ? WHERE grp = ? AND id = ?",
            [(NEVER, seat.group, id) for id in park],
        )
        parked += len(park)
        cursor = end
    return taken


def _keys(db: sqlite3.Connection, seat: Seat, cursor: int, end: int, now: float) -> tuple[dict[bytes, int], set[bytes]]:
    """Of the keys between two positions: how many of each are in flight with this member, and which are blocked."""
    keys = f"(SELECT DISTINCT key FROM sg_m{seat.number} WHERE id > ? AND id <= ? AND key IS NOT NULL) k"
    mine: dict[bytes, int] = {}
    blocked: set[bytes] = set()
    for key, owner, count in db.execute(
        f"SELECT k.key, f.owner, count(*) FROM {keys} CROSS JOIN sg_flight f ON f.grp = ? AND f.key = k.key "
        "AND f.at > ? AND f.at < ? GROUP BY k.key, f.owner",
        (cursor, end, seat.group, now, NEVER),
    ).fetchall():
        if owner != seat.owner or count >= seat.run:
            blocked.add(key)
        else:
            mine[key] = count
    waits = "SELECT 1 FROM sg_flight WHERE grp = ? AND key = k.key AND at"
    for (key,) in db.execute(
        f"SELECT k.key FROM {keys} WHERE EXISTS({waits} = ?) OR EXISTS({waits} <= ?)",
        (cursor, end, seat.group, NEVER, seat.group, now),
    ).fetchall():
        blocked.add(key)
    return mine, blocked


# ---- settling


Item = tuple[int, bytes | None, Verdict, float]
"""id, key, verdict, seconds."""


def settle(db: sqlite3.Connection, seat: Seat, items: Sequence[Item], now: float) -> tuple[set[int], bool]:
    """Carry out verdicts; returns the ids that are not the member's any more, and whether others may now take more."""
    by: dict[tuple[Verdict, float], list[int]] = {}
    for id, _, verdict, seconds in items:
        by.setdefault((verdict, seconds if verdict in (Verdict.RETRY, Verdict.EXTEND) else 0.0), []).append(id)
    lost: set[int] = set()
    for (verdict, seconds), ids in by.items():
        match verdict:
            case Verdict.ACK:
                lost |= _apply(db, seat, ids, "DELETE FROM sg_flight", ())
            case Verdict.EXTEND:
                lost |= _apply(db, seat, ids, "UPDATE sg_flight SET at = ?", (now + seconds,))
            case Verdict.RETRY:
                change = "UPDATE sg_flight SET owner = NULL, at = ?, attempts = attempts + 1"
                lost |= _apply(db, seat, ids, change, (now + seconds,))
            case Verdict.RELEASE:
                lost |= _apply(db, seat, ids, "UPDATE sg_flight SET owner = NULL, at = 0", ())
    changed = any(verdict in (Verdict.RETRY, Verdict.RELEASE) for verdict, _ in by)
    if seat.order is not Order.NONE:
        changed |= _wake(db, seat, {key for _, key, _, _ in items if key is not None}, now)
    return lost, changed


def _apply(db: sqlite3.Connection, seat: Seat, ids: list[int], change: str, values: tuple[Any, ...]) -> set[int]:
    """Change the member's rows, neighbours by one statement; returns the ids of which it has none."""
    lost: set[int] = set()
    for first, last in _runs(sorted(set(ids))):
        where = (seat.group, first, last, seat.owner)
        if first == last:
            if not db.execute(
                f"{change} WHERE grp = ? AND id = ? AND owner = ?", (*values, seat.group, *where[2:])
            ).rowcount:
                lost.add(first)
            continue
        (found,) = db.execute(
            "SELECT count(*) FROM sg_flight WHERE grp = ? AND id BETWEEN ? AND ? AND owner = ?", where
        ).fetchone()
        if found <= last - first:
            rows = db.execute("SELECT id FROM sg_flight WHERE grp = ? AND id BETWEEN ? AND ? AND owner = ?", where)
            lost |= {*range(first, last + 1)}.difference(id for (id,) in rows.fetchall())
        if found:
            db.execute(f"{change} WHERE grp = ? AND id BETWEEN ? AND ? AND owner = ?", (*values, *where))
    return lost


def _runs(ids: Sequence[int]) -> Iterable[tuple[int, int]]:
    first = last = ids[0]
    for id in ids[1:]:
        if id != last + 1:
            yield first, last
            first = id
        last = id
    yield first, last


def _wake(db: sqlite3.Connection, seat: Seat, keys: set[bytes], now: float) -> bool:
    """Offer the oldest parked message of keys that have room again."""
    if seat.order is Order.TOTAL:
        keys = {ONE_KEY}
    if db.execute("SELECT 1 FROM sg_flight WHERE grp = ? AND at = ? LIMIT 1", (seat.group, NEVER)).fetchone() is None:
        return False
    woken = db.executemany(
        f"UPDATE sg_flight SET at = 0 WHERE grp = :group AND id = (SELECT id FROM {BY_KEY} WHERE grp = :group AND "
        "key = :key AND at = :never AND owner IS NULL ORDER BY id LIMIT 1) AND :half >= (SELECT count(*) FROM "
        f"{BY_KEY} WHERE grp = :group AND key = :key AND at > :now AND at < :never)",
        [{"group": seat.group, "key": key, "never": NEVER, "half": seat.run // 2, "now": now} for key in keys],
    )
    return woken.rowcount > 0
