"""Cases through `Bus` over a broker without delay, RETRY and count: what the core adds holds them, too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from switchgear_conformance import run
from switchgear_conformance.case import Outcome
from switchgear_conformance.harness import Broker, Setup
from switchgear_conformance.harnesses.embedded import Place, memory, memory_place
from switchgear_conformance.schemes import installed
from switchgear_conformance.weakened import weak_url

NUMBERS = {36, 37, 38, 41, 42, 46, 48, 51, 89, 90}


@pytest.mark.parametrize("kind", ["", "log"])
def test_cases_of_retry_and_delay(kind: str, tmp_path: Path) -> None:
    def start(setup: Setup) -> Broker:
        inner = memory_place(setup)
        return Place(weak_url(inner.url, kind), inner.version)

    # A log has one member at a time: what cases do with two is not for it.
    numbers = NUMBERS if not kind else NUMBERS - {89, 90}
    with installed(tmp_path) as environment:
        report = run(replace(memory, name="weak", start=start), numbers=numbers, environment=environment)
    through_bus = [r for r in report.results if r.level == "bus"]
    assert len([r for r in through_bus if r.outcome is Outcome.PASSED]) >= 12
    assert [(r.id, r.reason) for r in through_bus if r.outcome is Outcome.FAILED] == []
