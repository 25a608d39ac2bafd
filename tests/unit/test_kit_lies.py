"""Harnesses that claim what they do not do are found out, and told what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from switchgear_conformance.case import Outcome
from switchgear_conformance.harness import Address, Broker, Harness, HarnessLied, Setup, harness
from switchgear_conformance.runner import run


class Lying:
    """A broker that keeps some of its powers to itself."""

    def __init__(self, inner: Any, **instead: Any) -> None:
        self._inner, self._instead = inner, instead

    def __getattr__(self, name: str) -> Any:
        found = self._instead.get(name) or getattr(self._inner, name)
        if found is MISSING:
            raise AttributeError(name)
        return found


MISSING = object()


def nothing(*_: object) -> None:
    """What a power does that does nothing."""


def lying(name: str = "simulated", **instead: Any) -> Harness:
    right = harness(name)

    def start(setup: Setup) -> Broker:
        broker: Any = Lying(right.start(setup), **instead)
        return broker

    return replace(right, name="mine", start=start)


def caught(wrong: Harness, number: int, says: str) -> None:
    with pytest.raises(HarnessLied, match=says):
        run(wrong, numbers={number}, seed=1)


@pytest.mark.parametrize(
    ("power", "method", "needs"),
    [
        ("kill", "kill", "kill, start"), ("pause", "resume", "pause, resume"), ("restart", "stop", "stop, start"),
        ("proxy", "through", "upstream, through"), ("disk", "free", "fill, free"),
    ],
)  # fmt: skip
def test_a_power_without_its_methods(power: str, method: str, needs: str) -> None:
    wrong = replace(lying(**{method: MISSING}), powers=frozenset({power}))
    caught(wrong, 2, f"'mine' claims the power '{power}' and its broker lacks it: it needs {needs}")


def test_a_power_that_does_not_exist() -> None:
    caught(replace(lying(), powers=frozenset({"levitate"})), 2, "'levitate'.*there are kill, pause, restart")


def test_a_kill_that_kills_nothing() -> None:
    caught(lying(kill=nothing), 61, r"kill\(\) returned and the broker still answers: let it SIGKILL")


def test_a_stop_that_stops_nothing() -> None:
    caught(lying(stop=nothing), 60, r"stop\(\) returned and the broker still answers: let it return when")


def test_a_pause_that_pauses_nothing() -> None:
    caught(lying(pause=nothing), 62, r"pause\(\) returned and the broker still answers: let it SIGSTOP every process")


def test_a_start_that_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("switchgear_conformance.context.PATIENCE", 0.5)
    caught(
        lying(start=nothing), 60, r"start\(\) returned and the broker does not answer: let it start on the same data"
    )


def test_a_way_past_the_proxies() -> None:
    def past(simulated: Any) -> Harness:
        def start(setup: Setup) -> Broker:
            broker = simulated.start(setup)

            def through(addresses: Sequence[Address]) -> str:
                return str(broker.url)

            led: Any = Lying(broker, through=through)
            return led

        return replace(simulated, name="mine", start=start)

    for number in (63, 66):  # one fails when nothing breaks, the other passes
        caught(past(harness("simulated")), number, r"'mine' claims ctl:proxy, and no byte came.*`through\(addresses\)`")


def test_more_addresses_than_it_says() -> None:
    upstream = [("127.0.0.1", 1), ("127.0.0.1", 2)]
    caught(lying(upstream=upstream), 66, "names 2 addresses and the harness says addresses=1: let it say how many")


def test_virtual_time_without_a_clock() -> None:
    caught(replace(harness("sqlite"), name="mine", virtual=True), 2, "'mine' says virtual=True.*it has no set_clock")


@pytest.mark.parametrize("power", ["kill", "pause", "restart", "proxy"])
def test_embedded_with_a_server(power: str) -> None:
    wrong = replace(harness("memory"), name="mine", powers=frozenset({power}))
    caught(wrong, 2, f"'mine' says embedded=True and claims {power}: what has no server can't be killed")


def test_a_right_one_is_believed() -> None:
    report = run(lying(), numbers={66}, seed=1)
    assert not report.failed
    assert [r.outcome for r in report.results] == [Outcome.PASSED] * 2
