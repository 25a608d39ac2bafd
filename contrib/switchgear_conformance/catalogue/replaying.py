"""Capabilities: dead letters that a group is given once more."""

from __future__ import annotations

import asyncio

from switchgear import Bus, Message, Reject, Retry, RetryAfter, Topic
from switchgear.letters import Filter, waiting
from switchgear.names import dead_letter_topic
from switchgear.redriving import replay
from switchgear_conformance.case import case
from switchgear_conformance.context import Context, numbered
from switchgear_conformance.member import PATIENCE

from .copying import WAIT, graveyard

ORDERS = Topic("orders", str)
GRAVE = dead_letter_topic("orders", "group")


async def buried(c: Context, bus: Bus, number: int) -> None:
    """Until so many dead letters are neither replayed nor dropped."""
    until = c.time() + PATIENCE
    while (there := await counted(bus)) != number:
        assert c.time() < until, f"{there} dead letters are there, of {number}"
        await asyncio.sleep(0.02)


async def counted(bus: Bus) -> int:
    return len([letter async for letter in waiting(bus, GRAVE, Filter())])


@case(80, "groups", "dedup", "registry", "browsable", "lagged", level="bus", part="replay", bound=60.0)
async def dedup_per_hop_replay_through_bus(c: Context) -> None:
    """So does a replay, and whatever copies and dead letters are made of what was replayed, time after time."""
    log, bus = c.log(), c.bus(c.weak_url())

    @bus.subscribe(ORDERS, group="group", retry=Retry(attempts=9))
    async def handle(message: Message[str]) -> None:
        log.add((message.id, message.attempt))
        if message.attempt == 2:
            raise Reject("poison")
        raise RetryAfter(WAIT)

    await c.serve(bus)
    await graveyard(c, bus)
    await bus.publish(ORDERS, "a", id="one")
    for round_ in (1, 2, 3):
        await log.reach(2 * round_, within=20.0)
        await buried(c, bus, 1)
        if round_ < 3:
            summary = await replay(bus, GRAVE, "group", Filter())
            assert summary.taken == 1, f"replay {round_} took {summary.taken} dead letters, of 1"
    await log.quiet()
    assert log.items == [("one", 1), ("one", 2)] * 3, f"ids and attempts: {log.items}"


@case(89, "groups", "registry", "browsable", "lagged", level="bus", part="replay", bound=60.0)
async def copy_only_to_its_group_replay_through_bus(c: Context) -> None:
    """Dead letters that are replayed reach the group that failed, and no other group.

    So it is where the group did not read its return address before. They come with nothing of their past, and none is
    listed any more.
    """
    mine, theirs, bus = c.log(), c.log(), c.bus()

    @bus.subscribe(ORDERS, group="group")
    async def handle(message: Message[str]) -> None:
        mine.add((message.body, message.attempt))
        if len(mine.items) <= 5:
            raise Reject("poison")

    @bus.subscribe(ORDERS, group="other")
    async def other(message: Message[str]) -> None:
        theirs.add(message.body)

    await c.serve(bus)
    await graveyard(c, bus)
    await bus.publish_many(ORDERS, numbered(5))
    await mine.reach(5)
    await theirs.reach(5)
    await buried(c, bus, 5)
    summary = await replay(bus, GRAVE, "group", Filter())
    assert summary.taken == 5, f"replay took {summary.taken} dead letters, of 5"
    await mine.reach(10, within=20.0)
    await mine.quiet()
    assert sorted(mine.items) == sorted((body, 1) for body in [*numbered(5), *numbered(5)]), f"handled: {mine.items}"
    assert sorted(theirs.items) == numbered(5), f"what a group replays another one sees: {sorted(theirs.items)}"
    assert await counted(bus) == 0, "dead letters that were replayed are still listed"
