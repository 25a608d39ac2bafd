"""The file: how it is opened, what is in it, and what its errors mean.

Each topic is a table of its own, so that a group reads it along the primary key and a publish appends at its end with
one index beside it, the unique one of dedup tokens. What a group has taken and not settled is in `sg_flight`; a message
that a group has neither taken nor passed costs it nothing.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from switchgear.errors import (
    ConfigurationError,
    MaybeSent,
    NotSent,
    Refused,
    SwitchgearError,
    TransportError,
    Unavailable,
)

from . import SqliteTuning

VERSION = "1"
NEVER = 1e18
"""`sg_flight.at` of what waits behind its key."""

TABLES = (
    "CREATE TABLE IF NOT EXISTS sg_meta(name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS sg_topics(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, retention REAL)",
    """CREATE TABLE IF NOT EXISTS sg_groups(
        id INTEGER PRIMARY KEY AUTOINCREMENT, topic INTEGER NOT NULL, name TEXT NOT NULL, ordering INTEGER NOT NULL,
        cursor INTEGER NOT NULL,            -- everything up to here has been taken, or was there before the group
        fence INTEGER NOT NULL DEFAULT 0,   -- rises when another member than the last one takes something
        last INTEGER,                       -- that member
        lost INTEGER NOT NULL DEFAULT 0,    -- unread messages that retention took, until a member reports them
        UNIQUE(topic, name))""",
    """CREATE TABLE IF NOT EXISTS sg_flight(
        grp INTEGER, id INTEGER, key BLOB,  -- key: NULL where no order is kept
        owner INTEGER,                      -- NULL: waits
        at REAL NOT NULL,                   -- may be taken from then on: end of the lease, or time of the retry
        attempts INTEGER NOT NULL,
        PRIMARY KEY(grp, id)) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS sg_flight_at ON sg_flight(grp, at)",
    "CREATE INDEX IF NOT EXISTS sg_flight_key ON sg_flight(grp, key, at, owner) WHERE key IS NOT NULL",
    """CREATE TABLE IF NOT EXISTS sg_members(
        grp INTEGER, owner INTEGER, until REAL NOT NULL, PRIMARY KEY(grp, owner)) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS sg_later(
        id INTEGER PRIMARY KEY, topic INTEGER NOT NULL, due REAL NOT NULL, key BLOB, media BLOB, headers BLOB,
        dedup TEXT, marked INTEGER, body BLOB, UNIQUE(topic, dedup))""",
    "CREATE INDEX IF NOT EXISTS sg_later_due ON sg_later(topic, due)",
    "CREATE INDEX IF NOT EXISTS sg_later_next ON sg_later(due)",
    """CREATE TABLE IF NOT EXISTS sg_rows(
        name TEXT PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL, until REAL) WITHOUT ROWID""",
    "CREATE TABLE IF NOT EXISTS sg_revision(value INTEGER NOT NULL)",
    "INSERT INTO sg_revision SELECT 0 WHERE NOT EXISTS(SELECT 1 FROM sg_revision)",
)


def create_topic(db: sqlite3.Connection, name: str) -> int:
    """The number of a topic, its table made if need be."""
    found = db.execute("SELECT id FROM sg_topics WHERE name = ?", (name,)).fetchone()
    if found is not None:
        return int(found[0])
    number = db.execute("INSERT INTO sg_topics(name) VALUES (?)", (name,)).lastrowid
    assert number is not None
    db.execute(
        f"""CREATE TABLE sg_m{number}(
            id INTEGER PRIMARY KEY, time REAL NOT NULL, key BLOB, media BLOB, headers BLOB, dedup TEXT UNIQUE,
            marked INTEGER, body BLOB)"""
    )
    return number


def connect(path: str, tuning: SqliteTuning) -> sqlite3.Connection:
    """A connection of the calling thread. Raises sqlite3.Error; ConfigurationError where no file can be."""
    folder = Path(path).parent
    try:
        there = folder.is_dir()
    except PermissionError:
        there = True  # perhaps: SQLite will say that it may not go there
    if not there:
        raise ConfigurationError(f"sqlite:///{path}: the folder {folder} does not exist; create it first")
    if sqlite3.sqlite_version_info < (3, 35):
        raise ConfigurationError(f"sqlite:// needs SQLite 3.35 or later; this Python has {sqlite3.sqlite_version}")
    db = sqlite3.connect(path, timeout=tuning.busy_timeout, isolation_level=None, cached_statements=1000)
    try:
        db.execute("PRAGMA journal_mode = WAL").fetchone()
        db.execute(f"PRAGMA synchronous = {tuning.synchronous}")
        if tuning.max_page_count is not None:
            db.execute(f"PRAGMA max_page_count = {tuning.max_page_count}")
    except BaseException:
        db.close()
        raise
    return db


def prepare(db: sqlite3.Connection, path: str) -> None:
    """Make what is missing. Raises ConfigurationError for a file of another version."""
    db.execute("BEGIN IMMEDIATE")
    for statement in TABLES:
        db.execute(statement)
    db.execute("INSERT OR IGNORE INTO sg_meta VALUES ('version', ?)", (VERSION,))
    (version,) = db.execute("SELECT value FROM sg_meta WHERE name = 'version'").fetchone()
    if version != VERSION:
        raise ConfigurationError(
            f"sqlite:///{path} was written by another version of switchgear (layout {version}, expected {VERSION}): "
            "upgrade switchgear, or use another file"
        )
    db.execute("COMMIT")


def explained(path: str, error: sqlite3.Error, *, sending: bool, committing: bool = False) -> TransportError:
    """What an error of SQLite means to the core (result codes: https://www.sqlite.org/rescode.html)."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    retryable = NotSent if sending else Unavailable
    kind: type[TransportError]
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        kind, advice = retryable, "another process keeps the file locked (option `busy_timeout`, seconds)"
    elif code == sqlite3.SQLITE_FULL:
        kind, advice = retryable, "the disk or the file is full: make room, or raise the option `max_page_count`"
    elif code == sqlite3.SQLITE_READONLY:
        kind, advice = Refused, "the file or its folder can't be written: check their owner and rights"
    elif code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        kind, advice = Refused, "the file is damaged or no SQLite database: restore it from a backup, or name another"
    elif code == sqlite3.SQLITE_TOOBIG:
        kind, advice = Refused, "too large for SQLite"
    elif code == sqlite3.SQLITE_IOERR and committing and sending:
        kind, advice = MaybeSent, "the disk failed during the commit"
    elif code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PROTOCOL):
        kind, advice = retryable, "the file can't be read or written: check the disk, the folder and its rights"
    else:
        raise error  # a bug of ours
    result = kind(f"sqlite:///{path}: {error}; {advice}")
    result.__cause__ = error
    return result


def unopened(path: str, error: sqlite3.Error) -> SwitchgearError:
    """What an error means when the file is being opened: what waiting can't mend is a matter of configuration."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    found = explained(path, error, sending=False)
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CANTOPEN):
        wrong = ConfigurationError(str(found))
        wrong.__cause__ = error
        return wrong
    return found
