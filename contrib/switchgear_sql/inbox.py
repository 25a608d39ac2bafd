"""The transactional inbox: a row per handled message, written in the handler's own transaction."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, Connection, DateTime, Insert, MetaData, String, Table, func, inspect, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.schema import CreateTable

from switchgear import Drop, Message, Unsupported

INBOX = Table(
    "switchgear_inbox",
    MetaData(),
    Column("group_name", String, primary_key=True),
    Column("topic", String, primary_key=True),  # ids that a publisher chose may repeat on another topic
    Column("message_id", String, primary_key=True),
    Column("handled_at", DateTime(timezone=True), nullable=False, server_default=func.current_timestamp()),
)
EXISTS = "switchgear_inbox exists"  # a key of `Connection.info`, which lives as long as the pooled connection
LOCK = 0x53474942  # the advisory lock under which PostgreSQL creates the table


async def first_time(session: AsyncSession, message: Message[Any], *, group: str) -> None:
    """Return if `group` has not handled `message` yet, and record in the session's transaction that it has.

    Call it before any effect. The record is undone when the transaction is rolled back, so a message whose handler
    failed is a first time again. While another transaction handles the same message, this one waits for its end. The
    record is a row of the table `switchgear_inbox`, created when it is missing; delete rows by `handled_at` once no
    duplicate of that age can come any more.

    Raises Drop("duplicate") for a message that was handled before, which acknowledges it without effect; the
    transaction stays usable. Raises Unsupported for a database other than SQLite and PostgreSQL.
    """
    connection = await session.connection()
    if not await connection.run_sync(_record, group, message.topic, message.id):
        raise Drop("duplicate")


def _record(connection: Connection, group: str, topic: str, id: str) -> bool:
    """Whether the row is new.

    No statement here fails on a conflict, since an error would end a PostgreSQL transaction, and a savepoint as first
    statement would commit by itself on SQLite, whose Python driver begins the transaction later.
    """
    insert = _insert(connection).values(group_name=group, topic=topic, message_id=id)
    if not connection.info.get(EXISTS):
        _ensure_table(connection)
    try:
        return connection.execute(insert).rowcount == 1
    except Exception:
        connection.info.pop(EXISTS, None)  # it was dropped, or it was made in a transaction that was rolled back
        raise


def _insert(connection: Connection) -> Insert:
    match connection.dialect.name:
        case "sqlite":
            return sqlite.insert(INBOX).on_conflict_do_nothing()
        case "postgresql":
            return postgresql.insert(INBOX).on_conflict_do_nothing()
        case other:
            raise Unsupported(f"first_time does not know the database {other!r}: use SQLite or PostgreSQL")


def _ensure_table(connection: Connection) -> None:
    if inspect(connection).has_table(INBOX.name):
        connection.info[EXISTS] = True
        return
    if connection.dialect.name == "postgresql":  # of two at once the second fails, in spite of "if not exists"
        connection.execute(select(func.pg_advisory_xact_lock(LOCK)))
    connection.execute(CreateTable(INBOX, if_not_exists=True))
