"""What the broker knows of a topic."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable

from switchgear import Bus
from switchgear.driver import Provisioner, Registry, TopicInfo, Transport
from switchgear.names import physical, plan_row

_PARTITION = re.compile(r"__\d+$")


PATIENCE = 10.0  # seconds for the broker to be there


async def connected(bus: Bus, timeout: float = PATIENCE) -> Transport:
    """The open bus's driver, once it has a connection. Raises Unavailable after `timeout` seconds."""
    await bus._running().connected(asyncio.get_running_loop().time() + timeout)
    return bus.transport


async def stored_topics(bus: Bus, prefix: str = "") -> list[TopicInfo] | None:
    """Topics whose names start with `prefix`, without the namespace, partitions added up; None where the broker cannot
    list them."""
    transport = await connected(bus)
    if not isinstance(transport, Provisioner):
        return None
    start = physical(transport.capabilities.names, bus.namespace, prefix)
    return merged(await transport.topics(start), physical(transport.capabilities.names, bus.namespace, ""))


async def stored_topic(bus: Bus, name: str) -> TopicInfo | None:
    """One topic; None if it does not exist, or the broker cannot tell."""
    return next((info for info in await stored_topics(bus, name) or () if info.name == name), None)


async def planned(bus: Bus, name: str) -> bool:
    """Whether the topic's order was settled before."""
    transport = await connected(bus)
    if not isinstance(transport, Registry):
        return False
    row = physical(transport.capabilities.names, bus.namespace, plan_row(name))
    return row in await transport.read(row)


def merged(found: Iterable[TopicInfo], namespace: str) -> list[TopicInfo]:
    """One entry a topic, by name."""
    topics: dict[str, TopicInfo] = {}
    for info in found:
        name = _PARTITION.sub("", info.name.removeprefix(namespace))
        known = topics.get(name, TopicInfo(name=name, messages=0, groups=()))
        countable = known.messages is not None and info.messages is not None
        topics[name] = TopicInfo(
            name=name,
            messages=(known.messages or 0) + (info.messages or 0) if countable else None,
            groups=tuple(sorted({*known.groups, *(group.removeprefix(namespace) for group in info.groups)})),
        )
    return sorted(topics.values(), key=lambda info: info.name)
