"""`docs/reference/guarantees.md`, generated from what the catalogue found.

    python -m tests.conformance.guarantees write REPORTS    # keep the reports of a run, and write the page
    python -m tests.conformance.guarantees check REPORTS    # 1 where the page does not say what the run found

REPORTS is the folder that `pytest --switchgear NAME --switchgear-reports REPORTS` wrote. Kept are the claims and the
outcomes; seeds and times are of one run, and versions are shown and not compared.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec

from switchgear_conformance.case import Tier
from switchgear_conformance.catalogue import catalogue
from switchgear_conformance.report import Report, from_json, table

DOCS = Path(__file__).parents[2] / "docs" / "reference"
PAGE, KEPT = DOCS / "guarantees.md", DOCS / "conformance"
MARKS = {"passed": "✔", "refused": "refused", "not applicable": "–", "pending": "pending", "waived": "waived"}
TRANSPORTS = ("memory", "sqlite", "redis", "kafka")
"""In the order of the page."""

HEAD = """\
# Guarantees

What each transport was found to guarantee: the outcome of every case of the conformance catalogue. This page is
generated from the reports in [`conformance/`](conformance/); CI runs the catalogue and fails where the page says
anything else. How to run it yourself: [write a transport](../how-to/write-a-transport.md).

✔ passed · – not applicable: the transport does not declare what the case is about, or has no server to which it could
be done · *refused*: the bus refuses the guarantee at start, with a reason, and the case saw it refuse · *pending*: the
case waits for a feature. A case may hold a transport to its number on the bare driver and through `Bus`, and in parts;
the mark is the weakest of them.
"""


def kept(report: Report) -> dict[str, Any]:
    """What is kept of a report."""
    return {
        "harness": report.harness,
        "kind": "embedded" if report.embedded else "emulator" if report.emulator else "real broker",
        "storage": report.storage,
        "versions": report.versions,
        "tiers": {tier.value: standing.earned for tier, standing in report.tiers().items()},
        "claims": report.claims,
        "cases": {r.id: MARKS.get(r.outcome.value, r.outcome.value) for r in report.results},
    }


def stable(record: dict[str, Any]) -> dict[str, Any]:
    """What must not differ between two runs."""
    return {name: value for name, value in record.items() if name != "versions"}


def render(records: list[dict[str, Any]]) -> str:
    """The page."""
    names = [record["harness"] for record in records]
    lines = [HEAD, "## Tiers", ""]
    lines += table(("", *names), [
        ("broker", *(f"{r['kind']}, {r['versions']['broker']}" for r in records)),
        ("storage", *(r["storage"] for r in records)),
        *((tier.value, *("earned" if r["tiers"][tier.value] else "no" for r in records)) for tier in Tier),
    ])  # fmt: skip
    lines += ["", "Durable means: what was acknowledged survives the end of any process, the broker's too, under the",
              "storage settings above. Loss of power is another matter.", "", "## Cases", ""]  # fmt: skip
    lines += table(("case", "", *names), [
        (number, what, *(mark(record, number) for record in records)) for number, what in numbers(records)
    ])  # fmt: skip
    lines += ["", "## Declared capabilities", ""]
    claims = list(dict.fromkeys(name for record in records for name in record["claims"]))
    lines += table(("", *names), [(f"`{name}`", *(plain(r["claims"].get(name)) for r in records)) for name in claims])
    return "\n".join(lines) + "\n"


def numbers(records: list[dict[str, Any]]) -> list[tuple[int, str]]:
    """Number and summary of each case, in order."""
    from switchgear_conformance.case import PENDING

    summaries = {number: f"{name.replace('_', ' ')} (waits for {waits})" for number, (name, waits) in PENDING.items()}
    for case in catalogue():
        if case.number not in summaries or (case.level == "bus" and not case.part):
            summaries[case.number] = case.summary.rstrip(".")
    found = {int(id.partition(".")[0]) for record in records for id in record["cases"]}
    return [(number, summaries.get(number, "")) for number in sorted(found)]


def mark(record: dict[str, Any], number: int) -> str:
    """The weakest outcome of a number, but for what does not apply."""
    found = {m for id, m in record["cases"].items() if int(id.partition(".")[0]) == number}
    strong = ["✔", "refused", "pending", "waived"]
    rest = found - {"–"}
    return next((m for m in rest if m not in strong), max(rest, key=strong.index)) if rest else "–"


def plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {plain(v)}" for k, v in value.items())  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return (
        {True: "yes", False: "no", None: "–"}.get(value, str(value)) if isinstance(value, bool | None) else str(value)
    )


def load(folder: Path) -> list[dict[str, Any]]:
    """The kept records, in the order of the page."""
    return [msgspec.json.decode((folder / f"{name}.json").read_bytes()) for name in TRANSPORTS]


def main(mode: str, reports: Path) -> int:
    fresh = [kept(from_json((reports / f"{name}.json").read_bytes())) for name in TRANSPORTS]
    if mode == "write":
        KEPT.mkdir(exist_ok=True)
        for record in fresh:
            text = msgspec.json.format(msgspec.json.encode(record), indent=1)
            (KEPT / f"{record['harness']}.json").write_bytes(text + b"\n")
        PAGE.write_text(render(fresh), encoding="utf-8")
        return 0
    stale = differences(load(KEPT), fresh)
    if PAGE.read_text(encoding="utf-8") != render(load(KEPT)):
        stale.append("docs/reference/guarantees.md was not generated from docs/reference/conformance/")
    for line in stale:
        print(line, file=sys.stderr)
    if stale:
        print("write it anew: python -m tests.conformance.guarantees write REPORTS", file=sys.stderr)
    return 1 if stale else 0


def differences(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[str]:
    """What a run found that is not what is kept."""
    found: list[str] = []
    for before, now in zip(map(stable, old), map(stable, new), strict=True):
        for name in now:
            if isinstance(now[name], dict):
                for key in {**before[name], **now[name]}:
                    was, is_ = before[name].get(key), now[name].get(key)
                    if was != is_:
                        found.append(f"{now['harness']}: {name} {key}: {was!r} on the page, {is_!r} in this run")
            elif before[name] != now[name]:
                found.append(f"{now['harness']}: {name}: {before[name]!r} on the page, {now[name]!r} in this run")
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
