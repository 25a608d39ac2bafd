"""The seeded bugs: every case is named by one, and the page says what they name."""

from __future__ import annotations

from pathlib import Path

from switchgear_conformance.catalogue import catalogue
from switchgear_conformance.mutants import bugs
from switchgear_conformance.mutants.table import Row, to_markdown, unproven

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "mutants.md"


def test_every_bug_names_cases_that_there_are_and_says_what_is_wrong() -> None:
    ids = {case.id for case in catalogue()}
    assert {name: bug.fails - ids for name, bug in bugs().items() if not bug.fails or bug.fails - ids} == {}
    assert [name for name, bug in bugs().items() if not (bug.__doc__ or "").partition("\n")[0].endswith(".")] == []


def test_every_case_is_named_by_a_bug() -> None:
    assert unproven([]) == []
    assert sum(bug.over == "memory" for bug in bugs().values()) >= 40


def test_a_case_that_a_bug_does_not_fail_is_told() -> None:
    row = Row("body-as-text", {"1.driver": "it should not"}, frozenset({"1.driver", "2.driver"}))
    assert row.wrong[0] == "body-as-text: fails 1.driver, which it does not name: it should not"
    assert "body-as-text: names 2.driver, which it passes" in row.wrong


def test_the_page_is_what_they_name() -> None:
    rows = [Row(name, dict.fromkeys(bug.fails, ""), frozenset()) for name, bug in bugs().items()]
    assert PAGE.read_text(encoding="utf-8") == to_markdown(rows), (
        "write it anew: python -m switchgear_conformance.mutants --markdown docs/reference/mutants.md"
    )
