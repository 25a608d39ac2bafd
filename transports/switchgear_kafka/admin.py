"""Looking after topics and groups: lag, seek, browse."""

from __future__ import annotations

import heapq
import re
from collections.abc import AsyncIterator, Sequence
from typing import cast

from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.protocol.admin import DescribeGroupsRequest

from switchgear.driver import Delivery, Headers, Start
from switchgear.errors import ConfigurationError, NotFound, Refused

from . import log, records
from .failures import failure
from .positions import starts
from .wire import EARLIEST, LATEST, NOBODY, Committed, Wire, raise_for

_STOPPED = ("Empty", "Dead")


async def members(wire: Wire, group: str) -> list[str]:
    """Clients and hosts of the group's members; none of a group that is stopped, or that is not there."""

    async def ask() -> list[str]:
        response = await wire.coordinator(group, DescribeGroupsRequest([group]))
        for code, _, state, _, _, found, *_ in response.groups:
            raise_for(code, group)
            if state not in _STOPPED:
                return [f"{client}{host}" for _, client, host, *_ in found] or ["a member that is joining"]
        return []

    return await wire.insist(ask, f"group {group!r}")


async def seek(wire: Wire, topic: str, group: str, to: Start | str) -> None:
    """Move a stopped group. Raises NotFound, Refused while a member reads, ConfigurationError for no position."""
    tps = await wire.existing(topic)
    if not isinstance(to, str) or to in ("new", "earliest"):
        offsets = await starts(wire, tps, cast("Start", to))
    else:
        offsets = await _position(wire, tps, to)
    if reading := await members(wire, group):
        raise Refused(f"group {group!r} is being read by {', '.join(sorted(reading))}: stop it, then seek")
    if not await wire.committed(group, tps):
        raise NotFound(f"{wire.at} has no group {group!r} of topic {topic!r}")
    refused = await wire.commit(group, NOBODY, {tp: Committed(offset, "") for tp, offset in offsets.items()})
    for tp, error in refused.items():
        raise failure(f"{wire.at}: group {group!r}, {topic!r}, partition {tp.partition}", error())


async def _position(wire: Wire, tps: Sequence[TopicPartition], to: str) -> dict[TopicPartition, int]:
    if not re.fullmatch(r"\d{1,9}:\d{1,18}", to):
        raise ConfigurationError(f"{to!r} is no position of kafka://: expected partition and offset such as 3:1207")
    partition, offset = map(int, to.split(":"))
    tp = TopicPartition(tps[0].topic, partition)
    if tp not in tps:
        raise NotFound(f"{wire.at}: topic {tp.topic!r} has partitions 0 to {len(tps) - 1}, no {partition}")
    first, last = (await wire.offsets({tp: EARLIEST}))[tp], (await wire.offsets({tp: LATEST}))[tp]
    if not first <= offset <= last:
        raise Refused(f"{wire.at}: {tp.topic!r}, partition {partition} holds offsets {first} to {last}, not {offset}")
    return {tp: offset}


async def lag(wire: Wire, topics: Sequence[str], group: str) -> dict[str, int]:
    """Offsets between a group's position and the end, by partition; a topic that the group does not read is left out.

    What was finished ahead of the position counts as well, and so do offsets that hold no message.
    """
    tps = [tp for topic in topics for tp in await wire.partitions(topic)]
    committed = await wire.committed(group, tps)
    read = {tp.topic for tp in committed}
    tps = [tp for tp in tps if tp.topic in read]
    first = await wire.offsets(dict.fromkeys(tps, EARLIEST))
    last = await wire.offsets(dict.fromkeys(tps, LATEST))
    found: dict[str, int] = {}
    for tp in tps:
        position = committed[tp].offset if tp in committed else first[tp]
        found[f"{tp.topic}/{tp.partition}"] = max(0, last[tp] - max(position, first[tp]))
    return found


async def browse(wire: Wire, topic: str, start: Start, end: float | None) -> AsyncIterator[tuple[Delivery, Headers]]:
    """What the topic holds now, each partition in its order and all together by time."""
    tps = await wire.partitions(topic)
    if not tps:
        return
    last = await wire.offsets(dict.fromkeys(tps, LATEST))
    begun = await starts(wire, tps, start)
    streams: list[tuple[int, int, AsyncIterator[ConsumerRecord], ConsumerRecord]] = []
    for tp in tps:
        await _push(streams, tp.partition, _records(wire, tp, begun[tp], last[tp]))
    latest = None if end is None else end * 1000
    while streams:
        _, partition, stream, record = heapq.heappop(streams)
        if latest is None or record.timestamp <= latest:
            (delivery,) = records.deliveries(TopicPartition(topic, partition), [record])
            yield delivery, records.headers(delivery)
        await _push(streams, partition, stream)


async def _push(
    streams: list[tuple[int, int, AsyncIterator[ConsumerRecord], ConsumerRecord]], partition: int,
    stream: AsyncIterator[ConsumerRecord],
) -> None:  # fmt: skip
    async for record in stream:
        heapq.heappush(streams, (record.timestamp, partition, stream, record))
        return


async def _records(wire: Wire, tp: TopicPartition, offset: int, end: int) -> AsyncIterator[ConsumerRecord]:
    while offset < end:
        page, after = await log.read(wire, tp, offset)
        for record in page:
            if record.offset >= end:
                return
            yield record
        if after <= offset:
            return
        offset = after
