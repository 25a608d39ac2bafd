"""Durable publishing to SQLite: plain awaits from 200 tasks against transactions of 200 rows written by hand."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from switchgear import Bus, Topic

from .clock import Span
from .orders import Order, customer, decode, encode, order
from .tasks import from_tasks
from .workload import OURS, Requirement, Sample, Setting, Workload

FULL = 40_000
ROWS = 200
ORDERS = [order(n) for n in range(1000)]
orders = Topic("orders", Order, key=customer, order="none")


async def raw(setting: Setting) -> Sample:
    """`executemany` of 200 rows a transaction, synchronous=FULL, into Switchgear's own table and columns."""
    n = setting.messages(FULL)
    path = setting.folder / "raw.db"
    id = await publish_one(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        table, names, stored = found(connection)
        row = row_maker(names, stored, id)
        connection.execute("pragma synchronous = full")
        assert connection.execute("pragma journal_mode").fetchone() == ("wal",)
        insert = f"insert into {table} ({', '.join(names)}) values ({', '.join('?' * len(names))})"
        span = Span(n)
        for start in range(0, n, ROWS):
            rows = [row(start + i) for i in range(ROWS)]
            connection.execute("begin immediate")
            connection.executemany(insert, rows)
            connection.execute("commit")
            for _ in rows:
                span.see()
        rate = span.rate()
        assert count(connection, table) == n + 1
    return {"rate": rate}


async def switchgear(setting: Setting) -> Sample:
    """200 tasks, each awaiting `bus.publish`."""
    n = setting.messages(FULL)
    path = setting.folder / "ours.db"
    await publish_one(path)
    async with Bus(f"sqlite:///{path}") as bus:
        await bus.publish(orders, ORDERS[0])
        rate = await from_tasks(n, lambda order: bus.publish(orders, order))
    with closing(sqlite3.connect(path)) as connection:
        assert count(connection, found(connection)[0]) == n + 2
    return {"rate": rate}


async def publish_one(path: Path) -> str:
    """Makes the file, and a first row to look at; returns its message id."""
    async with Bus(f"sqlite:///{path}") as bus:
        return await bus.publish(orders, ORDERS[0])


def found(connection: sqlite3.Connection) -> tuple[str, list[str], list[object]]:
    """The table that holds the message, with the columns and the first row that a publish wrote."""
    for (table,) in connection.execute("select name from sqlite_master where type = 'table'").fetchall():
        columns = connection.execute(f"pragma table_info({table})").fetchall()
        names = [name for _, name, type, _, _, primary in columns if not (primary and type.lower() == "integer")]
        for row in connection.execute(f"select {', '.join(names)} from {table} limit 1"):
            if any(is_body(value) for value in row):
                return table, names, list(row)
    raise AssertionError("no table holds the published body")


def is_body(value: object) -> bool:
    try:
        decode(value)  # type: ignore[arg-type]
    except Exception:
        return False
    return True


def row_maker(names: list[str], stored: list[object], id: str) -> Callable[[int], list[object]]:
    """Rows like the stored one, each with a body that is encoded for it and a dedup token that is its own."""
    body = next(i for i, value in enumerate(stored) if is_body(value))
    tokens = [i for i, value in enumerate(stored) if value in (id, id.encode())]
    assert tokens, f"no column of {names} is the message's dedup token"

    def row(n: int) -> list[object]:
        made = stored.copy()
        made[body] = encode(ORDERS[n % 1000])
        for i in tokens:
            made[i] = f"{id[:-8]}{n:08d}"
        return made

    return row


def count(connection: sqlite3.Connection, table: str) -> int:
    return int(connection.execute(f"select count(*) from {table}").fetchone()[0])


WORKLOAD = Workload(
    name="sqlite-publish",
    about="publish from 200 tasks to one file, each commit on disk (synchronous=FULL)",
    metric="rate",
    unit="msg/s",
    sides={"raw": raw, OURS: switchgear},
    requirements=[Requirement("rate", over="raw", at_least=0.5)],
)
