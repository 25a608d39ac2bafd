"""Messages in their topics' tables: storing, promoting what is due, trimming."""

# ruff: noqa: S608  (the only names put into statements are the numbers of topics)

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from functools import lru_cache

import msgspec

from switchgear.driver import Headers, Outgoing, Start

PACK = msgspec.msgpack.Encoder().encode
UNPACK = msgspec.msgpack.Decoder(list[tuple[str, bytes]]).decode
COLUMNS = "time, key, media, headers, dedup, marked, body"
CHUNKS = (256, 64, 16, 4, 1)  # rows in one statement: each step gives up Python's lock and must get it back
SLICE = 500  # messages deleted at once
DEDUP_WINDOW = 120.0  # seconds that a message is kept at least, and with it its token

Row = tuple[float, bytes | None, bytes | None, bytes | None, str | None, int, bytes]


class Stored(msgspec.Struct, frozen=True, gc=False):
    """What is kept of a message beside its body; `Delivery.native` of this transport."""

    position: int
    """Rises in the topic, without gaps."""
    time: float
    """When it was stored, unix seconds."""
    packed: bytes | None

    @property
    def headers(self) -> Headers:
        """In the order in which they were sent."""
        return [] if self.packed is None else UNPACK(self.packed)


def row(message: Outgoing, now: float) -> Row:
    """A message as it is stored."""
    assert message.body is not None
    headers = PACK(message.headers) if message.headers else None
    return now, message.key, message.media, headers, message.dedup, message.marked, message.body


@lru_cache(maxsize=4096)
def _insert(topic: int, rows: int) -> str:
    values = ", ".join(["(?, ?, ?, ?, ?, ?, ?)"] * rows)
    return f"INSERT INTO sg_m{topic}({COLUMNS}) VALUES {values} ON CONFLICT(dedup) DO NOTHING"


def insert(db: sqlite3.Connection, topic: int, rows: Sequence[Row]) -> None:
    """Append messages; those whose token the topic has already are left out."""
    done = 0
    for size in CHUNKS:
        while len(rows) - done >= size:
            flat: list[object] = []
            for values in rows[done : done + size]:
                flat += values
            db.execute(_insert(topic, size), flat)
            done += size


def delay(db: sqlite3.Connection, topic: int, rows: Iterable[tuple[float, Row]]) -> None:
    """Keep messages until they are due."""
    db.executemany(
        "INSERT INTO sg_later(topic, due, key, media, headers, dedup, marked, body) VALUES (?, ?, ?, ?, ?, ?, ?, ?) "
        "ON CONFLICT(topic, dedup) DO NOTHING",
        [(topic, due, *values[1:]) for due, values in rows],
    )


def promote(db: sqlite3.Connection, topics: Iterable[int], limit: int, now: float) -> int:
    """Move what is due into its topic, and say how many."""
    moved = 0
    for topic in topics:
        due = "FROM sg_later WHERE topic = ? AND due <= ? ORDER BY due, id LIMIT ?"
        which = (topic, now, limit - moved)
        if db.execute(f"SELECT 1 {due}", which).fetchone() is None:
            continue
        db.execute(
            f"INSERT INTO sg_m{topic}({COLUMNS}) SELECT ?, key, media, headers, dedup, marked, body {due} "
            "ON CONFLICT(dedup) DO NOTHING",
            (now, *which),
        )
        moved += db.execute(f"DELETE FROM sg_later WHERE id IN (SELECT id {due})", which).rowcount
        if moved >= limit:
            break
    return moved


def bounds(db: sqlite3.Connection, topic: int) -> tuple[int, int]:
    """First and last position of what is stored; (n + 1, n) when nothing is."""
    first, last = db.execute(f"SELECT (SELECT min(id) FROM sg_m{topic}), (SELECT max(id) FROM sg_m{topic})").fetchone()
    return (1, 0) if first is None else (first, last)


def before(db: sqlite3.Connection, topic: int, start: Start) -> int:
    """The position just before `start`. Times are searched by halving: positions and times rise together."""
    first, last = bounds(db, topic)
    if start == "new":
        return last
    if isinstance(start, str):
        return first - 1
    low, high = first, last + 1  # the first with time >= start is in [low, high]
    while low < high:
        middle = (low + high) // 2
        (time,) = db.execute(f"SELECT time FROM sg_m{topic} WHERE id >= ? ORDER BY id LIMIT 1", (middle,)).fetchone()
        if time < start:
            low = middle + 1
        else:
            high = middle
    return low - 1


def trim(db: sqlite3.Connection, topic: int, retention: float, most: int | None, now: float) -> bool:
    """Delete a slice of what need not be kept; True when there may be more.

    What every group has settled goes when it is older than `retention` (seconds), anything that is older than the
    topic's declared retention or beyond the newest `most`. The newest message stays in any case, so that positions
    never repeat, and everything for as long as its token must be known.
    """
    (declared,) = db.execute("SELECT retention FROM sg_topics WHERE id = ?", (topic,)).fetchone()
    first, last = bounds(db, topic)
    floor = first - 1
    settled = db.execute(
        "SELECT min(coalesce((SELECT min(id) - 1 FROM sg_flight WHERE grp = sg_groups.id), cursor)) "
        "FROM sg_groups WHERE topic = ?",
        (topic,),
    ).fetchone()[0]
    if settled is not None:
        floor = max(floor, min(settled, before(db, topic, now - max(retention, DEDUP_WINDOW))))
    unread = floor
    if declared is not None:
        unread = max(unread, before(db, topic, now - declared))
    if most is not None:
        unread = max(unread, last - most)
    if unread > floor:  # not to be handed out any more, whatever the dedup window still keeps
        db.execute(
            "UPDATE sg_groups SET cursor = max(cursor, :to), lost = lost + max(0, :to - max(cursor, :first - 1)) + "
            "(SELECT count(*) FROM sg_flight WHERE grp = sg_groups.id AND id <= :to AND owner IS NULL) "
            "WHERE topic = :topic",
            {"to": unread, "first": first, "topic": topic},
        )
        db.execute(
            "DELETE FROM sg_flight WHERE grp IN (SELECT id FROM sg_groups WHERE topic = ?) AND id <= ? "
            "AND owner IS NULL",
            (topic, unread),
        )
        floor = max(floor, min(unread, before(db, topic, now - DEDUP_WINDOW)))
    end = min(floor, last - 1, first - 1 + SLICE)
    if end < first:
        return False
    db.execute(f"DELETE FROM sg_m{topic} WHERE id <= ?", (end,))
    return end < min(floor, last - 1)
