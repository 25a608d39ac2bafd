"""Where a group begins, and that it is known from the first moment on.

A position that is only in a member's memory is gone with the member: who comes next would begin at the end of then,
past all that was published meanwhile. So a new group's positions are committed before anything is handed out.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping

from switchgear.driver import Start
from switchgear.errors import Lost

from .cluster import EARLIEST, LATEST, Cluster, Committed, TopicPartition


async def starts(cluster: Cluster, tps: Iterable[TopicPartition], start: Start) -> dict[TopicPartition, int]:
    """The offset to begin with in each partition."""
    time = LATEST if start == "new" else EARLIEST if start == "earliest" else max(0, round(start * 1000))
    return await cluster.offsets(dict.fromkeys(tps, time))


async def known(cluster: Cluster, group: str, tps: Collection[TopicPartition]) -> frozenset[str]:
    """The topics of which the group has committed anything."""
    return frozenset(tp.topic for tp in await cluster.committed(group, tps))


async def found(cluster: Cluster, group: str, tps: Collection[TopicPartition], start: Start) -> bool:
    """Give a group without members its positions in all partitions of topics that are new to it.

    The broker takes them only while the group has no member, so that who does the same a moment later moves nobody
    who has joined. True if it is done; False if there was nothing to do, or the group has members.
    """
    old = await known(cluster, group, tps)
    new = await starts(cluster, [tp for tp in tps if tp.topic not in old], start)
    if not new:
        return False
    for error in (await cluster.place(group, new)).values():
        if isinstance(error, Lost):
            return False
        raise error
    return True


async def resume(
    cluster: Cluster, group: str, tps: Collection[TopicPartition], start: Start, old: Collection[str],
    commit: Callable[[Mapping[TopicPartition, Committed]], Awaitable[None]],
) -> Mapping[TopicPartition, Committed]:  # fmt: skip
    """Where a member goes on in partitions that are now its own; a position that is new is committed at once.

    In a topic that the group knew before (`old`), a partition without a position was added later: all of it is read.
    """
    committed = await cluster.committed(group, tps)
    missing = [tp for tp in tps if tp not in committed]
    if not missing:
        return committed
    offsets = {
        **await starts(cluster, [tp for tp in missing if tp.topic not in old], start),
        **await starts(cluster, [tp for tp in missing if tp.topic in old], "earliest"),
    }
    begun = {tp: Committed(offset, "") for tp, offset in offsets.items()}
    await commit(begun)
    return {**committed, **begun}
