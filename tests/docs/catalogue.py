"""The table of `docs/reference/conformance.md`: `python -m tests.docs.catalogue` writes it anew."""

from __future__ import annotations

from switchgear_conformance.case import PENDING, tier
from switchgear_conformance.catalogue import NUMBERS, catalogue
from switchgear_conformance.report import table

from .pages import DOCS, section

PAGE = DOCS / "reference" / "conformance.md"
HEADING = "## The catalogue"


def lines() -> list[str]:
    """A row a number: of several cases the gates of all, and what the first holds a transport to."""
    return table(("number", "name", "tier", "levels", "gates", "promise"), (row(n) for n in range(1, NUMBERS + 1)))


def row(number: int) -> tuple[object, ...]:
    cases = [case for case in catalogue() if case.number == number]
    of = tier(number).value.partition(" ")[0]
    if not cases:
        name, waits = PENDING[number]
        return number, f"`{name}`", of, "pending", "", f"Waits for {waits}."
    gates = sorted({gate for case in cases for gate in case.gates})
    levels = dict.fromkeys(case.level for case in cases)
    return number, f"`{cases[0].name}`", of, ", ".join(levels), " ".join(f"`{g}`" for g in gates), cases[0].summary


def written(text: str) -> list[str]:
    """The table as the page has it."""
    return [line for line in section(text, HEADING).splitlines() if line.startswith("|")]


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(text.replace("\n".join(written(text)), "\n".join(lines())), encoding="utf-8")


if __name__ == "__main__":
    main()
