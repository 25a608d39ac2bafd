"""Faults: a member that stands still beyond its lease and wakes up; a broker without room."""

from __future__ import annotations

import asyncio

from switchgear import Topic
from switchgear.driver import Settling, Verdict
from switchgear.errors import Lost, NotSent, Refused, TransportError, Unavailable
from switchgear_conformance.case import case
from switchgear_conformance.context import Context, listen, numbered
from switchgear_conformance.member import bodies, out
from switchgear_conformance.steady import Reader, attempt, insist, patience

from .faults_broker import all_handled

ORDERS = Topic("orders", str)
MANY = 2000  # messages, of which a full broker takes some
BACKLOG = 20  # messages, few enough that a member fetches them all


@case(72, "groups", "lease", "individual")
async def zombie_member(c: Context) -> None:
    """A member whose lease has ended acknowledges late: it is refused, or does no harm; then it goes on."""
    zombie = await c.join(await c.open(), c.name(), lease=c.lease)
    heir = await c.join(await c.open(), c.name(), lease=30.0)
    await c.stored(heir.transport, out(c.name(), "one"), out(c.name(), "two"))
    old = await zombie.take(2)
    await asyncio.sleep(c.lease)
    new = await heir.take(2)
    outcomes = await zombie.outcomes(old)
    assert all(o is None or isinstance(o, Lost) for o in outcomes), f"a late ack is refused by Lost, not {outcomes}"
    if c.capabilities.fencing:
        assert all(outcomes), "fencing is declared, and a late ack was accepted"
        if c.capabilities.retry_delay is not None:
            await heir.settle(new[:1], Verdict.RETRY)  # it would be gone, had the late ack had an effect
            new[0] = await heir.one()
        await heir.settle(new)
    else:
        outcomes = await heir.outcomes(new)
        assert all(o is None or isinstance(o, Lost) for o in outcomes), outcomes
    await heir.close()
    await c.stored(zombie.transport, out(c.name(), "three"))
    assert bodies(await zombie.drain(1)) == [b"three"], "the member that lost its lease does not go on"
    await zombie.nothing()
    await zombie.close()


@case(72, "groups", "persistent", part="process", bound=60)
async def zombie_member_process(c: Context) -> None:
    """A process that stood still while its message went to another acknowledges it late: refused or harmless."""
    t = await c.open()
    zombie = await c.child("late", c.name(), c.name("group"), str(c.lease))
    assert await zombie.line() == "ready"
    await c.stored(t, out(c.name(), "one"))
    assert await zombie.line() == "got one"
    heir = await c.join(t, c.name(), lease=30.0)
    taken = await heir.take(1, within=patience(c))
    if c.capabilities.settling is Settling.CUMULATIVE:
        await heir.settle(taken)  # what is not comes again when the zombie returns, and lanes move
        taken = []
    zombie.resume()
    said = await zombie.line()
    assert said in ("settled", "Lost", "Unavailable"), f"a late ack ends in {said}"
    if c.capabilities.fencing:
        assert said == "Lost", f"fencing is declared, and a late ack is told {said!r}"
    assert await zombie.line() == "left"
    await c.stored(t, out(c.name(), "two"))
    rest = await heir.take(1)
    assert bodies(rest) == [b"two"], f"the message came a third time, or the next did not: {bodies(rest)}"
    await heir.settle([*taken, *rest])
    await heir.nothing()
    await heir.close()


@case(72, "groups", "persistent", level="bus", bound=60)
async def zombie_member_through_bus(c: Context) -> None:
    """A process stands still inside a handler beyond its lease: another handles the message; awake it goes on."""
    zombie = await c.child("handle", c.namespace, "orders", "group", str(c.lease))
    assert await zombie.line() == "ready"
    publisher = await c.opened(c.bus())
    await publisher.publish(ORDERS, "one")
    assert await zombie.line() == "begin one"
    heir, log = c.bus(), c.log()
    listen(heir, ORDERS, log, lease=c.lease)
    async with heir.serving():
        await log.reach(1, patience(c))
        zombie.resume()
        assert await zombie.line() == "end one"
        await log.quiet()
        assert log.items == ["one"], "a late ack of the member that stood still brought the message back"
    await publisher.publish(ORDERS, "two")
    assert await zombie.lines(2) == ["begin two", "end two"], "the member that stood still does not go on"


@case(72, "groups", "persistent", level="bus", part="backlog", bound=60)
async def zombie_member_through_bus_backlog(c: Context) -> None:
    """What a process had fetched before it stood still is handled by another, and it begins none of it when awake."""
    zombie = await c.child("handle", c.namespace, "orders", "group", str(c.lease))
    assert await zombie.line() == "ready"
    publisher = await c.opened(c.bus())
    bodies = numbered(BACKLOG)
    await publisher.publish_many(ORDERS, bodies)
    begun = (await zombie.line()).removeprefix("begin ")
    heir, log = c.bus(), c.log()
    listen(heir, ORDERS, log, lease=c.lease)
    async with heir.serving():
        await log.reach(BACKLOG, patience(c))
        zombie.resume()
        assert await zombie.line() == f"end {begun}"
        await log.quiet()
        assert sorted(log.items) == sorted(bodies), "what was handled elsewhere meanwhile came back"
        again = await zombie.kill()
        assert not again, f"a member that stood still begins what others have handled since: {again}"


@case(73, "groups", "ctl:disk", bound=60)
async def storage_full(c: Context) -> None:
    """Without room send() fails with a typed error that is true, and works again when there is room."""
    reader = await Reader(c, await c.open(), c.name(), lease=30.0).join()
    await c.stored(reader.transport, out(c.name(), "before"))
    stored: list[bytes] = []
    refused: list[bytes] = []
    async with c.full():
        t = await c.open()
        for n in range(MANY):
            body = f"{n}.".encode() + bytes(min(100_000, c.capabilities.body // 2))
            error = await attempt(c, t, out(c.name(), body), 5.0)
            if error is None:
                stored.append(body)
                continue
            refused.append(body)
            sure = isinstance(error, NotSent | Refused | Unavailable)
            assert sure, f"a broker without room says certainly that it did not store, not {error!r}"
            if len(refused) == 3:
                break
        assert len(refused) == 3, f"fill() left room for {len(stored)} messages of 100 kB: let it leave none"
    await insist(c, t, out(c.name(), "after"))
    await reader.until(["before", "after", *stored])
    await reader.quiet()
    wrong = set(reader.read) & set(refused)
    assert not wrong, f"{len(wrong)} messages are stored of which send() said that they are not"
    await reader.leave()


@case(73, "groups", "ctl:disk", level="bus", bound=60)
async def storage_full_through_bus(c: Context) -> None:
    """Without room publish() says by its timeout that nothing was stored; with room it works again."""
    reading, log = c.bus(), c.log()
    listen(reading, ORDERS, log)
    await c.serve(reading)
    await reading.publish(ORDERS, "before")
    await log.reach(1)
    text = "x" * min(100_000, c.capabilities.body // 2)
    stored: list[str] = []
    async with c.full():
        bus = await c.opened(c.bus())
        for n in range(MANY):
            try:
                await bus.publish(ORDERS, f"{n}.{text}", timeout=3.0)  # else its answer may come too late
            except (NotSent, Refused, Unavailable):
                break
            except TransportError as error:
                raise AssertionError(
                    f"a broker without room says certainly that it did not store, not {error!r}"
                ) from error
            stored.append(f"{n}.{text}")
        else:
            raise AssertionError(f"fill() left room for {len(stored)} messages of 100 kB: let it leave none")
        failed = f"{n}.{text}"
    await bus.publish(ORDERS, "after")
    await all_handled(c, log, ["before", "after", *stored])
    await log.quiet()
    assert failed not in log.items, "publish() said that it is not stored, and it is"
