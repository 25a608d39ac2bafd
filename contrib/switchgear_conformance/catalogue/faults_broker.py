"""Faults: the broker is killed, stopped, paused, or not there yet; where there is none, the process is killed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

from switchgear import Topic
from switchgear.errors import MaybeSent, TransportError, Unavailable
from switchgear_conformance.case import case
from switchgear_conformance.context import Context, Log, listen, numbered
from switchgear_conformance.member import bodies, out
from switchgear_conformance.steady import Reader, attempt, insist, patience, reconnect

ORDERS = Topic("orders", str)
ROUNDS = 3


@case(60, "persistent", "groups", "ctl:restart", embedded=True, bound=60)
async def restart_durability(c: Context) -> None:
    """What was stored and what was settled is so after a restart. Embedded: after SIGKILL inside a commit."""
    if c.harness.embedded:
        await asyncio.gather(*(killed_amid_commits(c, c.name(f"t{n}"), consuming=False) for n in range(ROUNDS)))
        return
    t = await c.open()
    m = await c.join(t, c.name(), lease=c.lease)
    sent = [out(c.name(), body, f"k{n % 5}", headers=[("n", b"%d" % n)]) for n, body in enumerate(numbered(40))]
    await c.stored(t, *sent)
    settled = set(bodies(await m.drain(15)))
    await m.take(5)  # unsettled: they come again
    await c.restart()
    await reconnect(c, t)
    with suppress(TransportError):
        await m.close()
    reader = await Reader(c, await c.open(), c.name()).join()
    await reader.until([m.body or b"" for m in sent if m.body not in settled])
    if c.capabilities.ack_durable:
        await reader.quiet()
        assert not settled & set(reader.read), "what was settled before the restart came again"
    await reader.leave()


@case(60, "persistent", "groups", "ctl:restart", level="bus")
async def restart_durability_through_bus(c: Context) -> None:
    """A group's backlog is there after a restart, once; a bus that was open meanwhile goes on publishing."""
    bus, log = c.bus(), c.log()
    listen(bus, ORDERS, log)
    async with bus.serving():
        await bus.publish(ORDERS, "before")
        await log.reach(1)
    publisher = await c.opened(c.bus())
    await publisher.publish_many(ORDERS, numbered(20))
    await c.restart()
    await publisher.publish(ORDERS, "after")
    again, later = c.bus(), c.log()
    listen(again, ORDERS, later)
    await c.serve(again)
    await later.reach(21)
    await later.quiet()
    assert sorted(set(later.items) - {"before"}) == sorted([*numbered(20), "after"])
    if c.capabilities.ack_durable:
        assert len(later) == 21, f"some came twice, or before the restart and again: {later.items}"


@case(61, "persistent", "groups", "ctl:kill", embedded=True, bound=60)
async def broker_kill_midflight(c: Context) -> None:
    """The broker is killed under load: nothing acknowledged is lost, what failed for certain is not there."""
    if c.harness.embedded:
        await asyncio.gather(*(killed_amid_commits(c, c.name(f"t{n}"), consuming=True) for n in range(ROUNDS)))
        return
    reader = await Reader(c, await c.open(), c.name()).join()
    sending = [Sending(c, f"p{n}.") for n in range(3)]
    async with at_work(*(s.run() for s in sending)):
        for _ in range(ROUNDS - 1):
            await reader.more(50)
            await asyncio.sleep(c.random.uniform(0, 0.05))
            await c.kill()
            await c.start()
    for s in sending:
        await insist(c, s.transport, out(c.name(), s.name + "last"))
        s.stored.add(f"{s.name}last".encode())
    await reader.until(set[bytes]().union(*(s.stored for s in sending)))
    await reader.quiet()
    for s in sending:
        assert not s.refused & set(reader.read), f"said not to be stored, and it is: {s.refused & set(reader.read)}"
        assert len(s.stored) > ROUNDS
    unexpected = set(reader.read).difference(*(s.stored | s.unsure for s in sending))
    assert not unexpected, f"nobody sent these: {sorted(unexpected)[:10]}"
    if c.capabilities.ack_durable:
        assert not reader.returned, (
            f"acknowledged before the broker was killed, and handed out again: {reader.returned}"
        )
    await reader.leave()


@case(61, "persistent", "groups", "ctl:kill", level="bus", bound=60)
async def broker_kill_midflight_through_bus(c: Context) -> None:
    """The broker is killed while a bus publishes and handles: every publish that returned is handled."""
    bus, log = c.bus(), c.log()
    listen(bus, ORDERS, log, lease=c.lease)
    await c.serve(bus)
    publisher = await c.opened(c.bus())
    published: list[str] = []

    async def publish(name: str) -> None:
        for body in numbered(100_000, name):
            await publisher.publish(ORDERS, body)
            published.append(body)

    async with at_work(*(publish(f"p{n}.") for n in range(5))):
        for _ in range(ROUNDS - 1):
            await log.reach(len(log) + 50)
            await asyncio.sleep(c.random.uniform(0, 0.05))
            await c.kill()
            await c.start()
            await log.reach(len(log) + 20, patience(c))
    await all_handled(c, log, published)


@case(62, "groups", "ctl:pause", bound=60)
async def broker_pause(c: Context) -> None:
    """The broker stands still past the lease: calls end by their deadlines, and afterwards nothing is lost."""
    t = await c.open()
    m = await c.join(t, c.name(), lease=c.lease)
    await c.stored(t, out(c.name(), "held"), out(c.name(), "next"))
    await m.one()
    async with c.paused():
        began = c.time()
        late = await attempt(c, t, out(c.name(), "late"), 0.5)
        assert isinstance(late, MaybeSent | Unavailable), f"a broker that stands still is no {late!r}"
        took = c.time() - began
        assert took < 2.0, f"send() took {took:.1f} s; its deadline was 0.5 s away"
        with suppress(TransportError):
            await bounded(m.receive(), 20, "receive() from a broker that stands still")
        await asyncio.sleep(max(0.0, began + c.lease - c.time()))
    await reconnect(c, t)
    await insist(c, t, out(c.name(), "after"))
    with suppress(TransportError):
        await m.close()
    reader = await Reader(c, await c.open(), c.name()).join()
    await reader.until(["held", "next", "after"])
    assert set(reader.read) <= {b"held", b"next", b"late", b"after"}
    if isinstance(late, Unavailable):
        assert b"late" not in reader.read, "Unavailable says that nothing was stored, and it was"
    await reader.leave()


@case(62, "groups", "ctl:pause", level="bus", bound=60)
async def broker_pause_through_bus(c: Context) -> None:
    """A bus publishes and handles over a pause of the broker that is longer than the lease."""
    bus, log = c.bus(), c.log()
    listen(bus, ORDERS, log, lease=c.lease)
    await c.serve(bus)
    await bus.publish(ORDERS, "before")
    await log.reach(1)
    async with c.paused():
        publishing = asyncio.create_task(bus.publish_many(ORDERS, numbered(10)))
        await asyncio.sleep(c.lease)
    await publishing
    await bus.publish(ORDERS, "after")
    await all_handled(c, log, ["before", *numbered(10), "after"])


@case(68, "ctl:restart")
async def start_before_broker(c: Context) -> None:
    """While there is no broker connect() raises Unavailable; once there is one, the same transport connects."""
    await c.stop()
    t = c.transport()
    c.closed(t.close)
    for _ in range(2):
        began = c.time()
        try:
            await t.connect(c.deadline(1.0))
        except Unavailable:
            pass
        else:
            raise AssertionError("connect() succeeded without a broker")
        assert c.time() - began < 3.0, "connect() went on after its deadline"
    await c.start()
    await reconnect(c, t)
    await c.stored(t, out(c.name(), "here"))


@case(68, "groups", "ctl:restart", level="bus")
async def start_before_broker_through_bus(c: Context) -> None:
    """A bus that is started before its broker waits for it, then serves and publishes."""
    await c.stop()
    bus, log = c.bus(), c.log()
    listen(bus, ORDERS, log)

    async def life() -> None:
        async with bus.serving():
            await bus.publish(ORDERS, "here")
            await log.reach(1)

    living = asyncio.create_task(life())
    await asyncio.sleep(0.3)
    assert not living.done(), "it serves, or gave up, while there is no broker"
    assert not bus.health().ready, "it says that it is ready, and there is no broker"
    await c.start()
    await bounded(living, patience(c), "starting a bus over a broker that came later")
    assert log.items == ["here"]


# ---- what they share


class Sending:
    """Sends one message after the other through whatever happens; what became of each."""

    def __init__(self, c: Context, name: str) -> None:
        self._c, self.name = c, name
        self.transport = c.transport()
        c.closed(self.transport.close)
        self.stored: set[bytes] = set()
        self.unsure: set[bytes] = set()
        self.refused: set[bytes] = set()

    async def run(self) -> None:
        await reconnect(self._c, self.transport)
        for text in numbered(1_000_000, self.name):
            body = text.encode()
            self.unsure.add(body)
            outcome = await attempt(self._c, self.transport, out(self._c.name(), body))
            if not isinstance(outcome, MaybeSent):
                self.unsure.discard(body)
                (self.refused if outcome else self.stored).add(body)
            if outcome:
                await reconnect(self._c, self.transport)


async def bounded(call: Awaitable[object], seconds: float, what: str) -> None:
    """Await it; AssertionError when it takes longer."""
    task = asyncio.ensure_future(call)
    done, _ = await asyncio.wait([task], timeout=seconds)
    if not done:
        task.cancel()
        raise AssertionError(f"{what} did not end within {seconds:g} s")
    await task


@asynccontextmanager
async def at_work(*work: Coroutine[Any, Any, None]) -> AsyncGenerator[None]:
    """These go on meanwhile; then they are cancelled, or what one of them raised is raised."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    for error in ended:
        if isinstance(error, Exception):
            raise error


async def all_handled(c: Context, log: Log, wanted: list[str]) -> None:
    """Each of these was handled at least once; AssertionError names what was not."""
    try:
        await log.until(lambda: set(wanted) <= set(log.items), "all are handled", patience(c))
    except AssertionError:
        missing = set(wanted) - set(log.items)
        raise AssertionError(f"lost: {sorted(missing)[:10]} ({len(missing)} of {len(wanted)})") from None


async def killed_amid_commits(c: Context, topic: str, *, consuming: bool) -> None:
    """Processes at work are killed at any moment: what they vouched for is so, and no message is torn."""
    reader = await Reader(c, await c.open(), topic).join()
    await reader.leave()
    publisher = await c.child("publish", topic, "4")
    consumer = await c.child("consume", topic, c.name("group"), "ack", "10", str(c.lease)) if consuming else None
    said = await publisher.lines(60)
    got = await consumer.lines(20) if consumer else []
    await asyncio.sleep(c.random.uniform(0, 0.1))
    said += await publisher.kill()
    got += await consumer.kill() if consumer else []
    attempted, stored = words(said, "?"), words(said, "+")
    settled, seen = words(got, "settled"), words(got, "got")
    await reader.join()
    await reader.until(stored - seen)
    await reader.quiet()
    assert not settled & set(reader.read), f"settled by a process that was killed then, and back: {settled}"
    torn = set(reader.read) - attempted
    assert not torn, f"nobody sent these: {sorted(torn)[:10]}"
    again = [body for body in set(reader.read) if reader.read.count(body) > 1]
    assert not again, f"handed out twice to one reader: {again[:10]}"
    await reader.leave()


def words(lines: list[str], first: str) -> set[bytes]:
    """What followed this word in the lines that begin with it."""
    return {line.split(" ", 1)[1].encode() for line in lines if line.startswith(f"{first} ")}
