"""One topic as one member reads it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from redis.exceptions import ResponseError

from switchgear.driver import Delivery, Fence, Start

from . import scripts
from .wire import Wire, refusal, vanished

FIRST, LAST = "0-0", "18446744073709551615"
GRAIN = 0.001  # ms: less than what an id tells, more than what a float of seconds loses


class Stream:
    """A topic of a subscription, under the lease with which it was assigned."""

    def __init__(self, name: str, group: str, fence: Fence | None, last: str) -> None:
        self.name, self.fence = name, fence
        self.revision = fence.revision if fence else 0
        self.lane = f"{name}#{fence.revision}" if fence else ""
        self.row = row_key(fence.row) if fence else name  # a script's key has to be one that the user may touch
        self.waiting = scripts.waiting(name, group)
        self.leases = scripts.leases(name, group)
        self.last = last
        """The id up to which this member has read."""
        self.cursor: str | None = "-" if fence else None
        """Where catching up with pending entries goes on; None: it has caught up, and new entries may follow."""
        self.lost = False
        """The lease went to somebody else: nothing is read until the topic is assigned anew."""


def row_key(name: str) -> str:
    """Where a row of the registry lies."""
    return f"switchgear:row:{name}"


def entry_id(delivery: Delivery) -> bytes:
    """The stream's id of a delivery."""
    token = delivery.token
    return token[1] if isinstance(token, tuple) else token  # type: ignore[return-value]


def entry_time(delivery: Delivery) -> float:
    """An id begins with the server's milliseconds."""
    return int(entry_id(delivery).partition(b"-")[0]) / 1000


async def start_ids(wire: Wire, topics: Sequence[str], start: Start) -> list[str]:
    """The ids after which a new group, or a reader without one, begins; a time to come is "new"."""
    if start == "earliest" or not topics:
        return [FIRST] * len(topics)
    out: list[str] = []
    for reply in await wire.ask([("XINFO", "STREAM", name) for name in topics], wire.soon()):
        if not isinstance(reply, ResponseError):
            out.append(dict(zip(reply[::2], reply[1::2], strict=True))[b"last-generated-id"].decode())
        elif vanished(reply):
            out.append(FIRST)
        else:
            raise refusal(wire.address, reply) from reply
    if start == "new":
        return out
    ms = max(math.ceil(start * 1000 - GRAIN) - 1, 0)
    return [last if int(last.partition("-")[0]) <= ms else f"{ms}-{LAST}" for last in out]
