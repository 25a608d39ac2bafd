"""Until when a member of a group may rely on its partitions: others get them when the group has not heard of it."""

from __future__ import annotations

import math
import time


class Tenure:
    """What is proven of a membership, on the system's monotonic clock. May be used from several threads."""

    def __init__(self, within: float) -> None:
        self._within = within
        """Seconds for which one sign of life is enough."""
        self._awake = -math.inf
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
        self._awake = now = time.monotonic()
        if now <= self.until:
            self.until = now + self._within

    def begun(self) -> None:
        """A membership begins, of which the group told after the process was last known to run."""
        self.proven(self._awake)
