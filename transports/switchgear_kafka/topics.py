"""Topics: made and configured, and waited for until the cluster knows."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

from switchgear.errors import Refused

from .cluster import Cluster, Configured

RETENTION: Final = "retention.ms"
POLICY: Final = "cleanup.policy"
KEPT: Final = {POLICY: "delete", RETENTION: "-1", "retention.bytes": "-1"}
"""Of topics that hold copies and dead letters: nothing goes by age, size or key. See `purging`."""
REPLIES: Final = {POLICY: "delete", RETENTION: "3600000"}
"""Of topics for answers, which are of no use once their asker is gone."""


async def create(
    cluster: Cluster, topic: str, *, partitions: int | None = None, config: Mapping[str, str] | None = None
) -> bool:
    """Make a topic and wait until the cluster knows it; False if it is there already.

    `partitions=None`: as many as the broker makes by default. Raises Refused (rights, a policy, too few brokers).
    """
    tuning = cluster.settings.tuning
    settings = dict(config or {})
    if topic in tuning.compacted:
        settings["cleanup.policy"] = "compact"
    defaults: Mapping[str, Configured] = {}
    if partitions is None or tuning.replication is None:
        defaults = await cluster.broker_config(("num.partitions", "default.replication.factor"))
    count = partitions or _number(defaults, "num.partitions")
    replicas = tuning.replication or _number(defaults, "default.replication.factor")
    made = await cluster.create(topic, count, replicas, settings)
    for _ in range(100):  # the controller has it; brokers learn of it a moment later
        if await cluster.led(topic):
            return made
        await asyncio.sleep(cluster.patience / 100)
    raise Refused(f"{cluster.at}: topic {topic!r} was made, and no broker leads all of its partitions")


async def grow(cluster: Cluster, topic: str, partitions: int) -> None:
    """Add partitions. Raises Refused."""
    await cluster.grow(topic, partitions)
    for _ in range(100):  # the controller has them; brokers learn of them a moment later
        if len(await cluster.partitions(topic, fresh=True)) >= partitions:
            return
        await asyncio.sleep(cluster.patience / 100)


def _number(config: Mapping[str, Configured], name: str) -> int:
    found = config.get(name)
    return int(found.value) if found is not None and found.value else 1


async def configure(cluster: Cluster, topic: str, wanted: Mapping[str, str]) -> None:
    """Set some of a topic's settings; all others stay as they are. Raises Refused."""
    await cluster.configure(topic, wanted)
    for _ in range(100):  # the controller has it; brokers learn of it a moment later
        there = await cluster.topic_config(topic)
        if all(there[name].value == value for name, value in wanted.items() if name in there):
            return
        await asyncio.sleep(cluster.patience / 100)
