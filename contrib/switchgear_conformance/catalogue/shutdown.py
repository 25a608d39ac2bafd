"""Shutdown: within its time, and nothing is lost, torn from a handler, or counted that was not tried."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from switchgear import Bus, Message, Router, Topic
from switchgear.errors import SwitchgearError, TransportError
from switchgear_conformance.case import case
from switchgear_conformance.context import Context, Log, numbered
from switchgear_conformance.member import PATIENCE, RELEASE, bodies, each_once, out

ORDERS = Topic("orders", str)
Seen = tuple[str, int]


def log_to(bus: Bus | Router, log: Log, *, concurrency: int = 4, pause: float = 0.0) -> None:
    """Subscribe to the orders in the group that all of these cases share: order and attempt, when handled."""

    @bus.subscribe(ORDERS, group="billing", concurrency=concurrency)
    async def bill(order: str, message: Message[str]) -> None:
        if pause:
            await asyncio.sleep(pause)
        log.add((order, message.attempt))


def exactly(log: Log, orders: Sequence[str]) -> None:
    """Each order was handled once, in its first attempt."""
    seen: list[Seen] = log.items
    each_once([order.encode() for order, _ in seen], orders)
    counted = [one for one in seen if one[1] != 1]
    assert not counted, f"a shutdown was counted as an attempt: {counted[:5]}"


# ---- the time that closing takes


@case(23)
async def close_while_blocked(c: Context) -> None:
    """Closing a source or a transport ends a receive that waits; neither takes more than 5 seconds."""
    t = await c.open()
    m, other = await c.join(t, c.name()), await c.join(t, c.name("other"))
    waiting = [asyncio.create_task(one.source.receive(10)) for one in (m, other)]
    await asyncio.sleep(0.05)
    began = c.time()
    await m.source.close()
    found = await asyncio.wait_for(waiting[0], PATIENCE)
    assert list(found) == [], f"a receive whose source was closed returned {found!r}, not nothing"
    assert c.time() - began < 5, f"closing a source took {c.time() - began:.1f} s"
    await m.source.close()
    began = c.time()
    await t.close()
    done, _ = await asyncio.wait(waiting[1:], timeout=PATIENCE)
    assert done, "a receive goes on after its transport was closed"
    error = waiting[1].exception()
    assert error is None or isinstance(error, TransportError), f"a receive whose transport was closed raised {error!r}"
    assert c.time() - began < 5, f"closing a transport took {c.time() - began:.1f} s"


@case(23, part="busy")
async def close_while_blocked_busy(c: Context) -> None:
    """Closing a transport while it sends, receives and settles takes at most 5 seconds, and those calls end."""
    t = await c.open()
    m = await c.join(t, c.name())

    async def publish() -> None:
        for i in range(1000):
            await t.send([out(c.name(), str(i))], c.deadline(5))
            await asyncio.sleep(0)

    async def consume() -> None:
        while True:
            await m.settle(await m.receive(50))
            await asyncio.sleep(0)

    tasks = [asyncio.create_task(publish()), asyncio.create_task(consume())]
    await asyncio.sleep(0.05 if not c.virtual else 0)
    began = c.time()
    await t.close()
    took = c.time() - began
    tasks[1].cancel()
    done, late = await asyncio.wait(tasks, timeout=PATIENCE)
    for task in done:
        error = None if task.cancelled() else task.exception()
        assert not isinstance(error, TimeoutError), "a call hangs"
    assert not late, "a send or a receive goes on after its transport was closed"
    assert took < 5, f"closing took {took:.1f} s"


@case(23, level="bus")
async def close_while_blocked_through_bus(c: Context) -> None:
    """`close` keeps to its grace although a handler, a pull consumer and a request wait; who waits is told."""
    bus, let_go, begun = c.bus(grace=1.0), asyncio.Event(), c.log()

    @bus.subscribe(ORDERS, group="billing")
    async def bill(order: str) -> None:  # ignores its cancellation
        begun.add(order)
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                continue

    async def pull() -> str:
        async with bus.consumer("parcels", group="shipping") as consumer:
            async for _ in consumer:
                pass
        return "ended"

    await c.serve(bus)
    waiting: list[asyncio.Task[str]] = [asyncio.create_task(pull())]
    if c.capabilities.broadcast:
        waiting.append(asyncio.create_task(bus.request("questions", "who", str, timeout=60)))
    await bus.publish(ORDERS, "slow")
    await begun.reach(1)
    await asyncio.sleep(0.2)  # so that the others wait, too
    began = c.time()
    try:
        await bus.close()
        took = c.time() - began
        done, late = await asyncio.wait(waiting, timeout=2.0)
    finally:
        let_go.set()
    assert took < 2.0, f"closing took {took:.1f} s with a grace of 1 s"
    assert not late, f"{len(late)} calls still wait on a closed bus"
    for task in done:
        error = task.exception()
        assert error is None or isinstance(error, SwitchgearError), f"who waited got {error!r}"
    assert begun.items == ["slow"]


# ---- nothing is lost


@case(25)
async def close_flushes(c: Context) -> None:
    """What `send` said is stored is there, although the transport was closed at once."""
    reader = await c.open()
    m = await c.join(reader, c.name())
    orders = numbered(50)
    t = c.transport()
    await t.connect(c.deadline())
    try:
        await c.stored(t, *(out(c.name(), order) for order in orders))
    finally:
        await t.close()
    each_once(bodies(await m.drain(50)), orders)
    await m.nothing()
    await m.close()


@case(25, level="bus")
async def close_flushes_through_bus(c: Context) -> None:
    """Closing a bus sends what is buffered, and their publishes return."""
    reader, log = c.bus(), c.log()
    log_to(reader, log)
    await c.serve(reader)
    bus = c.bus()
    async with bus:
        await bus.publish(ORDERS, "first")
        publishing = [asyncio.create_task(bus.publish(ORDERS, order)) for order in numbered(500)]
        await asyncio.sleep(0)
    done = await asyncio.gather(*publishing, return_exceptions=True)
    failed = [one for one in done if isinstance(one, BaseException)]
    assert not failed, f"{len(failed)} of 500 buffered publishes failed when the bus was closed: {failed[0]!r}"
    await log.reach(501)
    exactly(log, ["first", *numbered(500)])


@case(26)
async def graceful_shutdown(c: Context) -> None:
    """What a leaving member has not settled, or gave back, goes to the next at once, without an attempt counted."""
    t = await c.open()
    m = await c.join(t, c.name())
    await c.stored(t, *(out(c.name(), order) for order in numbered(20)))
    taken = await m.take(20)
    await m.settle(taken[:5])
    if not m.cumulative:
        await m.settle(taken[5:12], RELEASE)
    await m.close()
    other = await c.join(await c.open(), c.name())
    rest = await other.drain(15)
    each_once(bodies(rest), [d.body or b"" for d in taken[5:]])
    given_back = {d.body for d in taken[5:12]}
    if other.source.capabilities.counting != "none" and not other.cumulative:
        counted = [d.deliveries for d in rest if d.body in given_back and d.deliveries != 1]
        assert not counted, f"a RELEASE is no attempt, and a message came back with deliveries={counted[0]}"
    await other.nothing()
    await other.close()


@case(26, "groups", level="bus")
async def graceful_shutdown_through_bus(c: Context) -> None:
    """Under load a bus is drained and another goes on: each message is handled once, none has an attempt more."""
    publisher = await c.opened(c.bus())
    log = c.log()
    orders = numbered(300)

    async def load() -> None:
        for begin in range(0, 300, 20):
            await publisher.publish_many(ORDERS, orders[begin : begin + 20])
            await asyncio.sleep(0.005)

    first = c.bus()
    log_to(first, log, pause=0.01)
    async with first.serving():
        loading = asyncio.create_task(load())
        await log.reach(40)
    drained = len(log)
    await loading
    assert drained < 300, "the first bus handled everything: nothing was drained"
    assert len(log) == drained, "a handler ran after its bus was closed"
    second = c.bus()
    log_to(second, log)
    await c.serve(second)
    await log.reach(300)
    await log.quiet()
    exactly(log, orders)
