"""Durations and instants as users write them."""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from typing import TypeAlias

from .errors import ConfigurationError

Seconds: TypeAlias = float | timedelta
When: TypeAlias = float | timedelta | datetime
"""A duration from now, or an instant with a time zone."""


def seconds(value: Seconds) -> float:
    """A duration in seconds. Raises ConfigurationError for what is no duration."""
    if isinstance(value, timedelta):
        return value.total_seconds()
    if (isinstance(value, float) and not math.isnan(value)) or type(value) is int:
        return float(value)
    raise ConfigurationError(f"expected seconds as a number or a timedelta, got {value!r}")


def instant(value: When, now: float) -> float:
    """An instant in unix seconds. Raises ConfigurationError for a datetime without a time zone, and for infinity."""
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ConfigurationError(f"{value!r} has no time zone: write datetime(…, tzinfo=UTC) or a duration")
        return value.timestamp()
    if math.isinf(found := now + seconds(value)):
        raise ConfigurationError(
            f"expected a time that comes, got {value!r}: publish what is to wait for ever elsewhere"
        )
    return found
