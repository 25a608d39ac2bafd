"""The worked transport of the documentation where its author would have it: in an environment of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.packaging, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
PROJECT = ROOT / "docs" / "how-to" / "directory-transport"
FULL = os.environ.get("SWITCHGEAR_FAULTS_FULL") == "1"
TRANSPORT = "switchgear_directory/transport.py"


def run(*command: str | Path, cwd: Path, code: int = 0) -> str:
    """Run a command that ends with this code; what it printed."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, cwd=cwd)
    said = f"{done.stdout}\n{done.stderr}"
    assert done.returncode == code, f"{' '.join(map(str, command))} ended with {done.returncode}\n{said}"
    assert "Traceback" not in done.stderr, said
    return said


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with Switchgear's wheel and the author's project, and no file of this tree."""
    folder = tmp_path_factory.mktemp("third-party")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder / "dist", ROOT, cwd=folder)
    (wheel,) = (folder / "dist").glob("*.whl")
    project = shutil.copytree(PROJECT, folder / "directory-transport", ignore=shutil.ignore_patterns("__pycache__"))
    run(sys.executable, "-m", "virtualenv", "--quiet", "--no-periodic-update", folder / "venv", cwd=folder)
    python = folder / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", f"{wheel}[conformance]", project, cwd=folder)
    return python


def installed(python: Path) -> Path:
    """The transport's module in that environment."""
    (module,) = python.parents[1].glob(f"lib/*/site-packages/{TRANSPORT}")
    return module


def conformance(python: Path, folder: Path, *options: str, code: int = 0) -> dict[str, Any]:
    """`switchgear conformance` there; its report."""
    command = [python.with_name("switchgear"), "conformance", f"directory://{folder}/broker", "--harness", "directory"]
    run(*command, *options, "--json", "report.json", cwd=folder, code=code)
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return report


def test_what_is_installed_is_what_is_documented(python: Path) -> None:
    assert installed(python).read_bytes() == (PROJECT / "src" / TRANSPORT).read_bytes()


def test_it_earns_the_core(python: Path, tmp_path: Path) -> None:
    report = conformance(python, tmp_path, "--tier", "core")
    assert report["tiers"]["Core"]["earned"], report["tiers"]
    outcomes = {r["outcome"] for r in report["results"]}
    assert outcomes == {"passed", "refused", "not applicable"}
    assert report["versions"]["transport"].startswith("switchgear_directory")


@pytest.mark.slow
@pytest.mark.skipif(not FULL, reason="takes minutes: SWITCHGEAR_FAULTS_FULL=1 runs all tiers, not the core alone")
def test_it_earns_every_tier(python: Path, tmp_path: Path) -> None:
    report = conformance(python, tmp_path)
    assert [tier for tier, standing in report["tiers"].items() if not standing["earned"]] == []


def test_its_cases_run_under_pytest(python: Path, tmp_path: Path) -> None:
    said = run(python, "-m", "pytest", "--switchgear", "directory", "-q", "-k", "bytes_roundtrip", cwd=tmp_path)
    assert "2 passed" in said


def test_a_workload_loses_nothing(python: Path, tmp_path: Path) -> None:
    command = [python.with_name("switchgear"), "verify", f"directory://{tmp_path}/broker", "--for", "2", "--lease", "1"]
    said = run(*command, "--order", "none", "--rate", "50", "--faults", "kill", "--every", "1", cwd=tmp_path)
    assert "verdict: good" in said
    said = run(*command, "--order", "key", cwd=tmp_path, code=2)
    assert "can't keep key order" in said


@pytest.mark.parametrize(
    ("right", "wrong", "case"),
    [
        ("        taken = native(one.delivery)\n", "        return None\n", 11),
        ("moved(taken.file, one.seconds, failed=1)", "moved(taken.file, one.seconds)", 36),
        ("instant(message.due or now)", "instant(now)", 46),
        ("for file in islice(in_turn, limit):", "for file in in_turn:", 57),
        ("file.rename(moved(file, self.lease, self.owner))", "file", 30),
    ],
    ids=["acknowledges nothing", "counts no failures", "ignores delays", "ignores the limit", "takes without renaming"],
)
def test_a_broken_edit_fails(python: Path, tmp_path: Path, right: str, wrong: str, case: int) -> None:
    module = installed(python)
    source = module.read_text()
    assert source.count(right) == 1
    try:
        module.write_text(source.replace(right, wrong))
        report = conformance(python, tmp_path, "--case", str(case), code=1)
    finally:
        module.write_text(source)
    assert "failed" in {r["outcome"] for r in report["results"]}
