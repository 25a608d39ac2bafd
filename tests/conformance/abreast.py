"""Run the catalogue on several harnesses at the same time: `python -m tests.conformance.abreast REPORTS NAME …`.

Each has a pytest of its own. What they print is shown when all have ended; the exit code is that of the first that
failed. A case on a server mostly waits, so that two harnesses take little longer than one.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path


def main(reports: Path, names: list[str]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        said = {name: Path(folder) / name for name in names}
        running: dict[str, subprocess.Popen[bytes]] = {}
        try:
            for name in names:
                command = [sys.executable, "-m", "pytest", "--switchgear", name, "--switchgear-reports", str(reports)]
                with said[name].open("wb") as file:
                    running[name] = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
            codes = [running[name].wait() for name in names]
        finally:
            for one in running.values():
                one.kill()
                one.wait()
        for name in names:
            print(f"{name}:\n{said[name].read_text(errors='replace')}", flush=True)
    return next((code for code in codes if code), 0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
