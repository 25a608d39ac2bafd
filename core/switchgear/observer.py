"""Counting what happens, for metrics."""

from __future__ import annotations

from typing import Protocol


class Observer(Protocol):
    """Told of what is counted; called on the loop, must not block, must not raise.

    Event names are stable: published, handled, retried, rejected, dead_lettered, dropped, expired, unhandled,
    lease_lost, duplicate, overrun, trimmed.
    """

    def count(self, event: str, topic: str, group: str | None, n: int) -> None: ...
