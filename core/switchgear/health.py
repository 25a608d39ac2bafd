"""Whether a bus is alive and ready, and why not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Health:
    """`live`: nothing failed for good; `ready`: connected, every subscription at work or standing by."""

    live: bool
    ready: bool
    detail: Mapping[str, str]
    """By subscription ("orders → billing") and "broker": the state in words."""
