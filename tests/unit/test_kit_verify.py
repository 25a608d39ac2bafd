"""`switchgear verify`: what a history proves, and what it takes to begin."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from switchgear.cli.app import app
from switchgear_conformance.verify.history import Journal
from switchgear_conformance.verify.oracle import Oracle
from switchgear_conformance.verify.verdict import Verdict

runner = CliRunner()


def history(folder: Path, *events: tuple[str, str], sums: dict[int, int] | None = None) -> Oracle:
    """One file: the events in order; `sums` gives the n-th event another checksum."""
    journal = Journal(folder / "p0.jsonl")
    for n, (what, id) in enumerate(events):
        journal.write(what, id, c=(sums or {}).get(n, 7))
    journal.close()
    return Oracle(folder).look()


def judged(folder: Path, *events: tuple[str, str], **more: dict[int, int]) -> Verdict:
    return history(folder, *events, **more).verdict(ordered=True)


STORED = [("attempt", "k/1"), ("stored", "k/1"), ("attempt", "k/2"), ("stored", "k/2")]


def test_all_handled_in_order_is_good(tmp_path: Path) -> None:
    verdict = judged(tmp_path, *STORED, ("end", "k/1"), ("end", "k/2"), ("end", "k/1"))
    assert verdict.good
    assert (verdict.stored, verdict.handled, verdict.duplicates) == (2, 2, 1)


def test_what_was_stored_and_never_handled_is_lost(tmp_path: Path) -> None:
    verdict = judged(tmp_path, *STORED, ("end", "k/2"))
    assert not verdict.good
    assert verdict.lost == ["k/1"]


def test_what_nobody_published_is_unexpected(tmp_path: Path) -> None:
    verdict = judged(tmp_path, *STORED, ("end", "k/1"), ("end", "k/2"), ("end", "x/9"))
    assert not verdict.good
    assert verdict.unexpected == ["x/9"]


def test_other_bytes_the_second_time_are_corrupt(tmp_path: Path) -> None:
    verdict = judged(tmp_path, *STORED, ("end", "k/1"), ("end", "k/2"), ("end", "k/1"), sums={6: 8})
    assert not verdict.good
    assert verdict.corrupt == ["k/1"]


def test_a_paused_process_that_repeats_what_another_did_before_is_in_order(tmp_path: Path) -> None:
    """Its file may be read first."""
    history(tmp_path, *STORED)
    ids = ["k/1", "k/2", "k/1"]
    for name, at in (("c12", [2]), ("c8", [0, 1])):
        lines = [f'{{"e":"end","t":{n},"p":1,"id":"{ids[n]}","c":7}}\n' for n in at]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    verdict = Oracle(tmp_path).look().verdict(ordered=True)
    assert verdict.disorder == []
    assert verdict.duplicates == 1


def test_first_occurrences_tell_the_order(tmp_path: Path) -> None:
    verdict = judged(tmp_path, *STORED, ("end", "k/2"), ("end", "k/1"))
    assert not verdict.good
    assert verdict.disorder == [("k/2", "k/1")]
    assert Oracle(tmp_path).look().verdict(ordered=False).good


def test_what_was_not_confirmed_may_come_late_or_never(tmp_path: Path) -> None:
    unsure = [("attempt", "k/0"), ("unsure", "k/0"), ("attempt", "k/3")]
    verdict = judged(tmp_path, *unsure, *STORED, ("end", "k/1"), ("end", "k/2"), ("end", "k/0"))
    assert verdict.good
    assert verdict.unsure == 2


def test_nothing_stored_proves_nothing(tmp_path: Path) -> None:
    assert not judged(tmp_path, ("attempt", "k/1"), ("failed", "k/1")).good


def test_an_older_fence_after_a_newer_one_is_an_overlap(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "c.jsonl")
    for fence in (1, 2, 1, 2):
        journal.write("begin", "k/1", f=fence)
    journal.close()
    assert Oracle(tmp_path).look().verdict(ordered=True).overlaps == 1


def test_a_line_that_is_being_written_waits(tmp_path: Path) -> None:
    oracle = history(tmp_path, ("attempt", "k/1"))
    path = tmp_path / "p0.jsonl"
    line = json.dumps({"e": "stored", "t": 1.0, "p": os.getpid(), "id": "k/1"})
    path.write_text(path.read_text() + line[:9])
    assert not oracle.look().stored
    path.write_text(path.read_text() + line[9:] + "\n")
    assert oracle.look().stored == {"k/1"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "name a broker by its URL"),
        (["nope://x"], "no transport serves the scheme nope://"),
        (["memory://", "--faults", "kill"], "lives in one process"),
        (["sqlite:///{}/a.db", "--faults", "broker"], "needs a harness"),
        (["sqlite:///{}/a.db", "--faults", "typhoon"], "there is no fault 'typhoon'"),
        (["memory://", "--order", "odd"], "expected none, key or total"),
        (["--check", "{}"], "holds no history"),
        (["--harness", "nobody"], "no harness is named 'nobody'"),
        (["redis://127.0.0.1:1"], "cannot be reached"),
    ],
)
def test_what_cannot_be_begins_nothing(arguments: list[str], says: str, tmp_path: Path) -> None:
    done = runner.invoke(app, ["verify", *(a.replace("{}", str(tmp_path)) for a in arguments)])
    assert done.exit_code == 2, done.output
    assert says in done.output


def test_memory_is_verified_in_this_process_and_its_history_again(tmp_path: Path) -> None:
    done = runner.invoke(app, ["verify", "memory://", "--for", "0.5", "--history", str(tmp_path / "h")])
    assert done.exit_code == 0, done.output
    assert "verdict: good" in done.output
    again = runner.invoke(app, ["verify", "--check", str(tmp_path / "h"), "--json", str(tmp_path / "v.json")])
    assert again.exit_code == 0, again.output
    assert json.loads((tmp_path / "v.json").read_text())["lost"] == []
    (tmp_path / "h" / "c0.jsonl").unlink()
    assert runner.invoke(app, ["verify", "--check", str(tmp_path / "h")]).exit_code == 1


def test_all_faults_are_those_that_the_harness_can_do(tmp_path: Path) -> None:
    options = ["--harness", "sqlite", "--for", "0.5", "--publishers", "1", "--faults", "all", "--every", "0.4"]
    result = runner.invoke(app, ["verify", *options])
    assert "faults: kill, leave, join, pause, publisher\n" in result.output
    assert result.exit_code == 0, result.output
