"""The command line, called within this process or as one of its own."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from switchgear.cli.app import app

Run = Callable[..., Result]
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory, and a SQLite file in it as the broker. Modules `sg_…` in it are for one test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SWITCHGEAR_URL", "sqlite:///broker.db")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("sg_")]:
        del sys.modules[name]


@pytest.fixture
def sg() -> Run:
    """Run a command in this process: `sg("topics", "--json")`."""

    def run(*arguments: str) -> Result:
        result = CliRunner().invoke(app, arguments, prog_name="switchgear")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a command as a process of its own, which ends with the test at the latest."""
    started: list[subprocess.Popen[str]] = []

    def popen(*arguments: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "switchgear.cli", *arguments],
            stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        started.append(process)
        return process

    yield popen
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


async def beside(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a process of its own while this one goes on with what it serves."""

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "switchgear.cli", *arguments],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip

    return await asyncio.to_thread(run)
