"""Brokers that come as wheels, installed into the user's cache rather than into the environment under test."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from switchgear_conformance.harness import NotRun


def cache() -> Path:
    """`$XDG_CACHE_HOME/switchgear-tests`, by default below `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "switchgear-tests"


def cached(name: str, fetch: Callable[[Path], None]) -> Path:
    """The folder of this name in the cache; where there is none yet, what `fetch` makes at the path it is given."""
    folder = cache() / name
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as made:
        target = Path(made) / "fetched"
        fetch(target)
        try:
            target.rename(folder)  # whole or not at all, also with two test runs at once
        except OSError:
            if not folder.is_dir():
                raise
    return folder


def wheel(requirement: str) -> Path:
    """The folder that holds an exact `name==version`; installed at first use. Raises NotRun where pip can't get it."""

    def install(target: Path) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), requirement],
            capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode != 0:
            raise NotRun(f"pip could not install {requirement}: {done.stderr.strip()[-500:]}")

    return cached(requirement.replace("==", "-"), install)
