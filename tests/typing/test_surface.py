"""mypy and pyright, both strict, agree with the marks in `surface.py`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SURFACE = Path(__file__).with_name("surface.py")


def errors_of_mypy() -> dict[int, str]:
    done = checker("mypy", "--no-error-summary", "--show-absolute-path")
    found = re.findall(r"^(\S+?):(\d+): error: (.*)$", done, re.MULTILINE)
    assert found, f"mypy did not run:\n{done}"
    return {int(line): text for file, line, text in found if Path(file) == SURFACE}


def errors_of_pyright() -> dict[int, str]:
    done = checker("pyright", "--pythonpath", sys.executable, "--outputjson")
    found = json.loads(done)["generalDiagnostics"]
    return {d["range"]["start"]["line"] + 1: d["message"] for d in found if d["severity"] == "error"}


def checker(name: str, *options: str) -> str:
    """What a checker prints about the file, under the project's own configuration."""
    pytest.importorskip(name, reason=f"{name} is not installed: pip install --group types")
    command = [sys.executable, "-m", name, *options, str(SURFACE)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout


@pytest.mark.parametrize("errors", [errors_of_mypy, errors_of_pyright])
def test_exactly_the_marked_lines_are_errors(errors: Callable[[], dict[int, str]]) -> None:
    lines = SURFACE.read_text().splitlines()
    wanted = {number for number, line in enumerate(lines, 1) if line.endswith("# E")}
    assert len(wanted) > 20
    found = errors()
    assert [f"{n}: {lines[n - 1].strip()}" for n in sorted(wanted - found.keys())] == []
    assert [f"{n}: {found[n]}" for n in sorted(found.keys() - wanted)] == []
