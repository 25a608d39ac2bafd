"""`python -m switchgear_conformance.mutants [NAME …] [--jobs 2] [--markdown FILE]`: all mutants against all cases.

Exits with 1 where a mutant fails anything but what it names, or where no mutant fails a case.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import msgspec

from .bug import bugs
from .table import Row, row, rows, to_markdown, unproven


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m switchgear_conformance.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*bugs(), []], help="mutants; all by default")
    parser.add_argument("--over", help="only those over memory, sqlite or simulated")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--markdown", type=Path, help="write the table there")
    parser.add_argument("--row", metavar="NAME", choices=list(bugs()), help="run one here, and print its row as JSON")
    given = parser.parse_args()
    if given.row:
        print(msgspec.json.encode(row(given.row)).decode())
        return 0
    began = time.perf_counter()

    def done(one: Row) -> None:
        print(
            f"{one.name}: {'as named' if not one.wrong else 'WRONG'} ({len(one.failed)} of {len(one.run)} fail)",
            flush=True,
        )
        for line in one.wrong:
            print(f"  {line}", flush=True)

    names = [name for name in given.names or bugs() if given.over in (None, bugs()[name].over)]
    found = rows(names, given.jobs, done)
    wrong = [line for one in found for line in one.wrong]
    missed = [] if given.names else unproven(found)
    for id in missed:
        print(f"no mutant fails {id}")
    if given.markdown:
        given.markdown.write_text(to_markdown(found), encoding="utf-8")
    print(
        f"{len(found)} mutants in {time.perf_counter() - began:.0f} s; {len(wrong)} wrong, {len(missed)} cases unproven"
    )
    return 1 if wrong or missed else 0


if __name__ == "__main__":
    sys.exit(main())
