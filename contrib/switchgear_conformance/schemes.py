"""The kit's own URL schemes: `mutant`, `simulated` and `weak`.

They are not among Switchgear's entry points, where users would see them: whoever needs them puts them on the import
path for a while, so that the core and child processes find them as they find any other plugin.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from switchgear import plugins

METADATA = "Metadata-Version: 2.1\nName: switchgear-conformance-schemes\nVersion: 0\n"
ENTRIES = """\
[switchgear.transports]
mutant = switchgear_conformance.mutants.plugin
simulated = switchgear_conformance.simulated
weak = switchgear_conformance.weakened
"""


@contextmanager
def installed(folder: Path) -> Generator[dict[str, str]]:
    """Make the schemes known to this process and to those that it starts meanwhile, by files in this folder.

    Yields what a process needs in its environment for it.
    """
    info = folder / "switchgear_conformance_schemes-0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(METADATA)
    (info / "entry_points.txt").write_text(ENTRIES)
    path = str(folder)
    sys.path.insert(0, path)
    _inherit([path, *_inherited()])
    plugins._transports.cache_clear()  # pyright: ignore[reportPrivateUsage]
    try:
        yield {"PYTHONPATH": os.environ["PYTHONPATH"]}
    finally:
        sys.path.remove(path)
        inherited = _inherited()
        inherited.remove(path)
        _inherit(inherited)
        plugins._transports.cache_clear()  # pyright: ignore[reportPrivateUsage]


def _inherited() -> list[str]:
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


def _inherit(paths: list[str]) -> None:
    if paths:
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    else:
        os.environ.pop("PYTHONPATH", None)
