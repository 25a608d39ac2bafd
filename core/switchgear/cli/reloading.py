"""Noticing that source files changed, by polling: it needs nothing installed and works on every file system."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

INTERVAL = 0.5  # seconds
SKIPPED = frozenset({"__pycache__", "node_modules", "site-packages", "venv", "build", "dist"})


async def change(root: Path) -> None:
    """Return when a *.py or *.toml file below `root` was written, added or removed, and no further write follows."""
    seen = await asyncio.to_thread(snapshot, root)
    while (now := await _later(root)) == seen:
        pass
    while (again := await _later(root)) != now:  # an editor or a checkout may still be writing
        now = again


async def _later(root: Path) -> dict[str, int]:
    await asyncio.sleep(INTERVAL)
    return await asyncio.to_thread(snapshot, root)


def snapshot(root: Path) -> dict[str, int]:
    """Source files and when each was last written, in nanoseconds."""
    found: dict[str, int] = {}
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in SKIPPED and not name.startswith(".")]
        for name in files:
            if name.endswith((".py", ".toml")):
                path = os.path.join(folder, name)  # noqa: PTH118  # thousands of times: a Path costs ten times as much
                try:
                    found[path] = os.stat(path).st_mtime_ns  # noqa: PTH116
                except OSError:
                    continue  # it went while we looked
    return found
