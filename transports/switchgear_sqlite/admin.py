"""Everything but the way of a message: schedule, seek, lag, browse, provisioning."""

# ruff: noqa: S608  (the only names put into statements are the numbers of topics)

from __future__ import annotations

import sqlite3
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

from switchgear.driver import Delivery, Drift, Headers, Resource, Start, TopicInfo
from switchgear.errors import ConfigurationError, NotFound, Refused

from . import store
from .files import Files
from .schema import create_topic
from .seats import create_group, members
from .source import SHIFT
from .store import Stored

PAGE = 200  # messages that `browse` reads at once


def next_due(db: sqlite3.Connection) -> float | None:
    """Seconds until the next delayed message is due, 0 if it is; None without any."""
    (due,) = db.execute("SELECT min(due) FROM sg_later").fetchone()
    return None if due is None else max(0.0, due - time.time())


def promote(db: sqlite3.Connection, limit: int) -> float | None:
    """Move up to `limit` messages that are due; seconds to the next."""
    now = time.time()
    due = "SELECT id FROM sg_topics WHERE EXISTS(SELECT 1 FROM sg_later WHERE topic = sg_topics.id AND due <= ?)"
    topics = [topic for (topic,) in db.execute(due, (now,)).fetchall()]
    store.promote(db, topics, limit, now)
    return next_due(db)


def cancel(db: sqlite3.Connection, topic: str, dedup: str) -> bool:
    """Take back what is not due yet."""
    gone = db.execute(
        "DELETE FROM sg_later WHERE topic = (SELECT id FROM sg_topics WHERE name = ?) AND dedup = ? AND due > ?",
        (topic, dedup, time.time()),
    )
    return gone.rowcount > 0


def _group(db: sqlite3.Connection, topic: str, group: str) -> tuple[int, int] | None:
    found: tuple[int, int] | None = db.execute(
        "SELECT g.id, t.id FROM sg_groups g JOIN sg_topics t ON t.id = g.topic WHERE t.name = ? AND g.name = ?",
        (topic, group),
    ).fetchone()
    return found


def seek(db: sqlite3.Connection, topic: str, group: str, to: Start | str) -> None:
    """Begin again at `to`, among what is kept. Raises NotFound, Refused while the group is read."""
    found = _group(db, topic, group)
    if found is None:
        raise NotFound(f"no group {group!r} of topic {topic!r}")
    number = members(db, found[0])
    if number:
        raise Refused(
            f"group {group!r} of topic {topic!r} is being read by {number}: stop it, then seek (a member that was "
            "killed counts for 30 s)"
        )
    db.execute("DELETE FROM sg_flight WHERE grp = ?", (found[0],))
    db.execute("UPDATE sg_groups SET cursor = ? WHERE id = ?", (_cursor(db, found[1], to), found[0]))


def _cursor(db: sqlite3.Connection, topic: int, to: Start | str) -> int:
    if not isinstance(to, str) or to in ("new", "earliest"):
        return store.before(db, topic, cast("Start", to))
    try:
        wanted = int(to)
    except ValueError:
        raise ConfigurationError(
            f"{to!r} is no position of sqlite://: expected 'new', 'earliest', a time or a number"
        ) from None
    first, last = store.bounds(db, topic)
    return min(max(wanted, first), last + 1) - 1


def lag(db: sqlite3.Connection, topics: Sequence[str], group: str) -> dict[str, int]:
    """Unsettled messages by topic: what lies beyond the cursor, and what is in flight."""
    result: dict[str, int] = {}
    for topic in topics:
        found = _group(db, topic, group)
        if found is None:
            continue
        first, last = store.bounds(db, found[1])
        cursor, flight = db.execute(
            "SELECT cursor, (SELECT count(*) FROM sg_flight WHERE grp = g.id) FROM sg_groups g WHERE id = ?",
            (found[0],),
        ).fetchone()
        result[topic] = max(0, last - max(cursor, first - 1)) + flight
    return result


async def browse(files: Files, topic: str, start: Start, end: float | None) -> AsyncIterator[tuple[Delivery, Headers]]:
    """What is kept, in stored order, a page at a time, to what was stored when this began or to `end`."""

    def begin(db: sqlite3.Connection) -> tuple[int, int, int] | None:
        found = db.execute("SELECT id FROM sg_topics WHERE name = ?", (topic,)).fetchone()
        if found is None:
            return None
        return found[0], store.before(db, found[0], start), store.bounds(db, found[0])[1]

    begun = await files.reader.run(begin)
    if begun is None:
        return
    number, cursor, last = begun

    def page(db: sqlite3.Connection) -> list[Any]:
        return db.execute(
            f"SELECT id, key, media, headers, body, time, marked FROM sg_m{number} WHERE id > ? AND id <= ? "
            "ORDER BY id LIMIT ?",
            (cursor, last, PAGE),
        ).fetchall()

    while rows := await files.reader.run(page):
        for id, key, media, headers, body, stored, marked in rows:
            if end is not None and stored > end:
                return
            native = Stored(id, stored, headers)
            token = (number << SHIFT) + id
            yield Delivery(topic, body, media, key, "", token, None, native=native, marked=bool(marked)), native.headers
        cursor = rows[-1][0]


def provision(db: sqlite3.Connection, wanted: Sequence[Resource], apply: bool) -> list[Drift]:
    """Differences; with `apply` they are mended. Raises ConfigurationError for a group without a topic."""
    drifts: list[Drift] = []
    for resource in wanted:
        if resource.kind == "topic":
            drifts += _provision_topic(db, resource, apply)
        elif resource.topic is None:
            raise ConfigurationError(f"group {resource.name!r} is to be made without saying of which topic")
        elif _group(db, resource.topic, resource.name) is None:
            drifts.append(Drift(resource=resource, field="exists", wanted=True, found=False, applied=apply))
            if apply:
                number = create_topic(db, resource.topic)
                create_group(db, number, resource.name, resource.order, resource.start)
    return drifts


def _provision_topic(db: sqlite3.Connection, resource: Resource, apply: bool) -> list[Drift]:
    found = db.execute("SELECT retention FROM sg_topics WHERE name = ?", (resource.name,)).fetchone()
    if found is None:
        drift = Drift(resource=resource, field="exists", wanted=True, found=False, applied=apply)
    elif found[0] != resource.retention:
        drift = Drift(
            resource=resource, field="retention", wanted=resource.retention, found=found[0], applied=apply
        )  # fmt: skip
    else:
        return []
    if apply:
        create_topic(db, resource.name)
        db.execute("UPDATE sg_topics SET retention = ? WHERE name = ?", (resource.retention, resource.name))
    return [drift]


def topics(db: sqlite3.Connection, prefix: str) -> list[TopicInfo]:
    """Topics by name, with how much of each is kept."""
    result: list[TopicInfo] = []
    for number, name in db.execute(
        "SELECT id, name FROM sg_topics WHERE substr(name, 1, ?) = ? ORDER BY name", (len(prefix), prefix)
    ).fetchall():
        first, last = store.bounds(db, number)
        groups = db.execute("SELECT name FROM sg_groups WHERE topic = ? ORDER BY name", (number,)).fetchall()
        result.append(TopicInfo(name=name, messages=last - first + 1, groups=tuple(group for (group,) in groups)))
    return result
