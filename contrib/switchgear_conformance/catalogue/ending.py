"""What ends before it is handled: a drain, a lost lease, a release. None of them is an attempt."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import Any

from switchgear import Message, Topic
from switchgear.driver import Delivery, Revoked, Settlement, Source, Subscription, Verdict
from switchgear.errors import MaybeSent, TransportError
from switchgear_conformance.case import case
from switchgear_conformance.context import Context, numbered
from switchgear_conformance.member import RELEASE, RETRY, bodies, each_once, out

from .handover import keyed, within


def most(c: Context) -> int:
    """The highest count of a message that was handed out once before, and neither failed nor was released."""
    return 1 if c.capabilities.counting == "exact" else 2


@case(88, "groups", "individual", "counting")
async def breaker_is_no_attempt(c: Context) -> None:
    """A released delivery does not count, however often; one that left with its member counts as is declared."""
    t = await c.open()
    one = await c.join(await c.open(), c.name())
    await c.stored(t, *(out(c.name(), body) for body in numbered(6)))
    for _ in range(3):
        batch = await one.take(6)
        counted = {d.deliveries for d in batch}
        assert counted == {1}, f"after releases deliveries are counted as {counted}"
        await one.settle(batch, RELEASE)
    taken = await one.take(6)
    await one.settle(taken[:2])
    await one.close()
    await one.close()
    two = await c.join(t, c.name())
    back = await two.take(4)
    each_once(bodies(back), [d.body or b"" for d in taken[2:]])
    counted = {d.deliveries for d in back}
    assert counted <= set(range(1, most(c) + 1)), f"leaving is no attempt, and deliveries are counted as {counted}"
    if c.capabilities.retry_delay is not None:
        before = back[0].deliveries or 0
        await two.settle(back[:1], RETRY)
        failed = await two.one()
        assert failed.deliveries == before + 1, f"a RETRY counts, and {before} became {failed.deliveries}"
        await two.settle([failed])
        back = back[1:]
    await two.settle(back)
    await two.nothing()


@case(88, "groups", "individual", "counting", "lease", part="lease")
async def breaker_is_no_attempt_lease(c: Context) -> None:
    """A delivery whose lease ended counts as is declared: not at all, or as one hand-out."""
    one = await c.join(await c.open(), c.name(), lease=c.lease)
    t = await c.open()
    await c.stored(t, *(out(c.name(), body) for body in numbered(3)))
    await one.take(3)
    two = await c.join(t, c.name())
    back = await two.take(3, within(c))
    counted = {d.deliveries for d in back}
    assert counted == {most(c)}, f"counting={c.capabilities.counting!r}, and after one lost lease it is {counted}"
    await two.settle(back)


async def drained(c: Context, topic: Topic[str]) -> None:
    """A member is stopped in the middle; what it had begun or fetched is the next one's first attempt."""
    await c.open()  # a broker that lives with its users has one all the time
    first, second = c.bus(grace=0.5), c.bus()
    began, log = c.log(), c.log()

    @first.subscribe(topic, group="group", concurrency=2)
    async def wait(order: str, message: Message[str]) -> None:
        began.add(message.attempt)
        await asyncio.Event().wait()

    @second.subscribe(topic, group="group")
    async def handle(order: str, message: Message[str]) -> None:
        log.add((order, message.attempt))

    sent = [f"{key}:{n}" for n in range(3) for key in "abcd"]
    async with first.serving():
        await first.publish_many(topic, sent)
        await began.reach(1)
    await c.serve(second)
    await log.reach(len(sent), within(c))
    each_once([order.encode() for order, _ in log.items], sent)
    wrong = [(order, attempt) for order, attempt in log.items if attempt != 1]
    assert not wrong, f"after a drain attempts are not 1: {wrong[:5]}"
    assert set(began.items) == {1}


@case(88, "groups", level="bus")
async def breaker_is_no_attempt_through_bus(c: Context) -> None:
    """What a drain interrupts is the next member's first attempt."""
    await drained(c, Topic("orders", str))


@case(88, "order>=key", level="bus", part="keys")
async def breaker_is_no_attempt_keys_through_bus(c: Context) -> None:
    """What a drain interrupts is the next member's first attempt, with an order to keep, too."""
    await drained(c, keyed)


@case(88, "groups", "lease", "individual", level="bus", part="lease")
async def breaker_is_no_attempt_lease_through_bus(c: Context) -> None:
    """What a lost lease takes from a handler is no failed attempt of it; its own late end settles nothing."""
    first, second = c.bus(grace=1), c.bus()
    topic, began, ended, log, go_on = Topic("orders", str), c.log(), c.log(), c.log(), asyncio.Event()

    @first.subscribe(topic, group="group", lease=c.lease)
    async def wait(order: str, message: Message[str]) -> None:
        began.add(message.attempt)
        await go_on.wait()
        ended.add(order)

    @second.subscribe(topic, group="group")
    async def handle(order: str, message: Message[str]) -> None:
        log.add(message.attempt)
        await ended.reach(1)

    stands_still(await c.opened(first))
    await c.serve(first)
    await first.publish(topic, "a")
    await began.reach(1)
    await c.serve(second)
    attempts = await log.reach(1, within(c))
    go_on.set()
    await ended.reach(1)
    await log.quiet()
    assert began.items == [1]
    assert len(attempts) == 1, f"it was handed out again: attempts {attempts}"
    highest = 1 if c.capabilities.counting == "none" else most(c)
    assert attempts[0] <= highest, f"counting={c.capabilities.counting!r}, and after a lost lease it is {attempts[0]}"


def stands_still(bus: Any) -> None:
    """Let the sources of an open bus hand out once, and then neither receive nor extend: a member that hangs."""
    transport = bus.transport
    right = transport.subscribe

    async def subscribe(subscription: Subscription, revoked: Revoked) -> Source:
        source: Any = await right(subscription, revoked)
        receive, settle, got = source.receive, source.settle, list[Delivery]()

        async def hang(limit: int, held: Collection[str] = ()) -> Sequence[Delivery]:
            if got:
                await asyncio.sleep(0.1)
                return []
            got.extend(await receive(limit, held))
            return list(got)

        async def forget(batch: Sequence[Settlement]) -> Sequence[TransportError | None]:
            kept = [one for one in batch if one.verdict is not Verdict.EXTEND]
            outcomes = iter(await settle(kept)) if kept else iter(())
            return [MaybeSent("on its way") if one.verdict is Verdict.EXTEND else next(outcomes) for one in batch]

        source.receive, source.settle = hang, forget
        found: Source = source
        return found

    transport.subscribe = subscribe
