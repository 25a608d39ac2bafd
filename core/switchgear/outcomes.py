"""What a handler may raise instead of failing: the message's fate, said outright."""

from __future__ import annotations

from . import units
from .units import Seconds


class Reject(Exception):
    """Dead letter now, without another attempt. In a request it raises RequestFailed at the asker."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class RetryAfter(Exception):
    """Fail this attempt and try again not before `seconds`; counts as an attempt."""

    def __init__(self, seconds: Seconds, reason: str = "") -> None:
        super().__init__(seconds, reason)
        self.seconds = units.seconds(seconds)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason or f"retry after {self.seconds:g} s"


class Drop(Exception):
    """Acknowledge without effect; counted, never a dead letter."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
