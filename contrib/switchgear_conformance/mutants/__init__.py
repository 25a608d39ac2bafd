"""Transports with seeded bugs prove the suite: each fails exactly the cases that it names, the right one none."""

from .bug import Bug, bugs

__all__ = ["Bug", "bugs"]
