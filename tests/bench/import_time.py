"""What `import switchgear` costs a command-line program: time and memory of fresh processes."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

from .workload import OURS, Requirement, Sample, Setting, Side, Workload

PROCESSES = 20
MEMORY = "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"


def importing(statement: str) -> Side:
    """A side that starts processes which run the statement and end; the median of their whole lives."""

    async def side(setting: Setting) -> Sample:
        # compiled modules are kept for every side, whatever the environment says and however it is installed
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = str(setting.folder)

        def run(code: str) -> str:
            command = [sys.executable, "-c", code]
            return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout

        rss = int(run(f"{statement}; {MEMORY}")) * 1024
        took: list[float] = []
        for _ in range(PROCESSES):
            began = time.perf_counter()
            run(statement)
            took.append(time.perf_counter() - began)
        return {"ms": statistics.median(took) * 1000, "rss": rss}

    return side


WORKLOAD = Workload(
    name="import",
    about="a process that imports and ends",
    metric="ms",
    unit="ms",
    sides={
        "dependencies": importing("import asyncio, msgspec, pluggy"),
        OURS: importing("import switchgear"),
        "faststream": importing("import faststream.redis"),
    },
    requirements=[Requirement("ms", over="dependencies", at_most=1.25)],
)
KAFKA = Workload(
    name="kafka-import",
    about="a process that imports and ends; the transport imports its client when a bus connects",
    metric="ms",
    unit="ms",
    sides={
        "aiokafka": importing("import aiokafka"),
        OURS: importing("import switchgear, switchgear_kafka"),
        "ours + aiokafka": importing("import switchgear, switchgear_kafka.aiokafka_engine"),
        "faststream": importing("import faststream.kafka"),
    },
    requirements=[Requirement("ms", over="aiokafka", at_most=1.25)],
)
