"""What cases look at in a bus: what it counts, and what it holds."""

from __future__ import annotations

from collections import Counter

from switchgear import Bus
from switchgear.names import physical


class Counts:
    """An observer that adds up."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()

    def count(self, event: str, topic: str, group: str | None, n: int) -> None:
        self.seen[event] += n

    def __getitem__(self, event: str) -> int:
        return self.seen[event]


def held(bus: Bus) -> int:
    """How many deliveries the subscriptions of an open bus hold: those that wait, run, or are not settled."""
    core = bus._open  # pyright: ignore[reportPrivateUsage]
    assert core is not None
    return sum(len(consumer.lanes.held) for consumer in core.consumers)


def place(bus: Bus, name: str) -> str:
    """The physical name that an open bus gives a topic (of a partitioned one without the partition)."""
    return physical(bus.transport.capabilities.names, bus.namespace, name)
