"""Capabilities: copies that wait for another attempt or for their time, where the broker can't or had to before."""

from __future__ import annotations

from switchgear import Bus, Message, Reject, Retry, RetryAfter, Topic
from switchgear.names import dead_letter_topic
from switchgear_conformance.case import case
from switchgear_conformance.context import Context, Log, numbered
from switchgear_conformance.member import Member
from switchgear_conformance.watching import place

ORDERS = Topic("orders", str)
KEYED = Topic("orders", str, key=lambda order: order, order="key", partitions=2)
WAIT = 1.0  # seconds: the least for which the core makes a copy


async def graveyard(c: Context, bus: Bus) -> Member:
    """The dead letters of the group, of a bus that is open."""
    return await c.join(await c.open(), place(bus, dead_letter_topic("orders", "group")), group="graveyard")


def said(m: Member, letter: object, name: str) -> bytes | None:
    """An attribute of a delivery."""
    binding = m.source.capabilities.binding
    return next((v for n, v in m.source.headers(letter) if n.lower() == binding + name), None)  # type: ignore[arg-type]


# ---- 80


@case(80, "groups", "dedup", level="bus", bound=60.0)
async def dedup_per_hop_through_bus(c: Context) -> None:
    """Copies for one attempt after another, and the dead letter, pass a broker that drops a token's second message."""
    log, bus = c.log(), c.bus(c.weak_url())

    @bus.subscribe(ORDERS, group="group", retry=Retry(attempts=9))
    async def handle(message: Message[str]) -> None:
        log.add((message.id, message.attempt))
        if message.attempt == 3:
            raise Reject("poison")
        raise RetryAfter(WAIT)

    await c.serve(bus)
    letters = await graveyard(c, bus)
    await bus.publish(ORDERS, "a", id="one")
    await log.reach(3)
    (letter,) = await letters.drain(1)
    assert log.items == [("one", 1), ("one", 2), ("one", 3)], f"ids and attempts: {log.items}"
    assert letter.body == b'"a"'
    await letters.nothing()


@case(80, "groups", "dedup", level="bus", part="hops", bound=60.0)
async def dedup_per_hop_hops_through_bus(c: Context) -> None:
    """So does a delayed message at each hop, also where two of its hops are through one topic."""
    log, bus = c.log(), c.bus(c.weak_url())

    @bus.subscribe(ORDERS, group="group")
    async def handle(message: Message[str]) -> None:
        log.add((message.id, message.attempt))

    await c.serve(bus)
    await bus.publish(ORDERS, "a", id="one", delay=2 * WAIT + 0.1)
    await log.reach(1)
    await log.quiet()
    assert log.items == [("one", 1)], f"ids and attempts: {log.items}"


# ---- 89


async def fails_twice(c: Context, url: str | None, wait: float) -> None:
    """Of two groups one fails twice with every message, and rejects one of them."""
    mine, theirs, bus = c.log(), c.log(), c.bus(url)

    @bus.subscribe(ORDERS, group="group")
    async def handle(message: Message[str]) -> None:
        mine.add((message.body, message.attempt))
        if message.attempt < 3:
            raise RetryAfter(wait)
        if message.body == "0":
            raise Reject("poison")

    @bus.subscribe(ORDERS, group="other")
    async def other(message: Message[str]) -> None:
        theirs.add((message.body, message.attempt))

    await c.serve(bus)
    await bus.publish_many(ORDERS, numbered(5))
    await mine.reach(15, within=20.0)
    await mine.quiet()
    expected = [(body, attempt) for body in numbered(5) for attempt in (1, 2, 3)]
    assert sorted(mine.items) == expected, f"messages and attempts of the group that failed: {sorted(mine.items)}"
    seen = sorted(theirs.items)
    assert seen == [(body, 1) for body in numbered(5)], f"another group fails, and this one sees {seen}"


@case(89, "groups", "nack", level="bus")
async def copy_only_to_its_group_through_bus(c: Context) -> None:
    """What a group is given another time, or gives up, no other group sees once more."""
    await fails_twice(c, None, 0.1)


@case(89, "groups", "nack", level="bus", part="copy")
async def copy_only_to_its_group_copy_through_bus(c: Context) -> None:
    """The same where the core makes copies, which wait in delay topics."""
    await fails_twice(c, c.weak_url(), WAIT)


# ---- 90


def failing(c: Context, url: str | None, log: Log, topic: Topic[str], policy: Retry, wait: float) -> Bus:
    """A member that adds what it is given, and asks for it again in a while."""
    bus = c.bus(url)

    @bus.subscribe(topic, group="group", retry=policy, order="none")
    async def handle(message: Message[str]) -> None:
        log.add((message.body, message.attempt, c.now()))
        raise RetryAfter(wait)

    return bus


async def policy_changes(c: Context, url: str | None, wait: float) -> None:
    """A message fails under a generous policy, and waits while a strict one takes its place."""
    keeps = await c.open()  # the broker, where it lives in this process
    before, after = c.log(), c.log()
    async with failing(c, url, before, ORDERS, Retry(attempts=9), wait).serving():
        bus = await c.opened(c.bus(url))
        await bus.publish(ORDERS, "a")
        await before.reach(1)
    due = before.items[0][2] + wait
    bus = failing(c, url, after, ORDERS, Retry(attempts=2), wait)
    await c.serve(bus)
    letters = await graveyard(c, bus)
    (letter,) = await letters.drain(1)
    assert [item[:2] for item in after.items] == [("a", 2)], f"attempts under the new policy: {after.items}"
    assert after.items[0][2] >= due - 0.01, f"handled again {due - after.items[0][2]:.3f} s before its time"
    assert (letter.body, said(letters, letter, "sgattempt")) == (b'"a"', b"2")
    await after.quiet()
    await keeps.close()


@case(90, "groups", "nack", level="bus")
async def policy_changed_in_flight_through_bus(c: Context) -> None:
    """What waits for another attempt keeps its time and its count, and is then judged by the policy of the day."""
    await policy_changes(c, None, 1.2)


@case(90, "groups", "nack", level="bus", part="copy")
async def policy_changed_in_flight_copy_through_bus(c: Context) -> None:
    """The same where the core makes copies, which wait in delay topics."""
    await policy_changes(c, c.weak_url(), WAIT + 0.2)


@case(90, "groups", "nack", "order>=key", level="bus", part="order", bound=60.0)
async def policy_changed_in_flight_order_through_bus(c: Context) -> None:
    """Copies that were made before the group kept an order are handled by it all the same."""
    keeps, url = await c.open(), c.weak_url()
    before, after = c.log(), c.log()
    async with failing(c, url, before, KEYED, Retry(attempts=9), WAIT).serving():
        bus = await c.opened(c.bus(url))
        await bus.publish_many(KEYED, numbered(4))
        await before.reach(4)
    bus = c.bus(url)

    @bus.subscribe(KEYED, group="group")
    async def handle(message: Message[str]) -> None:
        after.add((message.body, message.attempt))

    await c.serve(bus)
    await after.reach(4)
    await after.quiet()
    assert sorted(after.items) == [(body, 2) for body in numbered(4)], f"handled with order: {after.items}"
    await keeps.close()


@case(90, "groups", "nack", level="bus", part="broker", bound=60.0)
async def policy_changed_in_flight_broker_through_bus(c: Context) -> None:
    """Copies and delayed messages that were made for a weaker broker arrive when it has become a stronger one."""
    keeps, url = await c.open(), c.weak_url()
    before, after = c.log(), c.log()
    async with failing(c, url, before, ORDERS, Retry(attempts=9), WAIT).serving():
        bus = await c.opened(c.bus(url))
        await bus.publish(ORDERS, "late", delay=WAIT + 0.5)
        await bus.publish(ORDERS, "failed")
        await before.reach(1)
    bus = c.bus()

    @bus.subscribe(ORDERS, group="group")
    async def handle(message: Message[str]) -> None:
        after.add((message.body, message.attempt))

    await c.serve(bus)
    await after.reach(2)
    await after.quiet()
    assert sorted(after.items) == [("failed", 2), ("late", 1)], f"handled on the stronger broker: {after.items}"
    await keeps.close()
