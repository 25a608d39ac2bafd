"""One side of one workload in a process of its own: `python -m tests.bench.child WORKLOAD SIDE URL FOLDER SCALE`."""

from __future__ import annotations

import asyncio
import json
import resource
import sys
from pathlib import Path

from .registry import WORKLOADS
from .workload import Sample, Setting

PREPARE = "(prepare)"


def main(workload: str, side: str, url: str, folder: str, scale: str) -> None:
    chosen = WORKLOADS[workload]
    run = chosen.prepare if side == PREPARE else chosen.sides[side]
    assert run is not None
    setting = Setting(url=url, folder=Path(folder), scale=float(scale))

    async def measured() -> Sample:
        return await run(setting)

    sample = {"rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, **asyncio.run(measured())}
    sample["rss"] = max(sample["rss"], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    print(json.dumps(sample))


if __name__ == "__main__":
    main(*sys.argv[1:])
