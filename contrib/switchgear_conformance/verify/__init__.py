"""A workload against any broker, with or without faults, whose history proves that nothing was lost."""

from .history import Event, Journal, read
from .oracle import Oracle
from .verdict import Verdict

__all__ = ["Event", "Journal", "Oracle", "Verdict", "read"]
