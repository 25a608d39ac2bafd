"""Async hygiene: nothing is left behind, the loop is never held up, and a bus keeps to its own."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from switchgear import Bus, SwitchgearError, Topic
from switchgear.errors import Misuse
from switchgear_conformance import stalls
from switchgear_conformance.case import case
from switchgear_conformance.context import Context, numbered
from switchgear_conformance.member import PATIENCE, out

STALL = 0.05  # seconds
ROUNDS = 3
ORDERS = Topic("orders", str)


# ---- what is left behind


def leftovers() -> tuple[int, int, int]:
    """Tasks of this loop, threads and file descriptors of this process (but for the loop's own threads)."""
    gc.collect()
    threads = [thread for thread in threading.enumerate() if not thread.name.startswith("asyncio_")]
    handles = next((folder for folder in (Path("/proc/self/fd"), Path("/dev/fd")) if folder.is_dir()), None)
    return len(asyncio.all_tasks()), len(threads), len(list(handles.iterdir())) if handles else 0


async def nothing_is_left(live: Callable[[], Awaitable[None]]) -> None:
    """Live several times; after the first, which makes what is made once and for all, nothing may be added."""
    await live()
    before = after = leftovers()
    for _ in range(5):  # what was told to end and has not yet must not make room for what is left behind
        await asyncio.sleep(0.1)
        tasks, threads, files = leftovers()
        before = min(before[0], tasks), min(before[1], threads), min(before[2], files)
    for _ in range(3):
        await live()
    for _ in range(10):  # a thread that was told to end may need a moment
        await asyncio.sleep(0.1)
        after = leftovers()
        if all(now <= then for now, then in zip(after, before, strict=True)):
            return
    said = [f"{then} {what}, now {now}" for what, then, now in zip(KINDS, before, after, strict=True) if now > then]
    raise AssertionError(f"three more were opened and closed, and there were {'; '.join(said)}")


KINDS = ("tasks", "threads", "file descriptors")


@case(22, virtual=False)
async def no_leaks(c: Context) -> None:
    """`close` leaves no task, no thread and no file descriptor, whatever was going on."""
    await c.open()  # keeps a broker that lives with its users
    lives = 0

    async def live() -> None:
        nonlocal lives
        lives += 1
        topic = c.name(f"life{lives}")
        t = c.transport()
        await t.connect(c.deadline())
        m = await c.join(t, topic)
        await c.stored(t, *(out(topic, body, f"k{i % 3}") for i, body in enumerate(numbered(50))))
        if c.capabilities.delay > 60:
            await c.stored(t, out(topic, "later", due=c.now() + 60, dedup="later"))
        audience = await c.join(t, topic, group=None) if c.capabilities.broadcast else await c.join(t, c.name("none"))
        await m.settle((await m.take(10))[:5])
        pending = asyncio.create_task(audience.source.receive(10))
        await asyncio.sleep(0.02)  # so that it waits
        await t.close()
        await asyncio.wait([pending], timeout=PATIENCE)
        assert pending.done(), "a receive goes on after its transport was closed"
        pending.exception()

    await nothing_is_left(live)


@case(22, level="bus", virtual=False)
async def no_leaks_through_bus(c: Context) -> None:
    """A closed bus leaves no task, no thread and no file descriptor: handlers, requests, pulled messages, delays."""
    await c.opened(c.bus())
    lives = 0

    async def live() -> None:
        nonlocal lives
        lives += 1
        bus, handled = c.bus(), list[str]()

        @bus.subscribe(ORDERS, group="billing")
        def bill(order: str) -> None:  # in a thread
            handled.append(order)

        @bus.subscribe("questions", group="answering")
        async def answer(question: str) -> str:
            return question.upper()

        async with bus.serving():
            await bus.publish_many(ORDERS, numbered(20))
            if c.capabilities.delay > 60:
                await bus.publish(ORDERS, "later", delay=60)
            if c.capabilities.broadcast:
                assert await bus.request("questions", "who", str) == "WHO"
            async with bus.consumer(ORDERS, group=f"pulling{lives}") as consumer:
                await bus.publish(ORDERS, "last")
                while (await anext(consumer)).body != "last":
                    pass
            await c.eventually(lambda: len(handled) == 21, "21 orders are handled")

    await nothing_is_left(live)


# ---- the loop


@asynccontextmanager
async def heartbeat() -> AsyncGenerator[Callable[[], Awaitable[float]]]:
    """Look at the loop 500 times a second, and so does a control process; yields what ends it and says by how much
    the loop was held up longer than the control, in seconds."""
    control = await asyncio.create_subprocess_exec(
        sys.executable, "-S", "-E", stalls.__file__, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    own = stalls.Stalls()

    async def beat() -> None:
        while True:
            await asyncio.sleep(stalls.TICK)
            own.look()

    beating = asyncio.create_task(beat())

    async def verdict() -> float:
        own.look()
        said, _ = await control.communicate(b"")
        return own.worst - float(said)

    try:
        yield verdict
    finally:
        beating.cancel()
        if control.returncode is None:
            control.kill()
            await control.wait()
        await asyncio.wait([beating])


async def never_held_up(work: Callable[[], Awaitable[None]]) -> None:
    """Work several rounds: what holds up the loop does so in each, and a busy machine in some of them."""
    await work()  # imports, connections, statements that are prepared
    found: list[float] = []
    gc.collect()
    gc.disable()  # the collector's pauses are those of the whole process
    try:
        for _ in range(ROUNDS):
            async with heartbeat() as verdict:
                await work()
                found.append(await verdict())
            if found[-1] <= STALL:
                return
    finally:
        gc.enable()
    raise AssertionError(f"the event loop is held up: {min(found) * 1000:.0f} ms in each of {ROUNDS} rounds")


@case(24, virtual=False)
async def loop_not_blocked(c: Context) -> None:
    """No call of the driver holds up the event loop for more than 50 ms, busy or waiting."""
    t = await c.open()
    m = await c.join(t, c.name())
    lot = [out(c.name(), bytes(2000), f"k{i}") for i in range(100)]

    async def work() -> None:
        for _ in range(8):
            await c.stored(t, *lot)
            await asyncio.sleep(0)
        await m.drain(800)
        await m.nothing()

    await never_held_up(work)
    await m.close()


@case(24, level="bus", virtual=False)
async def loop_not_blocked_through_bus(c: Context) -> None:
    """Neither publishing many nor handling them holds up the event loop for more than 50 ms."""
    bus, log = c.bus(), c.log()

    @bus.subscribe(ORDERS, group="billing")
    async def bill(order: str) -> None:
        log.add(order)

    await c.serve(bus)

    async def work() -> None:
        before = len(log)
        await bus.publish_many(ORDERS, ["x" * 2000] * 800)
        await log.reach(before + 800)

    await never_held_up(work)


# ---- another loop


@case(28, level="bus", virtual=False)
async def foreign_loop_through_bus(c: Context) -> None:
    """A bus that is used from another event loop raises Misuse and says why; in its own it goes on."""
    bus = await c.opened(c.bus())
    await bus.publish(ORDERS, "first")

    async def uses() -> dict[str, BaseException | None]:
        async def pull() -> None:
            async with bus.consumer(ORDERS, group="billing"):
                pass

        async def open_it() -> Bus:
            async with bus:
                return bus

        async def serve() -> None:
            async with bus.serving():
                pass

        said: dict[str, BaseException | None] = {}
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "publish": lambda: bus.publish(ORDERS, "foreign"),
            "publish_many": lambda: bus.publish_many(ORDERS, ["foreign"]),
            "request": lambda: bus.request("questions", "who", str),
            "consumer": pull,
            "async with bus": open_it,
            "serving": serve,
            "close": bus.close,
        }
        for name, call in calls.items():
            try:
                async with asyncio.timeout(2.0):
                    await call()
            except Exception as error:
                said[name] = error
            else:
                said[name] = None
                return said  # who knows what state it left
        return said

    for name, error in (await asyncio.to_thread(asyncio.run, uses())).items():
        assert error is not None, f"{name} in another event loop raises nothing"
        assert isinstance(error, Misuse), f"{name} in another event loop raises {error!r}"
        assert "loop" in str(error), f"{name}: the error does not tell what is wrong: {error}"
    assert isinstance(Misuse(), SwitchgearError)
    await bus.publish(ORDERS, "goes on")
