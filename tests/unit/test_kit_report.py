"""What a report says: tiers, waivers, and the three formats."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from switchgear.errors import ConfigurationError
from switchgear_conformance.case import PENDING, Case, Outcome, Tier, tier
from switchgear_conformance.catalogue import NUMBERS, catalogue
from switchgear_conformance.context import Context
from switchgear_conformance.harness import harness
from switchgear_conformance.report import Report, Result, from_json, to_json, to_junit, to_markdown
from switchgear_conformance.runner import Session, run, whole
from switchgear_conformance.waivers import waivers


def result(number: int, outcome: Outcome = Outcome.PASSED, reason: str = "") -> Result:
    return Result(number=number, name="x", level="driver", tier=tier(number), outcome=outcome, reason=reason)


def report(*results: Result, emulator: bool = False, persistent: bool = True) -> Report:
    return Report(
        harness="h", url="h://", seed=1, embedded=False, emulator=emulator, storage="fsync always",
        claims={"persistent": persistent}, results=list(results), versions={"suite": "1"},
    )  # fmt: skip


def test_every_number_has_a_case_or_waits() -> None:
    assert {case.number for case in catalogue()} | set(PENDING) == set(range(1, NUMBERS + 1))


def test_every_case_says_what_it_holds_a_transport_to() -> None:
    assert [case.id for case in catalogue() if not case.summary.endswith(".")] == []


def test_a_tier_is_earned_by_what_passed_is_refused_or_does_not_apply() -> None:
    tiers = report(result(1), result(2, Outcome.NOT_APPLICABLE), result(3, Outcome.REFUSED)).tiers()
    assert tiers[Tier.CORE].earned
    assert not tiers[Tier.FAULTS].earned  # nothing passed there


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.NOT_RUN, Outcome.WAIVED])
def test_a_tier_is_spoilt_by(outcome: Outcome) -> None:
    standing = report(result(1), result(2, outcome)).tiers()[Tier.CORE]
    assert not standing.earned
    assert "2.driver" in standing.why


def test_durable_is_for_real_brokers_that_keep_things() -> None:
    assert report(result(60)).tiers()[Tier.DURABLE].earned
    assert not report(result(60), emulator=True).tiers()[Tier.DURABLE].earned
    assert not report(result(60), persistent=False).tiers()[Tier.DURABLE].earned


def test_a_part_of_a_tier_earns_nothing() -> None:
    part = report(result(1), result(60))
    part.whole = [Tier.DURABLE]
    assert not part.tiers()[Tier.CORE].earned
    assert part.tiers()[Tier.DURABLE].earned


def test_a_tier_is_whole_when_each_of_its_cases_was_run() -> None:
    core = {case.id for case in catalogue() if case.tier is Tier.CORE}
    assert whole(core) == [Tier.CORE]
    assert whole({*core, "60.driver"}) == [Tier.CORE]
    assert whole(core - {"2.bus"}) == []


def test_a_run_of_some_cases_knows_that() -> None:
    assert run(harness("memory"), numbers={2}).whole == []


def test_json_is_read_again() -> None:
    one = report(result(1), result(2, Outcome.FAILED, "why"))
    again = from_json(to_json(one))
    assert again == one


def test_junit_counts_and_tells() -> None:
    root = ET.fromstring(to_junit(report(result(1), result(2, Outcome.FAILED, "bad \x00 | byte"), result(60))))
    core = next(suite for suite in root if suite.get("name") == "Core")
    assert (core.get("tests"), core.get("failures")) == ("2", "1")
    (failure,) = core.iter("failure")
    assert failure.get("message") == "bad \ufffd | byte"


def test_markdown_shows_tiers_and_cases() -> None:
    text = to_markdown(report(result(1), result(2, Outcome.FAILED, "a | b")))
    assert "| Core | no | 2.driver failed |" in text
    assert "| 2.driver | x | driver | failed | 0.00 | a \\| b |" in text


# ---- waivers


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[[waiver]]\ncase = 95\nreason = 'x'", "there is no case 95 to waive"),
        ("[[waiver]]\ncase = 49\nreason = 'x'", "there is no case 49 to waive"),
        ("[[waiver]]\ncase = 2", "case = NUMBER and reason"),
        ("[[waiver]]\ncase = 2\nreason = ' '", "gives no reason"),
        ("[[waiver]]\ncase = '2'\nreason = 'x'", "case = NUMBER and reason"),
        ("waiver = 3", "expected"),
        ("[waiver]\ncase = 2", "expected"),
        ("[other]", "unknown field `other`"),
        ("[[waiver]]\ncase = 2\nreason = 'x'\n[[waiver]]\ncase = 2\nreason = 'y'", "waived twice"),
        ("case =", "Invalid value"),
    ],
)
def test_a_wrong_waiver_says_what_is_wrong(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "waivers.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=says):
        waivers(path)


def test_a_missing_file_of_waivers_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="can't be read"):
        waivers(tmp_path / "none.toml")


async def fails(c: Context) -> None:
    """It fails."""
    raise AssertionError("as it should")


async def passes(c: Context) -> None:
    """It passes."""


def made(body: object) -> Case:
    """A case in the place of number 2, the last of its number."""
    last = [case for case in catalogue() if case.number == 2][-1]
    return Case(**{**{f: getattr(last, f) for f in last.__dataclass_fields__}, "body": body, "gates": ()})


def test_a_waived_case_must_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    for body, outcome, says in ((fails, Outcome.WAIVED, "known (AssertionError"), (passes, Outcome.FAILED, "take the")):
        one = made(body)
        monkeypatch.setattr("switchgear_conformance.runner.catalogue", lambda one=one: (one,))
        with Session.open(harness("memory"), waivers={2: "known"}) as session:
            found = session.run(one)
        assert found.outcome is outcome
        assert says in found.reason


def test_what_is_left_behind_fails_a_case() -> None:
    import asyncio

    async def forever() -> None:
        await asyncio.Event().wait()

    async def leaves(c: Context) -> None:
        """It leaves a task."""
        c.left = asyncio.create_task(forever(), name="left-behind")  # type: ignore[attr-defined]

    async def loses(c: Context) -> None:
        """It loses an error."""
        asyncio.get_running_loop().call_soon(lambda: 1 / 0)
        await asyncio.sleep(0)

    async def hangs(c: Context) -> None:
        """It never ends."""
        await asyncio.Event().wait()

    with Session.open(harness("memory")) as session:
        for body, says in ((leaves, "left-behind"), (loses, "nobody looked at"), (hangs, "did not end within")):
            found = session.run(made(body))
            assert found.outcome is Outcome.FAILED
            assert says in found.reason
