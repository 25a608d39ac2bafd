"""What came of a run, for people (Markdown), for CI (JUnit) and for programs (JSON)."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from .case import Level, Outcome, Tier

FINE = frozenset({Outcome.PASSED, Outcome.REFUSED, Outcome.NOT_APPLICABLE, Outcome.PENDING})
"""Outcomes that leave a tier to be earned."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One case at one level."""

    number: int
    name: str
    level: Level
    part: str = ""
    tier: Tier
    outcome: Outcome
    summary: str = ""
    """What the case holds the transport to."""
    reason: str = ""
    """Why it failed, was refused, waived, not run or not applicable; or what it noticed."""
    detail: str = ""
    """Of a failure: the traceback."""
    seconds: float = 0.0

    @property
    def id(self) -> str:
        return f"{self.number}.{self.level}" + (f".{self.part}" if self.part else "")


@dataclass(frozen=True)
class Standing:
    """Whether a tier is earned."""

    earned: bool
    why: str
    """What it wants, or how many cases earned it."""


@dataclass(kw_only=True)
class Report:
    """A run against one broker."""

    harness: str
    url: str
    """Without secrets."""
    seed: int
    embedded: bool
    emulator: bool
    storage: str
    """When the broker writes to disk."""
    versions: dict[str, str] = field(default_factory=dict[str, str])
    """Of the suite, the transport, its client, the broker."""
    claims: dict[str, Any] = field(default_factory=dict[str, Any])
    """The capabilities that the connected transport declares."""
    whole: list[Tier] = field(default_factory=lambda: list(Tier))
    """The tiers of which every case was run: no other is earned."""
    results: list[Result] = field(default_factory=list[Result])

    @property
    def failed(self) -> list[Result]:
        return [r for r in self.results if r.outcome is Outcome.FAILED]

    @property
    def counts(self) -> Counter[Outcome]:
        return Counter(r.outcome for r in self.results)

    def tiers(self) -> dict[Tier, Standing]:
        return {tier: self._standing(tier, [r for r in self.results if r.tier is tier]) for tier in Tier}

    def _standing(self, tier: Tier, results: list[Result]) -> Standing:
        if tier is Tier.DURABLE and self.emulator:
            return Standing(False, "an emulator proves nothing about the broker's storage")
        if tier is Tier.DURABLE and not self.claims.get("persistent"):
            return Standing(False, "not claimed: the transport does not declare persistent")
        spoilt = [r for r in results if r.outcome not in FINE]
        if spoilt:
            return Standing(False, ", ".join(f"{r.id} {r.outcome}" for r in spoilt))
        passed = sum(r.outcome is Outcome.PASSED for r in results)
        if not passed:
            return Standing(False, "no case applies" if tier in self.whole else "no case was run")
        if tier not in self.whole:
            return Standing(False, "only some cases were run")
        others = Counter(r.outcome for r in results if r.outcome is not Outcome.PASSED)
        return Standing(True, ", ".join([f"{passed} passed", *(f"{n} {outcome}" for outcome, n in others.items())]))


def to_json(report: Report) -> bytes:
    """The whole report; `from_json` reads it again."""
    document = msgspec.to_builtins(report, enc_hook=str)
    document["tiers"] = {tier.value: {"earned": s.earned, "why": s.why} for tier, s in report.tiers().items()}
    return msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n"


def from_json(data: bytes) -> Report:
    """Raises msgspec.ValidationError for anything but a report."""
    return msgspec.json.decode(data, type=Report)


def to_junit(report: Report) -> bytes:
    """JUnit XML: a suite a tier. What does not apply, waits, is waived or is not run is skipped, with its reason."""
    root = ET.Element("testsuites", name=f"switchgear conformance {report.harness}")
    for tier in Tier:
        mine = [r for r in report.results if r.tier is tier]
        skipped = [r for r in mine if r.outcome not in (Outcome.PASSED, Outcome.FAILED, Outcome.REFUSED)]
        suite = ET.SubElement(
            root, "testsuite", name=tier.value, tests=str(len(mine)), skipped=str(len(skipped)), errors="0",
            failures=str(sum(r.outcome is Outcome.FAILED for r in mine)), time=f"{sum(r.seconds for r in mine):.3f}",
        )  # fmt: skip
        properties = ET.SubElement(suite, "properties")
        for name, value in {"seed": report.seed, "url": report.url, **report.versions}.items():
            ET.SubElement(properties, "property", name=name, value=str(value))
        for r in mine:
            case = ET.SubElement(
                suite,
                "testcase",
                classname=f"{report.harness}.{r.level}",
                name=f"{r.id} {r.name}",
                time=f"{r.seconds:.3f}",
            )
            if r.outcome is Outcome.FAILED:
                ET.SubElement(case, "failure", message=_xml(r.reason)).text = _xml(r.detail or r.reason)
            elif r in skipped:
                ET.SubElement(case, "skipped", message=_xml(f"{r.outcome}: {r.reason}"))
    ET.indent(root)
    document: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return document


def _xml(text: str) -> str:
    """XML 1.0 has no control characters."""
    return "".join(c if c >= " " or c in "\n\t" else "\ufffd" for c in text)


def to_markdown(report: Report) -> str:
    """For people: tiers first, then what is wrong, then every case."""
    kind = "embedded" if report.embedded else "an emulator" if report.emulator else "a real broker"
    lines = [
        f"# Conformance of {report.harness}", "",
        f"`{report.url}` ({kind}); seed {report.seed}; storage: {report.storage or 'not said'}.", "",
        *table(("of", "version"), report.versions.items()), "",
        *table(("tier", "earned", "why"), ((t, "yes" if s.earned else "no", s.why) for t, s in report.tiers().items())),
        "", "## Cases", "",
        *table(
            ("case", "name", "level", "outcome", "seconds", "note"),
            ((r.id, r.name, r.level, r.outcome.value, f"{r.seconds:.2f}", r.reason) for r in report.results),
        ),
        "", "## Claims", "",
        *table(("capability", "declared"), report.claims.items()), "",
    ]  # fmt: skip
    return "\n".join(lines)


def table(header: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> list[str]:
    """Lines of a Markdown table."""
    cells = [[" ".join(str(cell).split()).replace("|", "\\|") for cell in row] for row in [header, *rows]]
    return [f"| {' | '.join(row)} |" for row in [cells[0], ["---"] * len(header), *cells[1:]]]
