"""The conformance kit: proof, for a transport's author, that a driver keeps its contract.

`switchgear conformance URL` runs the numbered cases of the catalogue against a broker, `pytest --switchgear NAME` the
same under pytest. What can be done to the broker (kill, pause, restart, cut its lines) an author says in a `Harness`,
found by the entry point group `switchgear.harnesses`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .harness import Broker, Harness, NotRun, Setup
    from .report import Report
    from .runner import run

__all__ = ["Broker", "Harness", "NotRun", "Report", "Setup", "run"]

_HOMES = {
    "Broker": "harness", "Harness": "harness", "NotRun": "harness", "Report": "report", "Setup": "harness",
    "run": "runner",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a name when it is asked for: the command line looks into this package for every `--help`."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
