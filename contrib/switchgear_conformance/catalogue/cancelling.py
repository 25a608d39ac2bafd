"""Cancellation: nothing is torn, nothing vanishes, and what was being handled comes again."""

from __future__ import annotations

import asyncio

from switchgear import Message, Retry, Topic
from switchgear_conformance.case import case
from switchgear_conformance.context import Context, numbered
from switchgear_conformance.member import PATIENCE, bodies, out

from .shutdown import Seen, log_to

POINTS = (*range(13), 16, 20, 25, 32, 40, 50, 64, 80, 100, 130, 160)  # turns of the loop after which to cancel
ORDERS = Topic("orders", str)
RAW = Topic("orders", bytes, codec="application/octet-stream")


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def cancelled(task: asyncio.Task[object]) -> bool:
    """Cancel; whether it was still at work. AssertionError when it did not end as cancelled."""
    if not task.cancel():
        task.result()
        return False
    done, _ = await asyncio.wait([task], timeout=PATIENCE)
    assert done, f"it goes on {PATIENCE:g} s after it was cancelled"
    assert task.cancelled(), f"the cancellation was swallowed: it ended in {task.exception() or task.result()!r}"
    return True


@case(19)
async def cancel_publish(c: Context) -> None:
    """A `send` cancelled in flight ends at once; each message is stored whole or not at all, and sending goes on."""
    t = await c.open()
    m = await c.join(t, c.name())
    attempted: dict[bytes, bytes] = {}
    stored: set[bytes] = set()
    missed = 0
    for n, point in enumerate(POINTS):
        names = [f"{n}.{i}".encode() for i in range(3)]
        batch = [out(c.name(), name.ljust(4000, b"."), name, headers=[("name", name)]) for name in names]
        attempted |= {(m.body or b""): name for m, name in zip(batch, names, strict=True)}
        task: asyncio.Task[object] = asyncio.create_task(t.send(batch, c.deadline()))
        await turns(point)
        if not await cancelled(task):
            assert list(task.result()) == [None] * 3, f"not stored: {task.result()}"  # type: ignore[call-overload]
            stored |= {(m.body or b"") for m in batch}
            missed += 1
        after = out(c.name(), b"after %d" % n, b"after", headers=[("name", b"after")])
        await c.stored(t, after)
        attempted[after.body or b""] = b"after"
        stored.add(after.body or b"")
        if missed > 2:
            break
    found = await m.drain(len(stored))
    while more := await m.receive():
        await m.settle(more)
        found += more
    for d in found:
        name = attempted.get(d.body or b"")
        assert name is not None, f"a torn message: {(d.body or b'')[:20]!r}…, {len(d.body or b'')} bytes"
        assert (d.key, m.source.headers(d)) == (name, [("name", name)]), f"message {name!r} came with parts of another"
    seen = bodies(found)
    assert len(seen) == len(set(seen)), "a message whose send was cancelled is there twice"
    assert stored <= set(seen), f"lost: {sorted(body[:8] for body in stored - set(seen))[:5]}"
    await m.close()


@case(19, level="bus")
async def cancel_publish_through_bus(c: Context) -> None:
    """A cancelled `publish` takes nobody else's message along, and its own is there whole or not at all."""
    bus, log = c.bus(), c.log()

    @bus.subscribe(RAW, group="billing")
    async def bill(order: bytes, message: Message[bytes]) -> None:
        log.add(order)

    await c.serve(bus)
    attempted: set[bytes] = set()
    stored: set[bytes] = set()
    missed = 0
    for n, point in enumerate(POINTS):
        orders = [f"{n}.{i}".encode().ljust(4000, b".") for i in range(3)]
        attempted |= {*orders}
        first, middle, last = [asyncio.create_task(bus.publish(RAW, order)) for order in orders]
        await turns(point)
        if not await cancelled(middle):
            stored.add(orders[1])
            missed += 1
        await asyncio.gather(first, last)
        stored |= {orders[0], orders[2]}
        if missed > 2:
            break
    await log.until(lambda: stored <= set(log.items), "everything of the publishes that returned")
    await log.quiet()
    torn = set(log.items) - attempted
    assert not torn, f"torn messages: {[(order[:8], len(order)) for order in torn][:5]}"
    assert len(log.items) == len(set(log.items)), "a message whose publish was cancelled is there twice"


@case(20, level="bus")
async def cancel_receive_through_bus(c: Context) -> None:
    """A cancelled `anext` of a pull consumer takes no message."""
    bus = await c.opened(c.bus())
    seen: list[str] = []
    async with bus.consumer(ORDERS, group="billing") as consumer:
        for n in range(80):
            if early := n % 2:  # the message is there, or on its way, before it is asked for
                await bus.publish(ORDERS, str(n))
            waiting = asyncio.create_task(anext(consumer))
            if not early:
                await turns(3)
                await bus.publish(ORDERS, str(n))
            await turns(n // 2 % 20)
            if n >= 40:
                await asyncio.sleep(0.0005 * (n % 10))
            waiting.cancel()
            await asyncio.wait([waiting])
            try:
                async with asyncio.timeout(PATIENCE):
                    message = await anext(consumer) if waiting.cancelled() else waiting.result()
            except TimeoutError:
                raise AssertionError(f"message {n} vanished with a cancelled anext") from None
            seen.append(message.body)
            await message.ack()
    assert seen == numbered(80), "messages came twice or in another order"


@case(21, "nack", level="bus", part="within")
async def cancel_handler_within_through_bus(c: Context) -> None:
    """A handler that is cancelled from within has failed: its message comes again, and others go on."""
    bus, log = c.bus(), c.log()

    @bus.subscribe(ORDERS, group="billing", concurrency=1, retry=Retry(attempts=3, base=0.01, cap=0.05))
    async def bill(order: str, message: Message[str]) -> None:
        log.add((order, message.attempt))
        if message.attempt > 1:
            return
        if order == "raised":
            raise asyncio.CancelledError
        if order == "cancelled":
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(PATIENCE)

    await c.serve(bus)
    for order in ("raised", "cancelled", "other"):
        await bus.publish(ORDERS, order)
    await log.reach(5)
    wanted: list[Seen] = [("cancelled", 1), ("cancelled", 2), ("other", 1), ("raised", 1), ("raised", 2)]
    assert sorted(log.items) == wanted, f"orders and attempts: {sorted(log.items)}"
    await log.quiet()


@case(21, "groups", level="bus", part="shutdown")
async def cancel_handler_shutdown_through_bus(c: Context) -> None:
    """A handler that is cancelled at the end of the grace has settled nothing: its message comes again, uncounted."""
    publisher = await c.opened(c.bus())
    bus, begun, after = c.bus(grace=0.5), c.log(), c.log()

    @bus.subscribe(ORDERS, group="billing")
    async def bill(order: str) -> None:
        begun.add(order)
        try:
            await asyncio.sleep(PATIENCE)
        except asyncio.CancelledError:
            begun.add("cancelled")
            raise

    async with bus.serving():
        await publisher.publish(ORDERS, "slow")
        await begun.reach(1)
    assert begun.items == ["slow", "cancelled"], f"at the end of the grace: {begun.items}"
    other = c.bus()
    log_to(other, after)
    await c.serve(other)
    await after.reach(1)
    assert after.items == [("slow", 1)], f"order and attempt: {after.items}"
    await after.quiet()
