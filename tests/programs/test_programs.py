"""Each program does what it says: on SQLite, or in memory where it names a broker that may be missing."""

from __future__ import annotations

import asyncio
import importlib
import itertools
import json
import os
import signal
import sys
import sysconfig
import urllib.error
import urllib.request
from asyncio.subprocess import PIPE, Process
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from switchgear import Breaker, Bus, Knobs, Message, Rate, Topic, Unsupported, testing
from tests.support.ports import free_port
from tests.support.stored import stored

from .depot import Label, Parcel, Pickup, labels, parcels, pickups
from .p11_handler_tests import test_a_bus, test_a_function

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
SWITCHGEAR = Path(sysconfig.get_path("scripts")) / "switchgear"
PATIENCE = 120.0  # seconds; what takes longer does not come any more
Program = Callable[..., ModuleType]

test_p11_a_function, test_p11_a_bus = test_a_function, test_a_bus
del test_a_function, test_a_bus  # or they would run twice


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """Imports a program anew, in an empty folder, with what the environment says of its broker."""

    def load(name: str, url: str | None = None) -> ModuleType:
        monkeypatch.chdir(tmp_path)
        if url is not None:
            monkeypatch.setenv("SWITCHGEAR_URL", url)
        for module in [m for m in sys.modules if m.startswith(f"tests.programs.{name.partition('.')[0]}")]:
            monkeypatch.delitem(sys.modules, module)
        return importlib.import_module(f"tests.programs.{name}")

    return load


async def until(condition: Callable[[], object]) -> None:
    """Let real time pass until the condition holds; a test that waits in vain fails with it."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@asynccontextmanager
async def process(*command: str | Path, cwd: Path, **environment: str) -> AsyncGenerator[Process]:
    """A child with its output piped, killed if the test leaves it running."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("SWITCHGEAR_")}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    child = await asyncio.create_subprocess_exec(
        *map(str, command),
        cwd=cwd,
        env={**inherited, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **environment},
        stdout=PIPE,
        stderr=PIPE,
    )
    try:
        yield child
    finally:
        if child.returncode is None:
            child.kill()
        await child.communicate()


async def stop(child: Process) -> None:
    """Ask it to end and see that it does so in order."""
    child.send_signal(signal.SIGTERM)
    out, err = await child.communicate()
    assert child.returncode == 0, f"{out.decode()}\n{err.decode()}"
    assert b"Traceback" not in err


async def heard(bus: Bus, topic: Topic[Any] | str, value: Any, answer: Awaitable[Any]) -> Any:
    """Publish until the answer comes: a new group hears what is published once it has joined."""
    waiting = asyncio.ensure_future(answer)
    try:
        async with asyncio.timeout(PATIENCE):
            while not waiting.done():
                await bus.publish(topic, value)
                await asyncio.wait([waiting], timeout=0.1)
        return waiting.result()
    finally:
        waiting.cancel()


async def everything(url: str, topic: Topic[Any], namespace: str = "") -> list[Message[Any]]:
    """What the file holds of a topic."""
    count = len(await stored(url, namespace + topic.name))
    async with Bus(url, namespace=namespace) as bus, bus.consumer(topic, group=None, start="earliest") as messages:
        return [await anext(messages) for _ in range(count)]


async def line_of(child: Process) -> str:
    """Its next line; if it ended instead, the test fails with what it said."""
    assert child.stdout is not None
    assert child.stderr is not None
    line = await child.stdout.readline()
    assert line, f"it ended: {(await child.stderr.read()).decode()}"
    return line.decode().strip()


async def test_p01_hello(tmp_path: Path) -> None:
    source = HERE / "p01_hello.py"
    assert len(source.read_text().splitlines()) <= 8
    async with process(sys.executable, source, cwd=tmp_path) as child, Bus(f"sqlite:///{tmp_path}/hello.db") as bus:
        assert await heard(bus, "hello", "world", line_of(child)) == "Hello, world!"
        await stop(child)


async def test_p02_web_app(program: Program) -> None:
    web = program("p02_web_app", "memory://")
    transport = httpx.ASGITransport(app=web.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://depot") as client:
        assert (await client.get("/ready")).json() is False
        async with web.app.router.lifespan_context(web.app):
            assert (await client.get("/ready")).json() is True
            answer = await client.post("/parcels", params={"id": "p-1", "city": "Ulm"})
            assert answer.status_code == 200
            assert isinstance(answer.json(), str)
            await until(lambda: web.arrived == ["p-1"])


async def test_p02_web_app_without_its_broker(program: Program) -> None:
    web = program("p02_web_app", "redis://127.0.0.1:1")  # nobody listens
    transport = httpx.ASGITransport(app=web.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://depot") as client, web.bus:
        answer = await client.post("/parcels", params={"id": "p-1", "city": "Ulm"})
        assert answer.status_code == 503


def test_p03_sync_views(program: Program, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/views.db"
    views = program("p03_sync_views", url)
    rows = [Parcel("p-2", "Ulm", 1), Parcel("p-3", "Bonn", 2)]
    one = views.hand_in("acme")
    assert views.nightly(rows) == ["p-2", "p-3"]
    views.bus.close()

    found = asyncio.run(everything(url, parcels))
    assert sorted(m.id for m in found) == sorted([one, "p-2", "p-3"])
    assert {m.id: m.body for m in found} == {one: Parcel("p-1", "Ulm", 900), "p-2": rows[0], "p-3": rows[1]}
    assert [m.headers.get("tenant") for m in found if m.id == one] == ["acme"]


async def test_p04_sql_worker(program: Program, tmp_path: Path) -> None:
    worker = program("p04_sql_worker")
    database = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/franking.db")
    async with database.begin() as connection:
        await connection.execute(text("create table postage (id varchar, paid float)"))
    async with testing.in_memory(worker.bus) as trace:
        await worker.bus.publish(parcels, Parcel("p-1", "Ulm", 100), id="m-1")
        await trace.idle()
        assert trace.published(labels) == [Label("p-1", "Ulm", 1.0)]
    async with testing.in_memory(worker.bus) as trace:  # another broker, which does not know the message any more
        await worker.bus.publish(parcels, Parcel("p-1", "Ulm", 100), id="m-1")
        await worker.bus.publish(parcels, Parcel("p-2", "Ulm", 200), id="m-2")
        await trace.idle()
        assert trace.published(labels) == [Label("p-2", "Ulm", 2.0)]
        assert trace.dead_letters(parcels, group="franking") == []
    async with database.connect() as connection:
        rows = await connection.execute(text("select id, paid from postage order by id"))
        assert [tuple(row) for row in rows] == [("p-1", 1.0), ("p-2", 2.0)]
    await database.dispose()


async def test_p05_two_brokers(program: Program) -> None:
    two = program("p05_two_brokers")
    screens = Topic("screens", dict[str, str])
    async with testing.in_memory(two.events, two.live) as trace:
        id = await two.events.publish(parcels, Parcel("p-1", "Ulm", 100))
        await trace.idle()
        assert trace.published(screens) == [{"id": "p-1"}]
        (handled,) = trace.handled(parcels, group="screens")
        assert handled.id == id


async def test_p06_event_types(program: Program) -> None:
    types = program("p06_event_types")
    async with testing.in_memory(types.bus) as trace:
        await types.bus.publish(types.accepted, types.Accepted("p-1"))
        await types.bus.publish(types.delivered, types.Delivered("p-1", "Ada"))
        await trace.idle()
        assert [line for line in types.log if line.startswith("log")] == ["log p-1 accepted", "log p-1 signed by Ada"]
        assert [line for line in types.log if line.startswith("counter")] == [
            "counter accepted p-1",
            "counter delivered p-1",
        ]
        assert trace.dead_letters(types.journey, group="counter") == []


async def test_p07_batches(program: Program) -> None:
    batches = program("p07_batches")
    async with testing.in_memory(batches.bus) as trace:
        good = [Parcel(f"p-{n}", "Ulm", 1 + n) for n in range(5)]
        await batches.bus.publish_many(parcels, [*good, Parcel("p-x", "Bonn", -1)])
        await trace.advance(1)
        await trace.idle()
        await trace.advance(60)
        await trace.idle()
        # p-3 failed once and took p-4, of the same key, with it: p-4 is loaded again, after p-3
        assert batches.loaded == ["p-0", "p-1", "p-2", "p-4", "p-3", "p-4"]
        (dead,) = trace.dead_letters(parcels, group="warehouse")
        assert dead.body.id == "p-x"
        assert trace.dead_letters(parcels, group="archive") == []


async def test_p07_batches_retry_after(program: Program) -> None:
    batches = program("p07_batches")
    async with testing.in_memory(batches.bus) as trace:
        await batches.bus.publish(parcels, Parcel("p-1", "Ulm", 0))
        await trace.idle()
        assert trace.dead_letters(parcels, group="archive") == []
        await trace.advance(31)
        await trace.idle()
        await trace.advance(31)
        await trace.idle()
        (dead,) = trace.dead_letters(parcels, group="archive")
        assert dead.body.id == "p-1"
        assert dead.attempt == 3


async def test_p08_per_key(program: Program, tmp_path: Path) -> None:
    keyed = program("p08_per_key", f"sqlite:///{tmp_path}/keyed.db")
    await keyed.main()  # before the group exists
    cities = [f"city-{n}" for n in range(20)]
    async with keyed.bus.serving():
        sent = [Parcel(f"p-{n}", city, n) for n in range(10) for city in cities]
        for parcel in sent:
            await keyed.bus.publish(keyed.parcels, parcel)
        await until(lambda: len(keyed.booked) >= len(sent))
    seen: dict[str, list[float]] = defaultdict(list)
    for city, grams in keyed.booked:
        seen[city].append(grams)
    assert seen == {city: list(range(10)) for city in cities}


async def test_p08_publishes_by_topic_and_by_name(program: Program, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/keyed.db"
    keyed = program("p08_per_key", url)
    await keyed.main()
    found = [(m.key, m.body) for m in await everything(url, keyed.parcels)]
    assert found == [("Ulm", Parcel("p-1", "Ulm", 1)), ("Ulm", Parcel("p-2", "Ulm", 2))]


async def test_p09_notebook(program: Program, tmp_path: Path) -> None:
    notebook = program("p09_notebook")
    url = f"sqlite:///{tmp_path}/notes.db"
    sent = [Parcel("p-1", "Ulm", 0), Parcel("p-2", "Ulm", 1)]
    async with Bus(url) as bus:
        await bus.publish_many(parcels, sent)
        assert await notebook.cell(url) == sent
        async with bus.consumer(parcels, group="audit") as messages:
            left = await anext(messages)
            await left.ack()
    assert left.body == sent[1], "the first was rejected, the second is the group's next"


async def test_p10_request(program: Program) -> None:
    asking = program("p10_request")
    async with testing.in_memory(asking.bus):
        assert (await asking.bus.request(asking.quotes, asking.Quote("Ulm"), asking.Price)).postage == 4.2
        with pytest.raises(asking.RequestFailed, match="no city"):
            await asking.bus.request(asking.quotes, asking.Quote(""), asking.Price)


async def test_p11_faults_are_refused_until_they_exist(program: Program) -> None:
    tests = program("p11_handler_tests")
    with pytest.raises(Unsupported, match=r"[Ff]aults"):  # as soon as this fails, `faulty` is a test
        await tests.faulty()


async def test_p12_chain(program: Program) -> None:
    chain = program("p12_chain")
    async with testing.in_memory(chain.bus) as trace:
        first = await chain.bus.publish(parcels, Parcel("p-1", "Ulm", 1))
        await chain.bus.publish(parcels, Parcel("p-2", "Ulm", 0))
        await trace.idle()
        assert trace.published(labels) == [Label("p-1", "Ulm", 1.5)]
        assert trace.published(pickups) == [Pickup("p-1")]
        assert trace.published(chain.returned) == [Parcel("p-2", "Ulm", 0)]
        assert chain.compensated == ["p-2"]
        (label,) = trace.handled(labels, group="carrier")
        assert label.correlation_id == first


async def test_p13_modular(program: Program) -> None:
    main = program("p13_modular.main")
    bus = main.create()
    async with testing.in_memory(bus) as trace:
        await bus.publish(parcels, Parcel("p-1", "Ulm", 1))
        await trace.idle()
        assert trace.published(labels) == [Label("p-1", "Ulm", 1.5)]


async def test_p13_is_served_by_its_factory(tmp_path: Path) -> None:
    """The command line calls the factory; the namespace keeps its topics apart from another bus's."""
    url = f"sqlite:///{tmp_path}/modular.db"
    target = "tests.programs.p13_modular.main:create"
    command = (SWITCHGEAR, "run", target)
    async with process(*command, cwd=tmp_path, SWITCHGEAR_URL=url) as child, Bus(url, namespace="staging.") as staging:
        async with staging.consumer(labels, group=None) as made:
            label = await heard(staging, parcels, Parcel("p-1", "Ulm", 1), anext(made))
            assert label.body == Label("p-1", "Ulm", 1.5)
        await stop(child)


async def test_p14_config(program: Program, tmp_path: Path) -> None:
    (tmp_path / "switchgear.toml").write_text((HERE / "switchgear.toml").read_text())
    config = program("p14_config")
    async with config.bus.serving():
        id = await config.bus.publish(parcels, Parcel("p-1", "Ulm", 1))
    assert (tmp_path / "dev.db").is_file(), "BROKER_URL is not set, so its default counts"
    found = await everything(f"sqlite:///{tmp_path}/dev.db", parcels, namespace="prod.")
    assert [message.id for message in found] == [id]


async def test_p14_is_explained_with_its_origins(tmp_path: Path) -> None:
    (tmp_path / "switchgear.toml").write_text((HERE / "switchgear.toml").read_text())
    command = (SWITCHGEAR, "explain", "tests.programs.p14_config:bus", "--json")
    async with process(*command, cwd=tmp_path) as child:
        out, err = await child.communicate()
        assert child.returncode == 0, err.decode()
    shown = json.dumps(json.loads(out))
    assert "switchgear.toml" in shown
    assert "64" in shown
    assert "prod." in shown


async def test_p15_correlation(program: Program) -> None:
    program_ = program("p15_correlation")
    async with testing.in_memory(program_.bus) as trace:
        first = await program_.bus.publish(parcels, Parcel("p-1", "Ulm", 1), headers={"tenant": "acme", "x": "y"})
        second = await program_.bus.publish(parcels, Parcel("p-2", "Ulm", 1))
        await trace.idle()
        assert trace.published(labels) == [Label("p-1", "Ulm", 1), Label("p-2", "Ulm", 1)]
    correlations = [(correlation, tenant) for correlation, _, tenant in program_.chain]
    assert correlations == [(first, "acme"), (second, None)]
    assert len({first, second, *(id for _, id, _ in program_.chain)}) == 4, "each message has an id of its own"


async def test_p16_cpu_bound(program: Program, tmp_path: Path) -> None:
    cpu = program("p16_cpu_bound", f"sqlite:///{tmp_path}/cpu.db")
    volumes = Topic("volumes", dict[str, int])
    try:
        async with (
            cpu.bus.serving(),
            cpu.bus.consumer("photos", group=None) as photos,
            cpu.bus.consumer(volumes, group=None) as made,
        ):
            await cpu.bus.publish(parcels, Parcel("p-1", "Ulm", 1))
            async with asyncio.timeout(PATIENCE):
                assert (await anext(photos)).body == "p-1"
                volume = (await anext(made)).body
        assert volume["cells"] == sum(range(10**5))
        assert volume["pid"] != os.getpid()
    finally:
        cpu.pool.shutdown()


async def test_p17_dynamic(program: Program) -> None:
    dynamic = program("p17_dynamic")
    async with testing.in_memory(dynamic.bus) as trace:
        await dynamic.watch("acme")
        await dynamic.watch("duck")
        for tenant, what in itertools.product(["acme", "duck"], ["one"]):
            await dynamic.bus.publish(f"tenant.{tenant}", {"what": what})
        await trace.idle()
        await dynamic.unwatch("acme")
        await dynamic.bus.publish("tenant.acme", {"what": "two"})
        await dynamic.bus.publish("tenant.duck", {"what": "two"})
        await trace.idle()
        assert sorted(dynamic.seen) == [("acme", "one"), ("duck", "one"), ("duck", "two")]
        await dynamic.unwatch("duck")


async def test_p18_foreign_json(program: Program) -> None:
    foreign = program("p18_foreign_json")
    at = datetime(2026, 11, 23, 12, tzinfo=UTC)
    async with testing.in_memory(foreign.bus) as trace:
        await foreign.bus.publish(foreign.readings, foreign.Reading(scale="s-1", at=at, grams=7.5))
        await trace.idle()
        ((reading, id, _),) = foreign.stored
        assert reading == foreign.Reading(scale="s-1", at=at, grams=7.5)
        assert id.startswith("depot.readings/"), "a plain message is known by its position"
        (message,) = trace.handled(foreign.readings, group="store")
        assert message.data is not None
        assert json.loads(message.data) == {"scale": "s-1", "at": "2026-11-23T12:00:00Z", "grams": 7.5}
        assert dict(message.headers) == {}


async def test_p19_delayed(program: Program) -> None:
    delayed = program("p19_delayed")
    async with testing.in_memory(delayed.bus) as trace:
        start = datetime.now(UTC)
        await delayed.bus.publish(delayed.ticks, start)
        for _ in range(3):
            await trace.idle()
            await trace.advance(timedelta(minutes=1))
        await trace.idle()
        ticks = [m.body for m in trace.handled(delayed.ticks, group="cron")]
        assert ticks[:3] == [start + timedelta(minutes=n) for n in range(3)]


async def test_p19_cancelled(program: Program) -> None:
    delayed = program("p19_delayed")
    async with testing.in_memory(delayed.bus) as trace:
        assert await delayed.remind(Parcel("p-1", "Ulm", 1)) is True
        await trace.advance(timedelta(hours=25))
        await trace.idle()
        assert delayed.polls == [], "one was cancelled, the other is due in a hundred years"
        assert await delayed.bus.cancel(parcels, "never-published") is False


async def test_p19_retry_after(program: Program) -> None:
    delayed = program("p19_delayed")
    async with testing.in_memory(delayed.bus) as trace:
        await delayed.bus.publish(parcels, Parcel("p-1", "Ulm", 1))
        await trace.idle()
        assert len(delayed.polls) == 1
        await trace.advance(29)
        assert len(delayed.polls) == 1
        await trace.advance(2)
        await trace.idle()
        await trace.advance(31)
        await trace.idle()
        assert len(delayed.polls) == 3
        assert trace.dead_letters(parcels, group="poll") == []


async def test_p20_worker(tmp_path: Path) -> None:
    """The command line serves it, tells its health, and ends it in order."""
    url = f"sqlite:///{tmp_path}/worker.db"
    port = free_port()
    command = (SWITCHGEAR, "run", "tests.programs.p20_worker:bus", "--health", str(port))

    def status(path: str) -> int:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=PATIENCE) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    async with process(*command, cwd=tmp_path, SWITCHGEAR_URL=url) as child, Bus(url) as bus:
        assert await heard(bus, parcels, Parcel("p-1", "Ulm", 1), line_of(child)) == "p-1"
        assert await asyncio.to_thread(status, "/live") == 200
        assert await asyncio.to_thread(status, "/ready") == 200
        await stop(child)


@pytest.mark.parametrize("knobs", [Knobs(breaker=Breaker("payments", ratio=0.5)), Knobs(rate=Rate(100, per=1))])
async def test_p20_refuses_a_knob_until_it_exists(knobs: Knobs) -> None:
    """As soon as this fails, the program takes the knob."""

    async def frank(parcel: Parcel) -> None: ...

    bus = Bus("memory://")
    (knob,) = knobs
    with pytest.raises(Unsupported, match=knob):
        bus.subscribe(parcels, group="franking", **knobs)(frank)
        async with bus.serving():
            pass
