"""`run`: programs in processes of their own, and the signals that end them."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from switchgear import Bus, ConfigurationError, Misuse, run
from switchgear.runtime import serve
from tests.support.serving import until
from tests.support.virtual import virtual

HEAD = """
import asyncio, sys, time
from switchgear import Bus, Topic, run
ticks = Topic("ticks", int)
def say(*what): print(*what, flush=True)
"""


@contextmanager
def program(text: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A Python program; it ends with the block in any case."""
    environment = {**os.environ, "PYTHONASYNCIODEBUG": "1", "PYTHONDEVMODE": "1"}
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", HEAD + textwrap.dedent(text)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder, env=environment,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    slow = "Executing <"  # asyncio's debug mode on what takes long, such as an import
    return process.returncode, out, "".join(row for row in err.splitlines(True) if not row.startswith(slow))


SERVICE = """
    bus = Bus("memory://a", name="a", grace={grace})
    @bus.subscribe(ticks, group="g")
    async def tick(n: int) -> None:
        say("begun")
        await asyncio.sleep({pause})
        say("ended")
    @bus.subscribe(Topic("starts", int), group="g")
    async def start(n: int) -> None: ...
    async def kick():
        while not bus.health().ready: await asyncio.sleep(0.01)
        await bus.publish(ticks, 1)
    async def main():
        from switchgear.runtime import serve
        kicking = asyncio.create_task(kick())
        await serve([bus])
        await kicking
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_the_program_ends_well_and_quietly(tmp_path: Path, number: int) -> None:
    with program(SERVICE.format(grace=20, pause=0.5) + "    asyncio.run(main())\n", tmp_path) as process:
        assert line(process) == "begun"
        process.send_signal(number)
        assert end(process) == (0, "ended\n", "")


TELL = """
    import logging
    class Tell(logging.Handler):
        def filter(self, record): return record.getMessage() == "SIGTERM: draining"
        def emit(self, record): say(record.getMessage())
    logging.getLogger("switchgear").setLevel("INFO")
    logging.getLogger("switchgear").addHandler(Tell())
"""


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    text = TELL + SERVICE.format(grace=3600, pause=3600) + "    asyncio.run(main())\n"
    with program(text, tmp_path) as process:
        assert line(process) == "begun"
        process.send_signal(signal.SIGTERM)
        assert line(process) == "SIGTERM: draining"  # two signals in one moment would be one
        process.send_signal(signal.SIGTERM)
        assert end(process)[0] == 128 + signal.SIGTERM  # a drain takes an hour and ends with 0


@virtual
async def test_one_deadline_bounds_the_drain_of_several_buses() -> None:
    buses = [Bus(f"memory://drained-{n}", name=f"b{n}", grace=1.5, config={}) for n in range(3)]
    begun: list[int] = []
    for bus in buses:
        for topic in ("ticks", "tocks"):

            @bus.subscribe(topic, group="g")
            async def handle(n: int) -> None:
                begun.append(n)
                await asyncio.sleep(3600)

    loop = asyncio.get_running_loop()
    serving = asyncio.create_task(serve(buses))
    try:
        for bus in buses:
            await until(lambda bus=bus: bus.health().ready)
            for topic in ("ticks", "tocks"):
                await bus.publish(topic, 1)
        await until(lambda: len(begun) == 6)
        told = loop.time()
        signal.raise_signal(signal.SIGTERM)
        await serving
        assert 1.0 < loop.time() - told <= 1.5
    finally:
        gc.unfreeze()  # what serving froze is this process's


def test_run_ends_well_before_it_was_ready(tmp_path: Path) -> None:
    text = """
    bus = Bus("redis://127.0.0.1:1", name="a")
    @bus.subscribe(ticks, group="g")
    async def tick(n: int) -> None: ...
    from switchgear_redis.transport import RedisTransport
    connect = RedisTransport.connect
    async def told(self, deadline):
        try:
            await connect(self, deadline)
        finally:
            say("tried")
    RedisTransport.connect = told
    run(bus)
    """
    with program(text, tmp_path) as process:
        assert [line(process) for _ in range(2)] == ["tried"] * 2  # it waits for a broker that is not there
        process.send_signal(signal.SIGTERM)
        code, out, err = end(process)
        assert (code, set(out.split()) - {"tried"}, err) == (0, set(), "")


def test_a_terminal_failure_is_told_and_the_exit_code_says_so(tmp_path: Path) -> None:
    text = """
    a, b = Bus("memory://a", name="a"), Bus("memory://b", name="b")
    @a.subscribe(ticks, group="g", start="earliest")
    async def tick(n: int) -> None: ...
    @b.subscribe(ticks, group="g")
    async def tock(n: int) -> None: ...
    from switchgear.errors import Refused
    from switchgear_memory.transport import MemoryTransport
    subscribe = MemoryTransport.subscribe
    async def refuse(self, subscription, revoked):
        if self._name == "b": raise Refused("no right to read ticks")
        return await subscribe(self, subscription, revoked)
    MemoryTransport.subscribe = refuse
    run(a, b)
    """
    with program(text, tmp_path) as process:
        code, out, err = end(process)
        assert (code, out) == (1, "")
        assert err == "switchgear: Refused: no right to read ticks\n"


def test_a_wrong_declaration_is_raised(tmp_path: Path) -> None:
    text = """
    from switchgear import Rate
    bus = Bus("memory://a", name="a")
    @bus.subscribe(ticks, group="g", rate=Rate(5))
    async def tick(n: int) -> None: ...
    run(bus)
    """
    with program(text, tmp_path) as process:
        code, _, err = end(process)
        assert code == 1
        assert "Unsupported" in err
        assert "rate= has no machinery yet" in err


def test_a_thread_that_does_not_end_makes_the_exit_code_1_and_holds_nobody_up(tmp_path: Path) -> None:
    text = """
    bus = Bus("memory://a", name="a", grace=0.5)
    @bus.subscribe(ticks, group="g")
    def tick(n: int) -> None:
        say("begun")
        time.sleep(120)
    async def kick():
        while not bus.health().ready: await asyncio.sleep(0.01)
        await bus.publish(ticks, 1)
    import switchgear.runtime as runtime
    serve = runtime.serve
    async def kicked(buses, **more):
        kicking = asyncio.create_task(kick())
        await serve(buses, **more)
        await kicking
    runtime.serve = kicked
    run(bus)
    """
    with program(text, tmp_path) as process:
        assert line(process) == "begun"
        process.send_signal(signal.SIGTERM)
        code, _, _ = end(process)
        assert code == 1


def test_start_up_is_frozen_in_run_alone(tmp_path: Path) -> None:
    text = """
    import gc
    bus = Bus("memory://a", name="a")
    @bus.subscribe(ticks, group="g")
    async def tick(n: int) -> None: ...
    async def main():
        async with bus.serving():
            say(gc.get_freeze_count())
        from switchgear.runtime import serve
        import os, signal
        def started():
            say(gc.get_freeze_count() > 10_000)
            os.kill(os.getpid(), signal.SIGTERM)
        await serve([bus], on_started=started)
    asyncio.run(main())
    """
    with program(text, tmp_path) as process:
        assert end(process) == (0, "0\nTrue\n", "")


def test_ctrl_c_in_a_program_with_its_own_loop_drains(tmp_path: Path) -> None:
    text = """
    bus = Bus("memory://a", name="a")
    @bus.subscribe(ticks, group="g")
    async def tick(n: int) -> None:
        say("begun")
        await asyncio.sleep(0.3)
        say("ended")
    async def main():
        async with bus.serving():
            await bus.publish(ticks, 1)
            await asyncio.sleep(60)
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        say("interrupted")
    """
    with program(text, tmp_path) as process:
        assert line(process) == "begun"
        process.send_signal(signal.SIGINT)
        assert end(process) == (0, "ended\ninterrupted\n", "")


def test_nothing_to_run_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="at least one bus"):
        run()
    with pytest.raises(ConfigurationError, match="'empty' has no subscription"):
        run(Bus("memory://", name="empty", config={}))


async def test_run_inside_a_loop_is_misuse() -> None:
    with pytest.raises(Misuse, match=r"bus.serving\(\)"):
        run(Bus("memory://", config={}))


def test_run_outside_the_main_thread_is_misuse() -> None:
    bus = Bus("memory://", config={})

    @bus.subscribe("ticks", group="g")
    async def tick(n: int) -> None: ...

    found: list[BaseException] = []

    def elsewhere() -> None:
        try:
            run(bus)
        except Misuse as error:
            found.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert "main thread" in str(found[0])
    assert asyncio._get_running_loop() is None
