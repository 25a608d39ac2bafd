"""Until when a member of a group may rely on its partitions: others get them when the group has not heard of it."""

from __future__ import annotations

import math
import time


def tenable(lease: float, rebalance: float) -> float:
    """Seconds after a heartbeat in which nobody else gets a member's partitions: the group waits for a member that it
    has not heard of until its session ends, or a rebalance does."""
    return min(lease, rebalance)


class Tenure:
    """What is proven of a membership, on the system's monotonic clock. May be used from several threads."""

    def __init__(self, within: float) -> None:
        self._within = within
        """Seconds for which one sign of life is enough."""
        self.until = -math.inf
        """When what is proven ends."""

    @property
    def over(self) -> bool:
        """Whether it has to be proven anew."""
        return time.monotonic() > self.until

    def proven(self, since: float) -> None:
        """The group answered, as its member, a request that was sent at `since`."""
        self.until = max(self.until, since + self._within)

    def awake(self) -> None:
        """The process runs, and so do the heartbeats in a thread of it. Once the time is over that proves nothing."""
        now = time.monotonic()
        if now <= self.until:
            self.proven(now)
