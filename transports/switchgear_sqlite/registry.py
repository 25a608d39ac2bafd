"""The registry: rows that are compared and set, some of them for a while."""

from __future__ import annotations

import sqlite3
import time

from switchgear.driver import Row


def read(db: sqlite3.Connection, prefix: str) -> dict[str, Row]:
    """Live rows whose names start with `prefix`."""
    rows = db.execute(
        "SELECT name, value, revision FROM sg_rows WHERE substr(name, 1, ?) = ? AND name >= ? "
        "AND (until IS NULL OR until > ?) ORDER BY name",
        (len(prefix), prefix, prefix, time.time()),
    )
    return {name: Row(value, revision) for name, value, revision in rows.fetchall()}


def write(db: sqlite3.Connection, name: str, value: bytes | None, expect: int | None, ttl: float | None) -> int | None:
    """Compare and set; revisions come from one counter, so that they rise over expiry and deletion too."""
    now = time.time()
    row = db.execute(
        "SELECT value, revision FROM sg_rows WHERE name = ? AND (until IS NULL OR until > ?)", (name, now)
    ).fetchone()
    found = 0 if row is None else int(row[1])
    if expect is not None and expect != found:
        return None
    if value is None:
        db.execute("DELETE FROM sg_rows WHERE name = ?", (name,))
        return found
    revision = found
    if row is None or row[0] != value:
        db.execute("UPDATE sg_revision SET value = value + 1")
        (revision,) = db.execute("SELECT value FROM sg_revision").fetchone()
    until = None if ttl is None else now + ttl
    db.execute("INSERT OR REPLACE INTO sg_rows VALUES (?, ?, ?, ?)", (name, value, revision, until))
    return revision
