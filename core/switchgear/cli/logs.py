"""Log lines on stderr, unless the program has set up logging itself."""

from __future__ import annotations

import logging


def log_to_stderr(level: str, worker: str = "") -> None:
    """From this level on; of several workers each line says whose it is."""
    mark = f" [{worker}]" if worker else ""
    logging.basicConfig(format=f"%(asctime)s %(levelname)-7s{mark} %(name)s: %(message)s")
    logging.getLogger("switchgear").setLevel(level.upper())
