"""Testing what is built on Switchgear: the same bus on a broker in memory, with a clock that the test advances."""

from .faults import Faults
from .memory import Trace, in_memory

__all__ = ["Faults", "Trace", "in_memory"]
