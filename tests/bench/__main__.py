"""`python -m tests.bench`: run the workloads, print what came out, and fail where a requirement is not met."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from pathlib import Path

from .registry import WORKLOADS
from .report import as_json, tables, verdicts
from .runner import SideFailed, measure

MET, NOT_MET, FAILED = 0, 1, 2


def main(arguments: list[str] | None = None) -> int:
    """0: every requirement is met; 1: one is not; 2: a measurement failed."""
    options = parse(arguments)
    for package in ["faststream", *(["matplotlib"] if options.plot else [])]:
        if importlib.util.find_spec(package) is None:
            print(f"{package} is not installed: pip install --group bench (pip 25.1), or tox -e bench", file=sys.stderr)
            return FAILED
    chosen = [w for name, w in WORKLOADS.items() if not options.only or any(name.startswith(o) for o in options.only)]
    if (load := os.getloadavg()[0]) > (cpus := os.cpu_count() or 1) / 2:
        print(f"this machine is busy (load {load:.1f} on {cpus} CPUs): the figures will say little", file=sys.stderr)
    try:
        results = [
            measure(w, options.rounds or w.rounds, options.scale, lambda line: print(line, flush=True)) for w in chosen
        ]
    except SideFailed as error:
        print(error, file=sys.stderr)
        return FAILED
    judged = verdicts(results)
    print(*tables(results), sep="\n")
    print("\nrequired (ours / theirs, median of same-round ratios)")
    print(*judged, sep="\n")
    if options.json:
        options.json.write_text(json.dumps(as_json(results, judged), indent=1) + "\n")
    if options.plot:
        from .plot import draw

        draw(results, options.plot)
    return MET if all(verdict.met for verdict in judged) else NOT_MET


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--rounds", type=positive, help="rounds of every workload (by default its own number)")
    parser.add_argument(
        "--only", type=names, metavar="NAME,…", help=f"names or their beginnings: {', '.join(WORKLOADS)}"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the number of messages (1.0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them (png, svg, pdf)")
    return parser.parse_args(arguments)


def positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


def names(text: str) -> list[str]:
    chosen = text.split(",")
    for name in chosen:
        if not any(known.startswith(name) for known in WORKLOADS):
            raise argparse.ArgumentTypeError(f"no workload is called {name!r}; there are {', '.join(WORKLOADS)}")
    return chosen


if __name__ == "__main__":
    sys.exit(main())
