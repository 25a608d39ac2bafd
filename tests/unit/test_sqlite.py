"""The SQLite transport beyond the driver contract: its file, its errors, other processes, retention."""

# ruff: noqa: ASYNC240  (tests prepare files on the loop)

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from switchgear.driver import Delivery, Order, Outgoing, Resource, Settlement, Source, Subscription, Transport, Verdict
from switchgear.errors import ConfigurationError, NotSent, Refused, TransportError, Unavailable
from switchgear.plugins import open_transport
from switchgear_sqlite import SqliteTuning, schema, store
from switchgear_sqlite.wakeup import Waiter, Watch

ACK, RETRY = Verdict.ACK, Verdict.RETRY


async def revoked(lanes: object, lost: bool) -> None:
    raise AssertionError("SQLite revokes nothing")


def out(body: str, key: str | None = None, topic: str = "orders", **fields: object) -> Outgoing:
    encoded = None if key is None else key.encode()
    return Outgoing(topic=topic, body=body.encode(), key=encoded, **fields)  # type: ignore[arg-type]


async def send(transport: Transport, *batch: Outgoing, within: float = 5.0) -> Sequence[TransportError | None]:
    return await transport.send(batch, asyncio.get_running_loop().time() + within)


async def join(transport: Transport, group: str | None = "g", order: Order = Order.NONE, **fields: object) -> Source:
    topics = {"orders": None}
    subscription = Subscription(topics=topics, group=group, consumer="c", order=order, **fields)  # type: ignore[arg-type]
    return await transport.subscribe(subscription, revoked)


async def settle(source: Source, deliveries: Sequence[Delivery], verdict: Verdict = ACK, seconds: float = 0.0) -> None:
    assert await source.settle([Settlement(d, verdict, seconds) for d in deliveries]) == [None] * len(deliveries)


def bodies(deliveries: Sequence[Delivery]) -> list[bytes | None]:
    return [d.body for d in deliveries]


Open = Callable[..., Awaitable[Transport]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "bus.db"


@pytest.fixture
async def opened(path: Path) -> AsyncIterator[Open]:
    """Open `sqlite:///<path>?<options>`; closed with the test."""
    transports: list[Transport] = []

    async def connect(options: str = "", tuning: Sequence[object] = ()) -> Transport:
        transport = open_transport(f"sqlite:///{path}?{options}", tuning)
        await transport.connect(asyncio.get_running_loop().time() + 5)
        transports.append(transport)
        return transport

    yield connect
    for transport in transports:
        await transport.close()
    assert not [thread for thread in threading.enumerate() if "switchgear-sqlite" in thread.name]


# ---- URLs


@pytest.mark.parametrize(
    ("url", "wrong"),
    [
        ("sqlite://", "names no file"),
        ("sqlite:///", "names no file"),
        ("sqlite://relative.db", "sqlite:///relative.db"),
        ("sqlite://user:secret@host/a.db", "names no file"),
        ("sqlite:///folder/", "names no file"),
        ("sqlite:///:memory:", "use memory://"),
        ("sqlite:///a.db?synchronus=full", "did you mean 'synchronous'"),
        ("sqlite:///a.db?synchronous=sometimes", "expected one of full"),
        ("sqlite:///a.db?retention=week", "not a number"),
        ("sqlite:///a.db?retention=-1", "0 or more"),
        ("sqlite:///a.db?retention=nan", "0 or more"),
        ("sqlite:///a.db?max_messages=0", "1 or more"),
        ("sqlite:///a.db?poll=0", "0.001 to 1"),
        ("sqlite:///a.db?zzz=1", "known: synchronous"),
    ],
)
def test_wrong_urls_say_what_is_wrong(url: str, wrong: str) -> None:
    with pytest.raises(ConfigurationError, match=wrong) as raised:
        open_transport(url)
    assert "secret" not in str(raised.value)


async def test_relative_and_absolute_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for url, file in (("sqlite:///one%20two.db", "one two.db"), (f"sqlite:///{tmp_path}/abs.db", "abs.db")):
        transport = open_transport(url)
        await transport.connect(0.0)
        await transport.close()
        assert (tmp_path / file).exists()


async def test_options_reach_the_connection(opened: Open, path: Path) -> None:
    await opened("synchronous=normal", [SqliteTuning(synchronous="off", max_page_count=5000)])
    with closing(schema.connect(str(path), SqliteTuning(synchronous="off", max_page_count=5000))) as db:
        assert db.execute("PRAGMA synchronous").fetchone() == (0,)
        assert db.execute("PRAGMA max_page_count").fetchone() == (5000,)
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


# ---- a file that is not as it should be


async def refused(path: Path, kind: type[Exception], wrong: str) -> None:
    transport = open_transport(f"sqlite:///{path}?busy_timeout=0.2")
    with pytest.raises(kind, match=wrong) as raised:
        await transport.connect(asyncio.get_running_loop().time() + 5)
    assert str(path) in str(raised.value)
    await transport.close()
    assert not [thread for thread in threading.enumerate() if "switchgear-sqlite" in thread.name]


async def test_a_missing_folder(tmp_path: Path) -> None:
    await refused(tmp_path / "none" / "bus.db", ConfigurationError, "folder .* does not exist")


async def test_not_a_database(path: Path) -> None:
    path.write_bytes(b"id,customer\n" * 500)
    await refused(path, ConfigurationError, "no SQLite database")


async def test_a_folder_instead_of_a_file(path: Path) -> None:
    path.mkdir()
    await refused(path, ConfigurationError, "can't be read or written")


async def test_a_file_of_another_version(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE sg_meta(name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID")
        db.execute("INSERT INTO sg_meta VALUES ('version', '99')")
        db.commit()
    await refused(path, ConfigurationError, "layout 99, expected 1")


async def test_an_applications_file_is_shared(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE orders(id INTEGER PRIMARY KEY)")
        db.execute("INSERT INTO orders VALUES (7)")
        db.commit()
    transport = open_transport(f"sqlite:///{path}")
    await transport.connect(0.0)
    source = await join(transport)
    assert list(await send(transport, out("a"))) == [None]
    assert bodies(await source.receive(1)) == [b"a"]
    await transport.close()
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT id FROM orders").fetchall() == [(7,)]


async def test_damage_is_said_where_it_is_met(opened: Open, path: Path) -> None:
    transport: Transport = await opened()
    source = await join(transport)
    for i in range(20):
        await send(transport, *(out(f"{i}-{j}" * 20) for j in range(50)))
    await transport.close()
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096 * 12)
        file.write(b"\xa5" * (size - 4096 * 12))
    with pytest.raises((Refused, ConfigurationError), match="damaged"):
        transport = await opened()
        source = await join(transport, "new", start="earliest")
        while batch := await source.receive(100):
            await settle(source, batch)


DROP = """
import asyncio, os, sys
from switchgear.errors import ConfigurationError, Refused
from switchgear.plugins import open_transport
async def main():
    transport = open_transport("sqlite:///" + sys.argv[1])
    os.setgid(65534); os.setuid(65534)
    try:
        await transport.connect(asyncio.get_running_loop().time() + 5)
    except (ConfigurationError, Refused) as error:
        print(type(error).__name__ + ":", error)
    await transport.close()
asyncio.run(main())
"""


@pytest.fixture
def outside() -> Iterator[Path]:
    """A folder that others may be let into; pytest keeps them out of its own."""
    with TemporaryDirectory() as folder:
        yield Path(folder)


def somebody_else(path: Path) -> str:
    """What connecting comes to for a user without rights; it is root who runs this."""
    done = subprocess.run([sys.executable, "-c", DROP, str(path)], capture_output=True, text=True, timeout=120)
    return done.stdout + done.stderr


@pytest.mark.parametrize("what", ["file", "folder"])
async def test_what_may_only_be_read(what: str, outside: Path) -> None:
    path = outside / "bus.db"
    transport = open_transport(f"sqlite:///{path}")
    await transport.connect(0.0)
    await transport.close()
    if os.getuid() != 0:
        path.chmod(0o444)
        outside.chmod(0o555)
        try:
            with pytest.raises(Refused, match="can't be written"):
                await open_transport(f"sqlite:///{path}").connect(0.0)
        finally:
            outside.chmod(0o755)
        return
    outside.chmod(0o755 if what == "folder" else 0o777)
    path.chmod(0o444 if what == "file" else 0o666)
    assert somebody_else(path).startswith("Refused: sqlite:///")
    assert "can't be written" in somebody_else(path)


async def test_a_folder_that_may_not_be_entered(outside: Path) -> None:
    path = outside / "closed" / "inner" / "bus.db"
    path.parent.mkdir(parents=True)
    outside.chmod(0o755)
    path.parent.parent.chmod(0o600)
    if os.getuid() != 0:
        await refused(path, ConfigurationError, "can't be read or written")
    else:
        said = somebody_else(path)
        assert said.startswith("ConfigurationError: sqlite:///")
        assert "can't be read or written" in said
    path.parent.parent.chmod(0o700)


async def test_a_bug_while_the_file_is_opened_reaches_who_connects(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "prepare", lambda db, path: 1 / 0)
    transport = open_transport(f"sqlite:///{path}")
    with pytest.raises(ZeroDivisionError):
        await transport.connect(0.0)
    await transport.close()


async def test_a_full_file_can_be_read_and_recovers(opened: Open) -> None:
    transport: Transport = await opened("max_page_count=150&retention=0")
    source = await join(transport, order=Order.KEY)

    async def fill() -> int:
        accepted = 0
        with pytest.raises(NotSent, match="max_page_count"):
            while True:
                await send(transport, *(out("x" * 100, key=f"k{i}") for i in range(50)))
                accepted += 50
        return accepted

    async def empty() -> int:
        settled = 0
        while batch := await source.receive(200):
            await settle(source, batch)
            settled += len(batch)
        return settled

    accepted = await fill()
    assert accepted > 500
    assert await empty() == accepted
    await old(transport, 1000)
    for _ in range(accepted // store.SLICE + 2):
        await source._claim(1)  # type: ignore[attr-defined]
    again = await fill()
    assert again > accepted // 2
    assert await empty() == again


@contextmanager
def locked(path: Path) -> Iterator[None]:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        yield
        db.execute("ROLLBACK")


class Stopwatch:
    """The writer's time, in place of the module `time`: it passes only while the writer waits for the file's lock."""

    def __init__(self) -> None:
        self.passed = 0.0
        self.stands = False
        self.tried = threading.Event()

    def monotonic(self) -> float:
        return self.passed

    def sleep(self, seconds: float) -> None:
        if self.stands:
            self.tried.set()
            time.sleep(0.001)
        else:
            self.passed += seconds


async def test_a_locked_file_costs_no_more_than_the_deadline(
    opened: Open, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport: Transport = await opened("busy_timeout=0.6")
    source = await join(transport)
    await send(transport, out("a"))
    (a,) = await source.receive(1)
    watch = Stopwatch()
    monkeypatch.setattr("switchgear_sqlite.worker.time", watch)
    monkeypatch.setattr("switchgear_sqlite.transaction.time", watch)
    with locked(path):
        with pytest.raises(NotSent, match="locked"):
            await send(transport, out("b"), within=0.2)
        assert watch.passed < 0.21
        began = watch.passed
        with pytest.raises(Unavailable, match="busy_timeout"):
            await source.settle([Settlement(a, ACK)])
        assert 0.6 <= watch.passed - began < 0.61
        with pytest.raises(Unavailable):
            await transport.connect(asyncio.get_running_loop().time() + 1)
        watch.stands = True
        late = asyncio.create_task(send(transport, out("c"), within=60.0))
        await asyncio.to_thread(watch.tried.wait)
    assert list(await late) == [None]
    await settle(source, [a])
    assert bodies(await source.receive(10)) == [b"c"]


async def test_one_bad_job_does_not_take_others_along(opened: Open) -> None:
    transport: Transport = await opened()
    source = await join(transport)
    writer = transport._files.writer  # type: ignore[attr-defined]

    def fail(db: sqlite3.Connection) -> None:
        db.execute("INSERT INTO sg_rows VALUES ('half', x'00', 1, NULL)")
        raise ZeroDivisionError

    failing = asyncio.create_task(writer.run(fail))
    sends = [asyncio.create_task(send(transport, out(str(i)))) for i in range(5)]
    with pytest.raises(ZeroDivisionError):
        await failing
    assert [list(outcome) for outcome in await asyncio.gather(*sends)] == [[None]] * 5
    assert await transport.read("half") == {}  # type: ignore[attr-defined]
    assert bodies(await source.receive(10)) == [str(i).encode() for i in range(5)]


# ---- other processes

CHILD = """
import asyncio, sys
from switchgear.driver import Order, Outgoing, Settlement, Subscription, Verdict
from switchgear.plugins import open_transport

async def revoked(lanes, lost): ...

async def main(path, role, lease):
    transport = open_transport(f"sqlite:///{path}?busy_timeout=60")
    await transport.connect(0.0)
    if role == "publish":
        n = 0
        while True:
            batch = [Outgoing(topic="orders", body=str(n + i).encode(), key=b"k%d" % ((n + i) % 7)) for i in range(20)]
            assert list(await transport.send(batch, asyncio.get_running_loop().time() + 60)) == [None] * 20
            n += 20
            print(n, flush=True)
    order = Order.KEY if role == "ordered" else Order.NONE
    topics = {"orders": None}
    source = await transport.subscribe(
        Subscription(topics=topics, group="g", consumer=role, order=order, lease=float(lease)), revoked)
    print("ready", flush=True)
    while True:
        batch = await source.receive(20)
        for d in batch:
            print("got", d.body.decode(), flush=True)
        await source.settle([Settlement(d, Verdict.ACK) for d in batch])
        for d in batch:
            print("settled", d.body.decode(), flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


class Child:
    """The same transport in another process; what it prints is what it vouches for."""

    def __init__(self, path: Path, role: str, lease: float, pipe: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(path), role, str(lease)], stdout=subprocess.PIPE, text=True, pipesize=pipe
        )

    async def line(self) -> str:
        """The next that it says."""
        assert self.process.stdout is not None
        line = await asyncio.to_thread(self.process.stdout.readline)
        assert line.endswith("\n"), "the child has ended"
        return line.strip()

    def kill(self) -> list[str]:
        """SIGKILL; what it had printed until then and nobody has read."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        with self.process:
            assert self.process.stdout is not None
            if self.process.stdout.closed:
                return []
            said = self.process.stdout.read()
        return said.split("\n")[:-1]  # the last may be half


Start = Callable[..., Child]


@pytest.fixture
def start(path: Path) -> Iterator[Start]:
    """Start a child; it ends with the test, however that ends, so that nobody waits for its next line."""
    children: list[Child] = []

    def begin(role: str, lease: float = 1.0, pipe: int = 65536) -> Child:
        """`pipe`: bytes that it may say before somebody listens."""
        children.append(Child(path, role, lease, pipe))
        return children[-1]

    yield begin
    for child in children:
        child.kill()


async def unsettled(transport: Transport) -> int:
    """How many messages the group has not settled, whoever holds them."""
    found: dict[str, int] = await transport.lag(["orders"], "g")  # type: ignore[attr-defined]
    return found["orders"]


async def test_a_killed_publisher_loses_nothing_that_it_was_told_is_stored(opened: Open, start: Start) -> None:
    transport: Transport = await opened()
    source = await join(transport)
    child = start("publish")
    told = [int(await child.line()) for _ in range(10)]
    told += map(int, child.kill())
    seen: list[bytes | None] = []
    while await unsettled(transport):
        batch = await source.receive(500)
        await settle(source, batch)
        seen += bodies(batch)
    assert seen == [str(i).encode() for i in range(len(seen))]  # a batch is there as a whole or not at all
    assert told[-1] <= len(seen) <= told[-1] + 20
    assert len(seen) % 20 == 0


@pytest.mark.parametrize("role", ["plain", "ordered"])
async def test_what_a_killed_consumer_had_not_settled_comes_again(opened: Open, start: Start, role: str) -> None:
    transport: Transport = await opened()
    child = start(role, pipe=4096)
    assert await child.line() == "ready"
    sent = {str(i) for i in range(2000)}  # more than it can tell of before its pipe is full: it never gets done
    await send(transport, *(out(str(i), f"k{i % 7}") for i in range(2000)))
    said = [await child.line() for _ in range(30)] + child.kill()
    got = {line.split()[1] for line in said if line.startswith("got")}
    settled = {line.split()[1] for line in said if line.startswith("settled")}
    source = await join(transport, order=Order.KEY if role == "ordered" else Order.NONE)
    seen: list[str] = []
    while await unsettled(transport):
        batch = await source.receive(100)
        await settle(source, batch)
        seen += [(d.body or b"").decode() for d in batch]
    assert max(Counter(seen).values()) == 1
    assert not settled & set(seen), "settled, and handed out again"
    missing = sent - settled - set(seen)
    # killed between the commit and its report, it had settled the whole batch that it held, else nothing of it
    assert missing in (set(), got - settled), "neither settled nor handed out again"
    if role == "ordered":
        for key in range(7):
            mine = [int(body) for body in seen if int(body) % 7 == key]
            assert mine == sorted(mine)


async def test_two_processes_share_without_loss_or_duplicate(opened: Open, start: Start) -> None:
    transport: Transport = await opened("busy_timeout=60")
    child = start("ordered", lease=60.0)
    assert await child.line() == "ready"
    mine: list[str] = []
    theirs: list[str] = []

    async def publish(numbers: range) -> None:
        for i in range(numbers.start, numbers.stop, 50):
            batch = [out(str(j), f"k{j % 50}") for j in range(i, i + 50)]
            assert list(await send(transport, *batch, within=60.0)) == [None] * 50

    async def listen(least: int) -> None:
        while len(theirs) < least:
            word, body = (await child.line()).split()
            if word == "settled":
                theirs.append(body)

    async def consume(publishing: asyncio.Task[None]) -> None:
        while not publishing.done() or await unsettled(transport):
            batch = await source.receive(30)
            await settle(source, batch)
            mine.extend((d.body or b"").decode() for d in batch)

    await publish(range(100))
    await listen(1)
    source = await join(transport, order=Order.KEY)
    publishing = asyncio.create_task(publish(range(100, 2000)))
    await consume(publishing)
    await publishing
    await listen(2000 - len(mine))  # all is settled; the child may still have to say so
    theirs += [line.split()[1] for line in child.kill() if line.startswith("settled")]
    assert Counter(mine + theirs) == Counter(str(i) for i in range(2000))
    for key in range(50):
        for handled in (mine, theirs):
            ordered = [int(body) for body in handled if int(body) % 50 == key]
            assert ordered == sorted(ordered)


async def test_a_commit_of_another_process_wakes_who_waits(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In another thread with a loop of its own, which shares nothing with the reader but the file."""
    monkeypatch.setattr("switchgear_sqlite.source.WAIT", 3600.0)  # nothing else ends the waiting
    transport = open_transport(f"sqlite:///{path}")
    await transport.connect(0.0)
    source = await join(transport)

    async def publish() -> None:
        publisher = open_transport(f"sqlite:///{path}")
        await publisher.connect(0.0)
        assert list(await send(publisher, out("x"), within=60.0)) == [None]
        await publisher.close()

    for _ in range(10):
        receiving = asyncio.create_task(source.receive(10))
        while source._waiter is None:  # type: ignore[attr-defined]  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        await asyncio.to_thread(asyncio.run, publish())
        batch = await receiving
        assert bodies(batch) == [b"x"]
        await settle(source, batch)
    await transport.close()


async def test_while_somebody_waits_it_looks_for_commits_often_and_asks_seldom(path: Path) -> None:
    asked: list[float | None] = [None, time.time() + 3600, 0.0]

    def question(db: sqlite3.Connection) -> float | None:
        return asked.pop(0)

    poll = SqliteTuning().poll
    assert poll < 0.05
    watch = Watch(poll)
    waiter = Waiter(question, asyncio.get_running_loop().create_future())
    with (
        closing(sqlite3.connect(path, isolation_level=None)) as reader,
        closing(sqlite3.connect(path, isolation_level=None)) as other,
    ):
        assert watch.look(reader) is None
        watch.add(waiter)
        for left in (2, 1):
            for _ in range(3):  # it asks once a commit
                assert watch.look(reader) == poll
                assert len(asked) == left
            other.execute(f"CREATE TABLE t{left}(x)")
        assert watch.look(reader) == poll
        await waiter.future
        assert watch.look(reader) is None  # nobody waits any more


# ---- retention


async def old(transport: Transport, seconds: float) -> None:
    """Make everything that is stored older."""
    writer = transport._files.writer  # type: ignore[attr-defined]
    await writer.run(lambda db: db.execute("UPDATE sg_m1 SET time = time - ?", (seconds,)))
    transport._files.trim._next.clear()  # type: ignore[attr-defined]


async def kept(transport: Transport) -> list[bytes | None]:
    return [d.body async for d, _ in transport.browse("orders", "earliest", None)]  # type: ignore[attr-defined]


async def test_what_every_group_settled_stays_for_the_retention(opened: Open) -> None:
    transport: Transport = await opened("retention=3600")
    one, two = await join(transport, "one"), await join(transport, "two")
    await send(transport, *(out(str(i)) for i in range(10)))
    await settle(one, await one.receive(10))
    await settle(two, (taken := await two.receive(10))[:5])
    assert len(await kept(transport)) == 10
    await old(transport, 3601)
    await settle(one, await one.receive(0))
    await send(transport, out("young"))
    await settle(one, await one.receive(10))
    assert await kept(transport) == [*(str(i).encode() for i in range(5, 10)), b"young"]
    transport._files.trim._next.clear()  # type: ignore[attr-defined]
    await settle(two, taken[5:])
    assert await kept(transport) == [b"young"]
    assert await transport.lag(["orders"], "two") == {"orders": 1}  # type: ignore[attr-defined]


async def test_what_nobody_reads_stays(opened: Open) -> None:
    transport: Transport = await opened("retention=0")
    await send(transport, out("a"), out("b"))
    await old(transport, 1e6)
    source = await join(transport, start="earliest")
    assert bodies(await source.receive(10)) == [b"a", b"b"]


async def test_trimming_goes_in_slices_and_never_repeats_a_position(opened: Open) -> None:
    transport: Transport = await opened("retention=0")
    files = transport._files  # type: ignore[attr-defined]
    source = await join(transport)
    count = store.SLICE * 2 + 50
    await send(transport, *(out(str(i)) for i in range(count)))
    got = await source.receive(count)
    await settle(source, got)
    await old(transport, 1000)
    sizes = []
    for _ in range(4):
        await files.writer.run(lambda db: files.trim(db, 1))
        sizes.append(len(await kept(transport)))
    assert sizes == [count - store.SLICE, count - 2 * store.SLICE, 1, 1]  # the newest stays: positions go on from it
    await send(transport, out("next"))
    (d,) = await source.receive(1)
    assert int(source.position(d)) == int(source.position(got[-1])) + 1


async def test_by_count(opened: Open) -> None:
    transport: Transport = await opened("max_messages=100")
    source = await join(transport)
    await send(transport, *(out(str(i)) for i in range(300)))
    transport._files.trim._next.clear()  # type: ignore[attr-defined]
    await send(transport, out("300"))
    assert await transport.lag(["orders"], "g") == {"orders": 100}  # type: ignore[attr-defined]
    assert bodies(await source.receive(1)) == [b"201"]
    assert source.trimmed == {"orders": 201}  # type: ignore[attr-defined]


async def test_declared_retention_trims_unread(opened: Open) -> None:
    transport: Transport = await opened()
    source = await join(transport, order=Order.KEY)
    await transport.provision([Resource(kind="topic", name="orders", retention=60.0)], True)  # type: ignore[attr-defined]
    await send(transport, *(out(str(i), "k") for i in range(50)))
    held = await source.receive(3)
    await old(transport, 61)
    await send(transport, out("young", "k"))
    await settle(source, held)
    assert bodies(await source.receive(10)) == [b"young"]
    assert source.trimmed == {"orders": 47}  # type: ignore[attr-defined]
    other = await join(transport, order=Order.KEY)
    assert await other.receive(0) == []
    assert other.trimmed == {}  # type: ignore[attr-defined]


async def test_the_order_of_a_stopped_group_may_change(opened: Open) -> None:
    transport: Transport = await opened()
    first = await join(transport, order=Order.NONE)
    await send(transport, *(out(str(i), f"k{i % 2}") for i in range(40)))
    await settle(first, (await first.receive(10))[5:])
    await first.close()
    second = await join(transport, order=Order.KEY)
    got = await second.receive(100)
    for key in (b"k0", b"k1"):
        mine = [int(d.body or b"") for d in got if d.key == key]
        assert mine == sorted(mine)
    await settle(second, got[::2])
    await second.close()
    third = await join(transport, order=Order.TOTAL)
    rest = [int(d.body or b"") for d in await third.receive(100)]
    assert rest == sorted(rest)
    assert len(rest) == 40 - 5 - len(got[::2])
