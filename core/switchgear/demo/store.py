"""The shop's books: one SQLite file that every worker process opens.

Each step commits its effect together with the mark that it happened, so that a message handled twice acts once. A
connection lives for one call, which makes the store safe in any thread.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Generator, Iterable, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

SCHEMA = """
CREATE TABLE IF NOT EXISTS items (
    sku TEXT PRIMARY KEY, price INTEGER NOT NULL, supplied INTEGER NOT NULL,
    left INTEGER NOT NULL, sold INTEGER NOT NULL DEFAULT 0, version INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS purchases (id TEXT PRIMARY KEY, poison INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS orders (
    id TEXT PRIMARY KEY, sku TEXT NOT NULL, quantity INTEGER NOT NULL, amount INTEGER NOT NULL,
    accepted INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS done (step TEXT, id TEXT, PRIMARY KEY (step, id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS charges (order_id TEXT NOT NULL, amount INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS notices (order_id TEXT NOT NULL, text TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS dead (id TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS events (kind TEXT PRIMARY KEY, n INTEGER NOT NULL) WITHOUT ROWID;
"""


class Conflict(Exception):
    """Somebody else changed the item, or decided the order, between our reading and our writing: try again."""


@dataclass(frozen=True, slots=True)
class Item:
    sku: str
    price: int
    """Cents."""
    left: int
    version: int


@dataclass(frozen=True, slots=True)
class Totals:
    """How far the shop has come."""

    purchases: int
    accepted: int
    declined: int
    charges: int
    notices: int
    dead: int
    events: Mapping[str, int]
    """"failures" that were injected, "conflicts" of versions."""

    @property
    def settled(self) -> bool:
        """Nothing is on its way any more: each purchase is decided and notified, or dead, and the accepted are paid."""
        decided = self.accepted + self.declined
        return decided + self.dead >= self.purchases and self.charges >= self.accepted and self.notices >= decided


class Store:
    """The books in the SQLite file at `path`; made where absent."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with closing(self._connect()) as db:
            db.execute("PRAGMA journal_mode=WAL")
            db.executescript(SCHEMA)

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, timeout=30, isolation_level=None)
        db.execute("PRAGMA synchronous=NORMAL")
        return db

    @contextmanager
    def read(self) -> Generator[sqlite3.Connection]:
        """A connection that sees one state of the books."""
        with closing(self._connect()) as db:
            db.execute("BEGIN")
            yield db

    @contextmanager
    def write(self) -> Generator[sqlite3.Connection]:
        """A transaction: committed at the end, undone by an exception."""
        with closing(self._connect()) as db:
            db.execute("BEGIN IMMEDIATE")
            yield db  # closing without COMMIT rolls back
            db.execute("COMMIT")

    # ---- opening the shop ----

    def supply(self, items: Iterable[tuple[str, int, int]]) -> None:
        """Put items on the shelves: name, price in cents, how many."""
        with self.write() as db:
            db.executemany(
                "INSERT INTO items (sku, price, supplied, left) VALUES (?, ?, ?, ?)",
                [(sku, price, count, count) for sku, price, count in items],
            )

    def expect(self, purchases: Iterable[tuple[str, bool]]) -> None:
        """Note the purchases that will be published, and which of them are poison."""
        with self.write() as db:
            db.executemany("INSERT INTO purchases VALUES (?, ?)", purchases)

    # ---- inventory ----

    def item(self, sku: str) -> Item | None:
        with self.read() as db:
            row = db.execute("SELECT sku, price, left, version FROM items WHERE sku = ?", (sku,)).fetchone()
        return Item(*row) if row else None

    def decision(self, order_id: str) -> tuple[int, bool] | None:
        """Amount and acceptance of an order, once decided."""
        with self.read() as db:
            row = db.execute("SELECT amount, accepted FROM orders WHERE id = ?", (order_id,)).fetchone()
        return (row[0], bool(row[1])) if row else None

    def decide(self, order_id: str, item: Item, quantity: int, accepted: bool) -> None:
        """Record a decision that was taken on `item` as read; take the stock if it is accepted.

        Optimistic locking: the stock changes only over the version that was read. Raises Conflict otherwise.
        """
        with self.write() as db:
            new = db.execute(
                "INSERT OR IGNORE INTO orders VALUES (?, ?, ?, ?, ?)",
                (order_id, item.sku, quantity, quantity * item.price, accepted),
            ).rowcount
            taken = (
                not accepted
                or db.execute(
                    "UPDATE items SET left = left - ?, sold = sold + ?, version = version + 1"
                    " WHERE sku = ? AND version = ?",
                    (quantity, quantity, item.sku, item.version),
                ).rowcount
            )
            if not (new and taken):
                raise Conflict(f"{item.sku} or order {order_id} changed meanwhile")

    # ---- billing, notification, dead letters ----

    def charge(self, order_id: str, amount: int) -> None:
        """Bill an order, once."""
        with self.write() as db:
            if _first(db, "charge", order_id):
                db.execute("INSERT INTO charges VALUES (?, ?)", (order_id, amount))

    def notify(self, order_id: str, text: str) -> None:
        """Send the customer word, once."""
        with self.write() as db:
            if _first(db, "notify", order_id):
                db.execute("INSERT INTO notices VALUES (?, ?)", (order_id, text))

    def bury(self, purchase_id: str) -> None:
        """Keep a dead letter, once."""
        with self.write() as db:
            if _first(db, "bury", purchase_id):
                db.execute("INSERT INTO dead VALUES (?)", (purchase_id,))

    def event(self, kind: str) -> None:
        """Count something that the live table shows."""
        with self.write() as db:
            db.execute("INSERT INTO events VALUES (?, 1) ON CONFLICT (kind) DO UPDATE SET n = n + 1", (kind,))

    def totals(self) -> Totals:
        with self.read() as db:
            row = db.execute(
                "SELECT (SELECT count(*) FROM purchases), (SELECT count(*) FROM orders WHERE accepted),"
                " (SELECT count(*) FROM orders WHERE NOT accepted), (SELECT count(*) FROM charges),"
                " (SELECT count(*) FROM notices), (SELECT count(*) FROM dead)"
            ).fetchone()
            events = dict(db.execute("SELECT kind, n FROM events").fetchall())
        purchases, accepted, declined, charges, notices, dead = row
        return Totals(purchases, accepted, declined, charges, notices, dead, events)


def _first(db: sqlite3.Connection, step: str, id: str) -> bool:
    return db.execute("INSERT OR IGNORE INTO done VALUES (?, ?)", (step, id)).rowcount == 1
