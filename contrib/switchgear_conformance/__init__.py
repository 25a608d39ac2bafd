"""The conformance kit: proof, for a transport's author, that a driver keeps its contract.

`switchgear conformance URL` runs the numbered cases of the catalogue against a broker, `pytest --switchgear NAME` the
same under pytest. What can be done to the broker (kill, pause, restart, cut its lines) an author says in a `Harness`,
found by the entry point group `switchgear.harnesses`.
"""

from .catalogue import catalogue
from .harness import Broker, Harness, NotRun, Setup
from .report import Report
from .runner import run

__all__ = ["Broker", "Harness", "NotRun", "Report", "Setup", "catalogue", "run"]
