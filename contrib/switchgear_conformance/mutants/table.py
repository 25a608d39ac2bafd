"""Every bug against every case."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from switchgear_conformance.case import Case, Outcome
from switchgear_conformance.catalogue import catalogue
from switchgear_conformance.harness import Broker, Setup, harness, nobody
from switchgear_conformance.report import Report, table
from switchgear_conformance.runner import run
from switchgear_conformance.schemes import installed

from .bug import Bug, bugs
from .plugin import inner_url, mutant_url

HANGS = 900.0  # seconds for one mutant


class _Mutant:
    """A broker whose URL leads through a bug."""

    def __init__(self, bug: str, inner: Broker) -> None:
        self._bug, self._inner = bug, inner

    @property
    def url(self) -> str:
        return mutant_url(self._bug, self._inner.url)

    @property
    def version(self) -> str:
        return self._inner.version

    def close(self) -> None:
        self._inner.close()

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def through(self, addresses: object) -> str:
        inner: Any = self._inner
        return mutant_url(self._bug, inner.through(addresses))


@dataclass(frozen=True)
class Row:
    """What became of one mutant."""

    name: str
    failed: dict[str, str]
    """Cases that it failed, and why."""
    run: frozenset[str]
    """Cases that applied to it."""

    @property
    def wrong(self) -> list[str]:
        """Where it fails what it does not name, or names what it does not fail."""
        named = bugs()[self.name].fails
        return [
            *(
                f"{self.name}: fails {id}, which it does not name: {self.failed[id]}"
                for id in sorted(set(self.failed) - named)
            ),
            *(f"{self.name}: names {id}, which it passes" for id in sorted((named & self.run) - set(self.failed))),
            *(f"{self.name}: names {id}, which does not apply to it" for id in sorted(named - self.run)),
        ]


def scope(bug: type[Bug]) -> set[int] | None:
    """Numbers to run: all over memory, in virtual time; over sqlite what needs storage, elsewhere what is done to
    servers, and what the bug names."""
    if bug.over == "memory":
        return None
    return {case.number for case in catalogue() if _at_stake(case, bug.over) or case.id in bug.fails}


def _at_stake(case: Case, over: str) -> bool:
    return bool(case.powers) or (over == "sqlite" and "persistent" in case.gates)


def mutant(name: str, *, numbers: Collection[int] | None = None, seed: int = 1, shorten: bool = False) -> Report:
    """Run cases against one mutant; models that fail are made shorter only when asked to."""
    right = harness(bugs()[name].over)

    def start(setup: Setup) -> Broker:
        return _Mutant(name, right.start(setup))

    def dead(url: str) -> str:
        return mutant_url(name, (right.dead or nobody)(inner_url(url)))

    wrong = replace(right, name=name, start=start, dead=None if right.embedded and right.dead is None else dead)
    with tempfile.TemporaryDirectory() as folder, installed(Path(folder)) as environment:
        return run(wrong, numbers=numbers, seed=seed, environment=environment, shorten=shorten)


def row(name: str, numbers: Collection[int] | None = None) -> Row:
    """Run one mutant within its scope, or these numbers alone."""
    report = mutant(name, numbers=scope(bugs()[name]) if numbers is None else numbers)
    ran = {r.id for r in report.results if r.outcome in (Outcome.PASSED, Outcome.FAILED, Outcome.REFUSED)}
    return Row(name, {r.id: r.reason for r in report.failed}, frozenset(ran))


def verdict(name: str, *, numbers: Collection[int] | None = None, note: Callable[[str], None] = print) -> bool:
    """Whether the mutant fails what it names (among `numbers`) and nothing else; says where not."""
    found = row(name, numbers)
    wrong = [w for w in found.wrong if numbers is None or "does not apply" not in w]
    for line in wrong:
        note(line)
    return not wrong


def rows(names: Collection[str], jobs: int, done: Callable[[Row], None]) -> list[Row]:
    """Run mutants side by side, each in a process: `jobs` of those in virtual time, and twice as many that wait."""
    virtual = [name for name in names if bugs()[name].over == "memory"]
    real = [name for name in names if name not in virtual]
    with ThreadPoolExecutor(jobs) as busy, ThreadPoolExecutor(2 * jobs) as waiting:
        running = [*(waiting.submit(_row_of, name) for name in real), *(busy.submit(_row_of, name) for name in virtual)]
        try:
            for future in as_completed(running):
                done(future.result())
        except BaseException:
            for pool in (busy, waiting):
                pool.shutdown(wait=False, cancel_futures=True)
            raise
        return sorted((future.result() for future in running), key=lambda one: one.name)


def _row_of(name: str) -> Row:
    """`row`, in a process of its own: a bug may leave anything behind."""
    command = [sys.executable, "-m", "switchgear_conformance.mutants", "--row", name]
    done = subprocess.run(command, capture_output=True, timeout=HANGS)
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr.decode(errors='replace')[-2000:]}")
    return msgspec.json.decode(done.stdout.splitlines()[-1], type=Row)


def unproven(found: Collection[Row]) -> list[str]:
    """Cases that no mutant fails: none of these, and none that was not run and names it."""
    run = {one.name for one in found}
    proven = {id for one in found for id in one.failed}
    proven |= {id for name, bug in bugs().items() if name not in run for id in bug.fails}
    return [case.id for case in catalogue() if case.id not in proven]


HEAD = """\
# Seeded bugs

Transports with one bug each, and the cases that each was seen to fail; all others pass on it. A case that no bug fails
would prove nothing. Those over memory run against all cases; those over SQLite, and over a small server of the kit
(`simulated`), against what needs storage or a server, and against what they name. Generated by
`python -m switchgear_conformance.mutants --markdown FILE`.
"""


def to_markdown(found: Collection[Row]) -> str:
    """The table mutant × case, one line a mutant."""
    names = {case.id: case.name for case in catalogue()}
    lines = table(
        ("mutant", "over", "what is wrong", "fails"),
        [
            (
                f"`{one.name}`", bugs()[one.name].over, (bugs()[one.name].__doc__ or "").partition("\n")[0],
                ", ".join(f"{id} {names[id]}" for id in sorted(one.failed, key=_by_number)),
            )
            for one in found
        ],
    )  # fmt: skip
    return "\n".join([HEAD, *lines]) + "\n"


def _by_number(id: str) -> tuple[int, str]:
    number, _, rest = id.partition(".")
    return int(number), rest
