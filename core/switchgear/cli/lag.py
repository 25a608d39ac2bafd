"""`switchgear lag`: how far groups are behind."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from .execute import execute
from .options import AnyGroup, Json, Url

if TYPE_CHECKING:
    from switchgear import Bus

RETURNED = "returned"
"""Shown as the partition of what came back to a group alone."""


def lag(
    topic: Annotated[
        str | None, typer.Argument(help="Only this topic. Default: all topics.", show_default=False)
    ] = None,
    group: AnyGroup = None,
    url: Url = None,
    json: Json = False,
) -> None:
    """Show how many messages each group has not handled yet, by partition.

    What waits at a group's return address, for another attempt or replayed, is shown as `returned`.
    """
    execute(_lag(url, topic, group, json))


async def _lag(url: str | None, topic: str | None, group: str | None, json: bool) -> None:
    from switchgear import Bus
    from switchgear.errors import NotFound
    from switchgear.plugins import redact

    from .output import print_json, print_table

    async with Bus(url, name="switchgear") as bus:
        found = await lags(bus, topic, group)
        where = redact(bus.url)
    if not found and (topic is not None or group is not None):
        whose = " ".join([f"group {group!r}" if group else "no group", f"of topic {topic!r}" if topic else ""]).strip()
        raise NotFound(f"there is no {whose} on {where}" if group else f"no group reads topic {topic!r} on {where}")
    if json:
        print_json(
            [
                {"topic": name, "group": reader, "lag": sum(lanes.values()), "partitions": lanes}
                for (name, reader), lanes in found.items()
            ]
        )
    elif found:
        rows: list[tuple[object, ...]] = []
        for (name, reader), lanes in found.items():
            rows += [(name, reader, lane, waiting) for lane, waiting in lanes.items() if lane]
            if len(lanes) > 1 or "" in lanes:
                rows.append((name, reader, "total", sum(lanes.values())))
        print_table(("topic", "group", "partition", "lag"), rows)
    else:
        print(f"no group reads anything on {where}")


async def lags(bus: Bus, topic: str | None, group: str | None) -> dict[tuple[str, str], dict[str, int]]:
    """By topic and group: by partition ("" where there are none) how many messages are not handled yet.

    Raises Unsupported where the broker cannot tell.
    """
    from switchgear.driver import Lagged, Provisioner
    from switchgear.errors import Unsupported
    from switchgear.names import owner, physical, retry_topic

    from .stored import connected

    transport = await connected(bus)
    if not isinstance(transport, Lagged) or not isinstance(transport, Provisioner):
        raise Unsupported(f"{bus._running().url}: this transport cannot tell how far a group is behind")
    rules, namespace = transport.capabilities.names, bus.namespace
    start = physical(rules, namespace, "")
    readers: dict[str, tuple[set[str], set[str]]] = {}
    for info in await transport.topics(start):
        name = re.sub(r"__\d+$", "", info.name.removeprefix(start))
        if name.startswith("sg.") or (topic is not None and name != topic):
            continue
        places, groups = readers.setdefault(name, (set(), set()))
        places.add(info.name)
        groups |= {reader.removeprefix(start) for reader in info.groups if reader.startswith(start)}
    found: dict[tuple[str, str], dict[str, int]] = {}
    for name, (places, groups) in sorted(readers.items()):
        for reader in sorted(groups):
            if (group is not None and reader != group) or owner(name) is not None:
                continue
            returns = physical(rules, namespace, retry_topic(name, reader))
            waiting = await transport.lag([*sorted(places), returns], physical(rules, namespace, reader))
            back = [count for lane, count in waiting.items() if lane.partition("/")[0] == returns]
            lanes = {_partition(lane): n for lane, n in waiting.items() if lane.partition("/")[0] != returns}
            if back:
                lanes[RETURNED] = sum(back)
            found[name, reader] = dict(sorted(lanes.items(), key=lambda one: (len(one[0]), one[0])))
    return found


def _partition(lane: str) -> str:
    """`orders/3` and `orders__3` are partition 3; a topic without partitions has no name for it."""
    number = re.search(r"(?:/|__)(\d+)$", lane)
    return number[1] if number else ""
