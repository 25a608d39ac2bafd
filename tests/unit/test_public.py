"""What a user imports, and what that costs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import switchgear

LIGHT = """
import sys
before = set(sys.modules)
import switchgear
new = set(sys.modules) - before
heavy = {"switchgear.core", "switchgear.consumer", "switchgear.pull", "switchgear.sync", "switchgear.replies",
         "switchgear.handlers", "switchgear.testing", "importlib.metadata", "urllib.parse", "difflib", "tomllib",
         "concurrent.futures.process", "multiprocessing", "sqlite3", "pydantic", "redis", "typer", "rich"}
print(sorted(new & heavy))
print(sorted(m for m in new if m.startswith("switchgear_")))
"""


def test_every_public_name_is_there_and_nothing_else() -> None:
    for name in switchgear.__all__:
        assert getattr(switchgear, name) is not None
    assert sorted(switchgear.__all__) == switchgear.__all__
    public = {name for name in vars(switchgear) if not name.startswith("_") and not _is_module(name)}
    assert public | {"Consumer"} == set(switchgear.__all__)
    assert not hasattr(switchgear, "nonsense")


def _is_module(name: str) -> bool:
    return isinstance(getattr(switchgear, name), type(os))


def test_importing_brings_nothing_along_that_is_not_needed() -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", LIGHT], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n[]\n"
    assert done.stderr == ""


def test_it_is_quiet_by_default(tmp_path: Path) -> None:
    program = """
import asyncio
from switchgear import Bus, Reject, Topic
bus = Bus("memory://")
@bus.subscribe("orders", group="g", dead_letter=False)
async def handle(order: dict) -> None:
    handled.set()
    raise Reject("no")
async def main():
    global handled
    handled = asyncio.Event()
    async with bus.serving():
        await bus.publish("orders", {})
        await handled.wait()
asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert (done.stdout, done.stderr) == ("", "")
