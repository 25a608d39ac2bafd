"""Every bug against every case."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from switchgear_conformance.case import Outcome
from switchgear_conformance.harness import Broker, Setup, harness
from switchgear_conformance.report import Report
from switchgear_conformance.runner import run

from .bug import bugs
from .plugin import installed, mutant_url


class _Mutant:
    """A broker whose URL leads through a bug."""

    def __init__(self, bug: str, inner: Broker) -> None:
        self._bug, self._inner = bug, inner

    @property
    def url(self) -> str:
        return mutant_url(self._bug, self._inner.url)

    @property
    def version(self) -> str:
        return self._inner.version

    def close(self) -> None:
        self._inner.close()

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def through(self, addresses: object) -> str:
        inner: Any = self._inner
        return mutant_url(self._bug, inner.through(addresses))


def mutant(name: str, *, numbers: Collection[int] | None = None, seed: int = 1) -> Report:
    """Run cases against one mutant."""
    right = harness(bugs()[name].over)

    def start(setup: Setup) -> Broker:
        return _Mutant(name, right.start(setup))

    with tempfile.TemporaryDirectory() as folder, installed(Path(folder)) as environment:
        return run(replace(right, name=name, start=start), numbers=numbers, seed=seed, environment=environment)


def failed(report: Report) -> set[str]:
    """Ids of the cases that failed."""
    return {r.id for r in report.results if r.outcome is Outcome.FAILED}


def verdict(name: str, *, numbers: Collection[int] | None = None, note: Callable[[str], None] = print) -> bool:
    """Whether the mutant fails what it names and nothing else; says where not."""
    report = mutant(name, numbers=numbers)
    found, named = (
        failed(report),
        {i for i in bugs()[name].fails if numbers is None or int(i.partition(".")[0]) in numbers},
    )
    reasons = {r.id: r.reason for r in report.failed}
    for case in sorted(found - named):
        note(f"{name}: fails {case}, which it does not name: {reasons[case]}")
    for case in sorted(named - found):
        note(f"{name}: names {case}, which it passes")
    return found == named
