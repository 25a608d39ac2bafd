"""What must be true of the books when all work is done. Reads the store and nothing else."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass

from .customers import LAST
from .store import Store


@dataclass(frozen=True, slots=True)
class Invariant:
    name: str
    holds: bool
    detail: str


def check(store: Store) -> list[Invariant]:
    """Every invariant of the shop, broken or not."""
    with store.read() as db:
        return [rule(db) for rule in RULES]


def _stock(db: sqlite3.Connection) -> Invariant:
    wrong = _column(
        db,
        "SELECT sku FROM items LEFT JOIN"
        " (SELECT sku AS s, sum(quantity) AS wanted FROM orders WHERE accepted GROUP BY sku) ON s = sku"
        " WHERE sold + left != supplied OR left < 0 OR sold != coalesce(wanted, 0)",
    )
    sold, left, supplied = db.execute("SELECT sum(sold), sum(left), sum(supplied) FROM items").fetchone()
    return _invariant("sold + left = stock", wrong, f"{sold} + {left} = {supplied}", "wrong for")


def _last_one(db: sqlite3.Connection) -> Invariant:
    winners = _column(db, "SELECT id FROM orders WHERE sku = ? AND accepted", LAST)
    losers = _column(db, "SELECT id FROM orders WHERE sku = ? AND NOT accepted", LAST)
    detail = f"sold to {', '.join(winners) or 'nobody'}, sold out for {', '.join(losers) or 'nobody'}"
    return Invariant("the last item has one buyer", len(winners) == 1 and len(losers) == 1, detail)


def _billed(db: sqlite3.Connection) -> Invariant:
    wrong = _column(
        db,
        "SELECT id FROM orders LEFT JOIN charges ON order_id = id GROUP BY id"
        " HAVING count(order_id) != accepted OR (accepted AND max(charges.amount) != orders.amount)"
        " UNION SELECT order_id FROM charges WHERE order_id NOT IN (SELECT id FROM orders)",
    )
    (charged,) = db.execute("SELECT count(*) FROM charges").fetchone()
    return _invariant("each accepted order is billed exactly once", wrong, f"{charged} billed", "wrong for")


def _notified(db: sqlite3.Connection) -> Invariant:
    wrong = _column(
        db,
        "SELECT id FROM orders LEFT JOIN notices ON order_id = id GROUP BY id HAVING count(order_id) != 1"
        " UNION SELECT order_id FROM notices WHERE order_id NOT IN (SELECT id FROM orders)",
    )
    (sent,) = db.execute("SELECT count(*) FROM notices").fetchone()
    return _invariant("one notification per order", wrong, f"{sent} sent", "wrong for")


def _accounted(db: sqlite3.Connection) -> Invariant:
    wrong = _column(
        db,
        "SELECT id FROM purchases"
        " WHERE (id IN (SELECT id FROM orders)) = poison OR (id IN (SELECT id FROM dead)) != poison"
        " UNION SELECT id FROM orders WHERE id NOT IN (SELECT id FROM purchases)"
        " UNION SELECT id FROM dead WHERE id NOT IN (SELECT id FROM purchases)"
        " UNION SELECT id FROM dead GROUP BY id HAVING count(*) > 1",
    )
    published, decided, dead = db.execute(
        "SELECT (SELECT count(*) FROM purchases), (SELECT count(*) FROM orders), (SELECT count(*) FROM dead)"
    ).fetchone()
    fine = f"{published} published = {decided} orders + {dead} dead letters"
    return _invariant("every message is accounted for", wrong, fine, "lost, doubled or misplaced:")


RULES: tuple[Callable[[sqlite3.Connection], Invariant], ...] = (_stock, _last_one, _billed, _notified, _accounted)


def _column(db: sqlite3.Connection, query: str, *arguments: object) -> list[str]:
    return [row[0] for row in db.execute(query, arguments)]


def _invariant(name: str, wrong: list[str], fine: str, broken: str) -> Invariant:
    if not wrong:
        return Invariant(name, True, fine)
    more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
    return Invariant(name, False, f"{broken} {', '.join(sorted(wrong)[:5])}{more}")
