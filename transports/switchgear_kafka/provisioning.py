"""Topics and groups that should be there, compared with those that are."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from switchgear.driver import Drift, Order, Resource, TopicInfo
from switchgear.errors import ConfigurationError, Refused

from .cluster import EARLIEST, LATEST, Cluster, Configured, existing
from .positions import found as found_group
from .topics import KEPT, POLICY, RETENTION, configure, create, grow

GROUPS = 50  # groups that are asked about at once


async def provision(cluster: Cluster, wanted: Sequence[Resource], apply: bool) -> list[Drift]:
    """Differences; with `apply` they are mended where that moves neither keys nor data.

    So partitions are added where no order is kept; none is ever taken away, and replicas are the operator's. Raises
    ConfigurationError for a group without a topic, Refused where rights are missing.
    """
    drifts: list[Drift] = []
    for resource in wanted:
        drifts += await (_topic if resource.kind == "topic" else _group)(cluster, resource, apply)
    return drifts


async def _topic(cluster: Cluster, resource: Resource, apply: bool) -> list[Drift]:
    name, tuning = resource.name, cluster.settings.tuning
    partitions = 1 if resource.order is Order.TOTAL else resource.partitions
    own = dict(KEPT) if resource.private else {}
    if resource.retention is not None:
        own[RETENTION] = str(round(resource.retention * 1000))
    if name in tuning.compacted:
        own[POLICY] = "compact"
    tps = await cluster.partitions(name, fresh=True)
    if not tps:
        if apply:
            await create(cluster, name, partitions=partitions, config=own)
        return [Drift(resource=resource, field="exists", wanted=True, found=False, applied=apply)]
    drifts: list[Drift] = []
    if resource.order is Order.TOTAL and len(tps) > 1:
        raise Refused(
            f"{cluster.at}: total order takes a topic of one partition, and {name!r} has {len(tps)}: use another topic"
        )
    if partitions is not None and len(tps) != partitions:
        more = apply and resource.order is Order.NONE and partitions > len(tps)
        if more:
            await grow(cluster, name, partitions)
        drifts.append(Drift(resource=resource, field="partitions", wanted=partitions, found=len(tps), applied=more))
    replicas = await cluster.replicas(name)
    if tuning.replication is not None and replicas != tuning.replication:
        drifts.append(
            Drift(resource=resource, field="replication", wanted=tuning.replication, found=replicas, applied=False)
        )
    if own:
        drifts += await _config(cluster, resource, own, apply)
    return drifts


async def _config(cluster: Cluster, resource: Resource, own: Mapping[str, str], apply: bool) -> list[Drift]:
    there = await cluster.topic_config(resource.name)
    nothing = Configured(None, False)
    differ = {name: value for name, value in own.items() if there.get(name, nothing).value != value}
    if differ and apply:
        await configure(cluster, resource.name, differ)
    drifts: list[Drift] = []
    for name, value in differ.items():
        before = there.get(name, nothing).value
        if name == RETENTION:
            seconds = None if before is None or int(before) < 0 else int(before) / 1000
            drifts.append(
                Drift(resource=resource, field="retention", wanted=resource.retention, found=seconds, applied=apply)
            )
        else:
            drifts.append(Drift(resource=resource, field=name, wanted=value, found=before, applied=apply))
    return drifts


async def _group(cluster: Cluster, resource: Resource, apply: bool) -> list[Drift]:
    if resource.topic is None:
        raise ConfigurationError(f"group {resource.name!r} is to be made without saying of which topic")
    tps = await existing(cluster, resource.topic) if apply else await cluster.partitions(resource.topic)
    if await cluster.committed(resource.name, tps):
        return []
    if apply:
        await found_group(cluster, resource.name, tps, resource.start)
    return [Drift(resource=resource, field="exists", wanted=True, found=False, applied=apply)]


async def topics(cluster: Cluster, prefix: str) -> list[TopicInfo]:
    """Topics whose names begin so, with the messages that they hold and the groups that have a position in them."""

    found = sorted(name for name in await cluster.names() if name.startswith(prefix))
    tps = {name: await cluster.partitions(name) for name in found}
    every = [tp for some in tps.values() for tp in some]
    first = await cluster.offsets(dict.fromkeys(every, EARLIEST))
    last = await cluster.offsets(dict.fromkeys(every, LATEST))
    readers: dict[str, set[str]] = {name: set() for name in found}
    groups = await cluster.groups()
    for n in range(0, len(groups), GROUPS):
        some = groups[n : n + GROUPS]
        for group, committed in zip(
            some, await asyncio.gather(*(cluster.committed(g, every) for g in some)), strict=True
        ):
            for tp in committed:
                readers[tp.topic].add(group)
    return [
        TopicInfo(
            name=name, messages=sum(last[tp] - first[tp] for tp in tps[name]), groups=tuple(sorted(readers[name]))
        )
        for name in found
    ]
