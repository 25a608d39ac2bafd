"""Looking after topics and groups: lag, seek, browse."""

from __future__ import annotations

import heapq
import re
from collections.abc import AsyncIterator, Sequence
from typing import cast

from switchgear.driver import Delivery, Headers, Start
from switchgear.errors import ConfigurationError, Lost, NotFound, Refused

from .cluster import EARLIEST, LATEST, Cluster, OutOfRange, TopicPartition, existing, lane
from .lanes import offset_of
from .positions import starts


async def seek(cluster: Cluster, topic: str, group: str, to: Start | str) -> None:
    """Move a stopped group. Raises NotFound, Refused while a member reads, ConfigurationError for no position."""
    tps = await existing(cluster, topic)
    if not isinstance(to, str) or to in ("new", "earliest"):
        offsets = await starts(cluster, tps, cast("Start", to))
    else:
        offsets = await _position(cluster, tps, to)
    if reading := await cluster.members(group):
        raise Refused(f"group {group!r} is being read by {', '.join(sorted(reading))}: stop it, then seek")
    if not await cluster.committed(group, tps):
        raise NotFound(f"{cluster.at} has no group {group!r} of topic {topic!r}")
    for error in (await cluster.place(group, offsets)).values():
        raise Refused(f"{error}: stop them, then seek") if isinstance(error, Lost) else error


async def _position(cluster: Cluster, tps: Sequence[TopicPartition], to: str) -> dict[TopicPartition, int]:
    if not re.fullmatch(r"\d{1,9}:\d{1,18}", to):
        raise ConfigurationError(f"{to!r} is no position of kafka://: expected partition and offset such as 3:1207")
    partition, offset = map(int, to.split(":"))
    tp = TopicPartition(tps[0].topic, partition)
    if tp not in tps:
        raise NotFound(f"{cluster.at}: topic {tp.topic!r} has partitions 0 to {len(tps) - 1}, no {partition}")
    first, last = (await cluster.offsets({tp: EARLIEST}))[tp], (await cluster.offsets({tp: LATEST}))[tp]
    if not first <= offset <= last:
        raise Refused(
            f"{cluster.at}: {tp.topic!r}, partition {partition} holds offsets {first} to {last}, not {offset}"
        )
    return {tp: offset}


async def lag(cluster: Cluster, topics: Sequence[str], group: str) -> dict[str, int]:
    """Offsets between a group's position and the end, by partition; a topic that the group does not read is left out.

    What was finished ahead of the position counts as well, and so do offsets that hold no message.
    """
    tps = [tp for topic in topics for tp in await cluster.partitions(topic)]
    committed = await cluster.committed(group, tps)
    read = {tp.topic for tp in committed}
    tps = [tp for tp in tps if tp.topic in read]
    first = await cluster.offsets(dict.fromkeys(tps, EARLIEST))
    last = await cluster.offsets(dict.fromkeys(tps, LATEST))
    found: dict[str, int] = {}
    for tp in tps:
        position = committed[tp].offset if tp in committed else first[tp]
        found[lane(tp)] = max(0, last[tp] - max(position, first[tp]))
    return found


async def browse(
    cluster: Cluster, topic: str, start: Start, end: float | None
) -> AsyncIterator[tuple[Delivery, Headers]]:
    """What the topic holds now, each partition in its order and all together by time."""
    tps = await cluster.partitions(topic)
    if not tps:
        return
    last = await cluster.offsets(dict.fromkeys(tps, LATEST))
    begun = await starts(cluster, tps, start)
    streams: list[tuple[float, int, AsyncIterator[Delivery], Delivery]] = []
    for tp in tps:
        await _push(streams, cluster, tp.partition, _records(cluster, tp, begun[tp], last[tp]))
    while streams:
        at, partition, stream, delivery = heapq.heappop(streams)
        if end is None or at <= end:
            yield delivery, cluster.headers(delivery)
        await _push(streams, cluster, partition, stream)


async def _push(
    streams: list[tuple[float, int, AsyncIterator[Delivery], Delivery]], cluster: Cluster, partition: int,
    stream: AsyncIterator[Delivery],
) -> None:  # fmt: skip
    async for delivery in stream:
        heapq.heappush(streams, (cluster.time(delivery), partition, stream, delivery))
        return


async def _records(cluster: Cluster, tp: TopicPartition, offset: int, end: int) -> AsyncIterator[Delivery]:
    while offset < end:
        try:
            page, after = await cluster.read(tp, offset)
        except OutOfRange:  # retention was quicker
            offset = max(offset + 1, (await cluster.offsets({tp: EARLIEST}))[tp])
            continue
        for delivery in page:
            if offset_of(delivery) >= end:
                return
            yield delivery
        if after <= offset:
            return
        offset = after
