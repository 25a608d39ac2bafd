"""`switchgear conformance` and `pytest --switchgear`: what is asked, what is written, and what can't be."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from typer.testing import CliRunner

from switchgear.cli.app import app
from switchgear_conformance.report import from_json

runner = CliRunner()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "name a broker by its URL"),
        (["nope://x"], "no transport serves the scheme nope://"),
        (["memory"], "malformed broker URL"),
        (["redis://127.0.0.1:1"], "cannot be reached"),
        (["memory://", "--harness", "nobody"], "no harness is named 'nobody'; installed: "),
        (["memory://", "--case", "95"], "there is no case 95: the catalogue has 1 to 94"),
        (["memory://", "--tier", "gold"], "there is no tier 'gold'"),
        (["memory://", "--waivers", "/nowhere/w.toml"], "can't be read"),
        (["memory://", "--json", "/nowhere/r.json"], "No such file or directory"),
    ],
)
def test_what_cannot_be_is_told_with_exit_code_2(arguments: list[str], says: str) -> None:
    done = runner.invoke(app, ["conformance", *arguments])
    assert done.exit_code == 2, done.output
    assert says in done.output
    assert "Traceback" not in done.output


def test_reports_are_written(tmp_path: Path) -> None:
    files = {kind: tmp_path / f"report.{kind}" for kind in ("json", "junit", "markdown")}
    options = [word for kind, path in files.items() for word in (f"--{kind}", str(path))]
    done = runner.invoke(app, ["conformance", "memory://", "--case", "2", "--case", "49", "--seed", "5", *options])
    assert done.exit_code == 0, done.output
    assert "seed 5" in done.output
    found = from_json(files["json"].read_bytes())
    assert {r.number: r.outcome.value for r in found.results} == {2: "passed", 49: "pending"}
    assert found.seed == 5
    assert set(found.versions) == {"suite", "transport", "broker"}
    assert ET.parse(files["junit"]).getroot().tag == "testsuites"
    assert files["markdown"].read_text().startswith("# Conformance of memory")


def test_under_pytest(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--switchgear", "memory", "-k", "bytes_roundtrip or priority", "-q", "-rs",
         "-p", "no:cacheprovider", "--switchgear-reports", str(tmp_path)],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pending: waits for priorities=" in done.stdout
    assert {r.number for r in from_json((tmp_path / "memory.json").read_bytes()).results} == {2, 49}


def test_pytest_names_an_unknown_harness(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--switchgear", "nobody", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode != 0
    assert "no harness is named 'nobody'" in done.stdout + done.stderr
