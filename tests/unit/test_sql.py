"""`first_time`: the mark commits with the effect, once, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from switchgear import Drop, Message, Unsupported
from switchgear_sql import first_time
from tests.brokers.fixtures import not_run


def message(id: str, topic: str = "orders") -> Message[Any]:
    return cast("Message[Any]", SimpleNamespace(id=id, topic=topic))


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL of our own, reached by a socket in a temporary folder."""
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not binaries:
        not_run("no PostgreSQL here: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="sg-pg-"))
    account: dict[str, Any] = {}
    if os.geteuid() == 0:  # the server refuses to run as root
        shutil.chown(folder, "postgres", "postgres")
        account = {"user": "postgres", "group": "postgres", "extra_groups": []}

    def tool(name: str, *arguments: str) -> None:
        with (folder / f"{name}.out").open("a") as out:
            command = [binaries[-1].with_name(name), "-D", folder / "data", *arguments]
            subprocess.run(command, check=True, stdout=out, stderr=out, cwd="/", **account)

    tool("initdb", "--username=test", "--auth=trust", "--encoding=UTF8", "--no-sync")
    options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
    tool("pg_ctl", "start", "--wait", f"--log={folder / 'server.log'}", f"--options={options}")
    try:
        yield f"postgresql+asyncpg://test@/postgres?host={folder}"
    finally:
        tool("pg_ctl", "stop", "--mode=immediate")
        shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
async def engine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[AsyncEngine]:
    """An engine on an empty database with one table of effects."""
    url = f"sqlite+aiosqlite:///{tmp_path / 'app.db'}"
    if request.param == "postgres":
        url = request.getfixturevalue("postgres")
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.execute(text("drop table if exists switchgear_inbox"))
        await connection.execute(text("drop table if exists bill"))
        await connection.execute(text("create table bill (id varchar)"))
    yield engine
    await engine.dispose()


async def bill(
    engine: AsyncEngine, id: str, *, group: str = "billing", topic: str = "orders", fails: bool = False
) -> None:
    """A handler's transaction: the mark, an effect, and perhaps a failure before the commit."""
    async with AsyncSession(engine) as session, session.begin():
        await first_time(session, message(id, topic), group=group)
        await session.execute(text("insert into bill values (:id)"), {"id": id})
        if fails:
            raise OSError("the card service is away")


async def bills(engine: AsyncEngine) -> list[str]:
    async with engine.connect() as connection:
        return list((await connection.execute(text("select id from bill order by id"))).scalars())


async def test_a_second_time_is_dropped(engine: AsyncEngine) -> None:
    await bill(engine, "1")
    with pytest.raises(Drop, match="duplicate"):
        await bill(engine, "1")
    await bill(engine, "2")
    assert await bills(engine) == ["1", "2"]


async def test_groups_and_topics_count_apart(engine: AsyncEngine) -> None:
    await bill(engine, "1", group="billing")
    await bill(engine, "1", group="audit")
    await bill(engine, "1", topic="refunds")
    assert await bills(engine) == ["1", "1", "1"]


@pytest.mark.parametrize("before", [0, 1], ids=["creating-the-table", "in-the-table"])
async def test_a_failed_handler_leaves_no_mark(engine: AsyncEngine, before: int) -> None:
    for n in range(before):
        await bill(engine, f"earlier-{n}")
    with pytest.raises(OSError, match="card service"):
        await bill(engine, "1", fails=True)
    await bill(engine, "1")
    assert await bills(engine) == ["1", *["earlier-0"] * before]


async def test_a_duplicate_leaves_the_transaction_usable(engine: AsyncEngine) -> None:
    await bill(engine, "1")
    async with AsyncSession(engine) as session, session.begin():
        await session.execute(text("insert into bill values ('before')"))
        with pytest.raises(Drop):
            await first_time(session, message("1"), group="billing")
        await session.execute(text("insert into bill values ('after')"))
    assert await bills(engine) == ["1", "after", "before"]


async def test_effects_before_the_mark_are_not_committed_by_it(engine: AsyncEngine) -> None:
    with pytest.raises(OSError, match="away"):
        async with AsyncSession(engine) as session, session.begin():
            await session.execute(text("insert into bill values ('before')"))
            await first_time(session, message("1"), group="billing")
            raise OSError("away")
    assert await bills(engine) == []


@pytest.mark.parametrize("first_commits", [True, False])
@pytest.mark.parametrize("table_exists", [True, False])
async def test_of_two_at_once_one_handles(engine: AsyncEngine, first_commits: bool, table_exists: bool) -> None:
    """The second waits for the end of the first, and is a first time only if the first was rolled back."""
    if table_exists:
        await bill(engine, "0")
    marked, go = asyncio.Event(), asyncio.Event()

    async def first() -> None:
        async with AsyncSession(engine) as session, session.begin():
            await first_time(session, message("1"), group="billing")
            await session.execute(text("insert into bill values ('first')"))
            marked.set()
            await go.wait()
            if not first_commits:
                raise OSError("away")

    async def second() -> None:
        await marked.wait()
        asyncio.get_running_loop().call_later(0.2, go.set)  # while the second's insert is waiting
        async with AsyncSession(engine) as session, session.begin():
            await first_time(session, message("1"), group="billing")
            await session.execute(text("insert into bill values ('second')"))

    results = await asyncio.gather(first(), second(), return_exceptions=True)
    if first_commits:
        assert results[0] is None
        assert isinstance(results[1], Drop)
    else:
        assert isinstance(results[0], OSError)
        assert results[1] is None
    assert await bills(engine) == [*["0"] * table_exists, "first" if first_commits else "second"]


async def test_many_at_once_on_an_empty_database(engine: AsyncEngine) -> None:
    """All race to create the table; whoever the database turns away is retried, as a bus does."""

    async def retried(id: str) -> bool:
        for _ in range(50):
            try:
                await bill(engine, id)
            except Drop:
                return False
            except DBAPIError as error:
                assert "locked" in str(error), "only SQLite may turn a writer away"  # noqa: PT017
            else:
                return True
        raise AssertionError("never let in")

    results = await asyncio.gather(*(retried(str(n % 4)) for n in range(16)))
    assert sum(results) == 4
    assert await bills(engine) == ["0", "1", "2", "3"]


async def test_a_table_that_was_dropped_comes_back(engine: AsyncEngine) -> None:
    await bill(engine, "1")
    await bill(engine, "2")
    async with engine.begin() as connection:
        await connection.execute(text("drop table switchgear_inbox"))
    with pytest.raises(DBAPIError):
        await bill(engine, "3")
    await bill(engine, "3")
    assert await bills(engine) == ["1", "2", "3"]


async def test_another_database_is_refused(engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.dialect, "name", "mysql")
    with pytest.raises(Unsupported, match="'mysql': use SQLite or PostgreSQL"):
        await bill(engine, "1")
