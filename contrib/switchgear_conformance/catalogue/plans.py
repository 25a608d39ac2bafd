"""What publishers and members of a topic must agree on."""

from __future__ import annotations

import asyncio
from typing import Any

from switchgear import Bus, Topic
from switchgear.errors import ConfigurationError
from switchgear_conformance.case import case
from switchgear_conformance.context import Context


def first(order: str) -> str:
    return order[0]


def topic(partitions: int) -> Topic[str]:
    return Topic("orders", str, key=first, partitions=partitions)


async def refused(c: Context, bus: Bus, declared: Topic[Any], says: str, *, member: bool) -> None:
    """This bus's declaration is refused, with its own values and those of the plan."""
    if member:

        @bus.subscribe(declared, group="group")
        async def handle(order: str) -> None:
            """It is never called."""

    try:
        if member:
            await c.serve(bus)
        else:
            await (await c.opened(bus)).publish(declared, "a")
    except ConfigurationError as error:
        missing = [word for word in (says, "order='key'", "partitions=4") if word not in str(error)]
        assert not missing, f"the refusal does not show {missing}: {error}"
    else:
        raise AssertionError(f"{'a member' if member else 'a publisher'} with {says} was let in beside a plan of 4")


@case(92, "registry", "order>=key", level="bus")
async def plan_mismatch_through_bus(c: Context) -> None:
    """Whoever declares another order or number of partitions than the topic's plan is refused, both values shown."""
    bus, log = c.bus(), c.log()

    @bus.subscribe(topic(4), group="group")
    async def handle(order: str) -> None:
        log.add(order)

    await c.serve(bus)
    await bus.publish(topic(4), "a0")
    for member in (False, True):
        await refused(c, c.bus(), topic(8), "partitions=8", member=member)
        await refused(c, c.bus(), Topic("orders", str, order="none"), "order='none'", member=member)
    unsaid = await c.opened(c.bus())
    await unsaid.publish("orders", "a1")  # who says nothing takes the plan that is there
    await unsaid.publish(Topic("orders", str, key=first), "a2")
    assert sorted(await log.reach(3)) == ["a0", "a1", "a2"]  # by its name alone nobody knows the key


@case(92, "registry", "order>=key", level="bus", part="race")
async def plan_mismatch_race_through_bus(c: Context) -> None:
    """Of several who come first at the same time with different plans, one decides and the others are refused."""
    buses = [await c.opened(c.bus()) for _ in range(4)]

    async def publish(n: int) -> int | None:
        try:
            await buses[n].publish(topic(n + 2), "a")
        except ConfigurationError:
            return None
        return n + 2

    found = [n for n in await asyncio.gather(*(publish(n) for n in range(4))) if n is not None]
    assert len(found) == 1, f"plans with {found} partitions were accepted beside each other"
    reader = await c.opened(c.bus())
    await reader.publish(topic(found[0]), "b")
