"""What the kit says of a transport that does more than it declares, or whose harness says too little."""

from __future__ import annotations

import dataclasses

import pytest
from msgspec.structs import replace

from switchgear.driver import Capabilities
from switchgear_conformance.case import Outcome
from switchgear_conformance.harness import harness
from switchgear_conformance.mutants import Bug, bugs
from switchgear_conformance.mutants.table import mutant
from switchgear_conformance.runner import run


class DeclaresLess(Bug):
    """No bug: every promise is kept, and more."""

    def capabilities(self, c: Capabilities) -> Capabilities:
        return replace(c, broadcast=False, starts=frozenset({"new"}), delay=10.0, retry_delay=5.0, counting="none")


def test_what_is_done_and_not_declared_is_remarked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bugs(), "declares-less", DeclaresLess)
    found = {r.id: r for r in mutant("declares-less", numbers={18}).results}
    assert {r.outcome for r in found.values()} == {Outcome.PASSED}
    assert "it delays messages for longer than the 10 s that it declares" in found["18.driver"].reason
    assert "RETRY may wait for longer than the 5 s" in found["18.driver.retry"].reason
    assert "it counts deliveries, and declares that it does not" in found["18.driver.retry"].reason
    assert "a new group may start at 'earliest', which is not declared" in found["18.driver.subscribe"].reason
    assert "it has broadcast, and does not declare it" in found["18.driver.subscribe"].reason
    assert found["18.bus"].reason == ""


def test_without_a_documented_native_object_its_cases_are_not_run() -> None:
    report = run(dataclasses.replace(harness("memory"), native=""), numbers={17})
    assert {r.outcome for r in report.results} == {Outcome.NOT_RUN}
    assert "Harness(native='module.Class')" in report.results[0].reason
