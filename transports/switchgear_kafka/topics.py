"""Topics as the cluster has them: made, described, configured."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, Final, NamedTuple

from aiokafka import errors as kafka
from aiokafka.protocol.admin import (
    AlterConfigsRequest,
    CreatePartitionsRequest,
    CreateTopicsRequest,
    DescribeConfigsRequest,
)

from switchgear.errors import NotFound, Refused

from .wire import EARLIEST, Wire, raise_for

TOPIC, BROKER = 2, 4  # kinds of configured things
DYNAMIC = 1  # where a value comes from: set for this topic
RETENTION: Final = "retention.ms"
POLICY: Final = "cleanup.policy"
KEPT: Final = {POLICY: "delete", RETENTION: "-1", "retention.bytes": "-1"}
"""Of topics that hold copies and dead letters: nothing goes by age, size or key. See `purging`."""
REPLIES: Final = {POLICY: "delete", RETENTION: "3600000"}
"""Of topics for answers, which are of no use once their asker is gone."""


class Configured(NamedTuple):
    """One configured value."""

    value: str | None
    own: bool
    """Set for this very topic, not a default."""


async def create(
    wire: Wire, topic: str, *, partitions: int | None = None, config: Mapping[str, str] | None = None
) -> bool:
    """Make a topic and wait until the cluster knows it; False if it is there already.

    `partitions=None`: as many as the broker makes by default. Raises Refused (rights, a policy, too few brokers).
    """
    tuning = wire.settings.tuning
    settings = dict(config or {})
    if topic in tuning.compacted:
        settings["cleanup.policy"] = "compact"
    defaults: Mapping[str, Configured] = {}
    if partitions is None or tuning.replication is None:
        defaults = await broker_config(wire, ("num.partitions", "default.replication.factor"))
    count = partitions or _number(defaults, "num.partitions")
    replicas = tuning.replication or _number(defaults, "default.replication.factor")

    async def ask() -> bool:
        request = CreateTopicsRequest(
            [(topic, count, replicas, [], list(settings.items()))], round(wire.patience * 1000), False
        )
        response = await wire.controller(request)
        for _, code, *said in response.topic_errors:
            if kafka.for_code(code) is kafka.TopicAlreadyExistsError:
                return False
            raise_for(code, said[0] if said and said[0] else topic)
        return True

    made = await wire.insist(ask, f"creating topic {topic!r}")
    for _ in range(100):  # the controller has it; brokers learn of it a moment later
        found = await wire.partitions(topic, fresh=True)
        leaders = [wire.client.cluster.leader_for_partition(tp) for tp in found]
        if found and all(leader is not None and leader != -1 for leader in leaders):
            with suppress(NotFound):
                await wire.offsets(dict.fromkeys(found, EARLIEST))  # once its leaders say that they are
                return made
        await asyncio.sleep(wire.patience / 100)
    raise Refused(f"{wire.at}: topic {topic!r} was made, and no broker leads all of its partitions")


async def grow(wire: Wire, topic: str, partitions: int) -> None:
    """Add partitions. Raises Refused."""

    async def ask() -> None:
        request = CreatePartitionsRequest([(topic, (partitions, None))], round(wire.patience * 1000), False)
        response = await wire.controller(request)
        for _, code, said, *_ in response.topic_errors:
            raise_for(code, said or topic)

    await wire.insist(ask, f"adding partitions to topic {topic!r}")
    for _ in range(100):  # the controller has them; brokers learn of them a moment later
        if len(await wire.partitions(topic, fresh=True)) >= partitions:
            return
        await asyncio.sleep(wire.patience / 100)


def _number(config: Mapping[str, Configured], name: str) -> int:
    found = config.get(name)
    return int(found.value) if found is not None and found.value else 1


async def broker_config(wire: Wire, names: Iterable[str]) -> Mapping[str, Configured]:
    """Settings of a broker; empty where this user may not see them."""
    node = wire.anyone()
    try:
        return await _describe(wire, BROKER, str(node), list(names), node)
    except Refused:
        return {}


async def topic_config(wire: Wire, topic: str) -> Mapping[str, Configured]:
    """All settings of a topic. Raises Refused."""
    return await _describe(wire, TOPIC, topic, None, None)


async def _describe(
    wire: Wire, kind: int, name: str, names: list[str] | None, node: int | None
) -> Mapping[str, Configured]:
    async def ask() -> Mapping[str, Configured]:
        to = wire.anyone() if node is None else node
        response = await wire.client.send(to, DescribeConfigsRequest([(kind, name, names)]))
        found: dict[str, Configured] = {}
        for code, said, _, _, entries in response.resources:
            raise_for(code, said or name)
            for key, value, _, source, *_ in entries:
                found[key] = Configured(value, source == DYNAMIC)
        return found

    return await wire.insist(ask, f"the configuration of {name!r}")


async def configure(wire: Wire, topic: str, wanted: Mapping[str, str | None]) -> None:
    """Set some of a topic's settings, or with None give them their default; all others stay as they are.

    The request replaces all that is set, so that what is set already goes with it. Raises Refused.
    """
    settings = {name: found.value for name, found in (await topic_config(wire, topic)).items() if found.own}
    settings.update(wanted)
    entries = [(name, value) for name, value in settings.items() if value is not None]

    async def ask() -> None:
        response: Any = await wire.client.send(wire.anyone(), AlterConfigsRequest([(TOPIC, topic, entries)]))
        for code, said, *_ in response.resources:
            raise_for(code, said or topic)

    await wire.insist(ask, f"configuring topic {topic!r}")
    for _ in range(100):  # the controller has it; brokers learn of it a moment later
        there = await topic_config(wire, topic)
        if all(there[name].value == value for name, value in wanted.items() if value is not None and name in there):
            return
        await asyncio.sleep(wire.patience / 100)
