"""Programs: made up by Hypothesis, played one after the other; one that fails is made short and printed as code.

A machine is a class with a coroutine method a step, `finish`, which looks at what came of it all, and
`__init__(context)`. A program is steps as data, so that the same one can be played again, made shorter, and printed.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Protocol

from hypothesis import Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st

from switchgear.errors import Unsupported
from switchgear_conformance.context import Context

from .shorten import shorten

if TYPE_CHECKING:
    from collections.abc import Callable

    from hypothesis.strategies import SearchStrategy

Step = tuple[Any, ...]
"""The name of a machine's method, and its arguments."""
Program = tuple[Step, ...]

PATIENCE = {True: 3600.0, False: 120.0}  # seconds of the loop's time for one program, by whether time is virtual
EXPLORING = 2.5  # seconds of programs where time is real
SHORTENING = {True: 2.0, False: 15.0}  # real seconds to look for a shorter program


class Machine(Protocol):
    async def finish(self) -> None:
        """Bring everything to its end, and compare."""
        ...


def step(name: str, *arguments: SearchStrategy[Any]) -> SearchStrategy[Step]:
    """Steps of one kind."""
    return st.tuples(st.just(name), *arguments)


def program(*steps: SearchStrategy[Step], first: SearchStrategy[Step], size: int) -> SearchStrategy[Program]:
    """One `first`, then up to `size` steps of these kinds; a kind that is given twice comes twice as often."""
    kinds = st.sampled_from(steps).flatmap(lambda kind: kind)
    least = st.sampled_from([1, size // 4, size // 2])  # lists of no least length are mostly short
    more = least.flatmap(lambda least: st.lists(kinds, min_size=least, max_size=size))
    return st.tuples(first, more).map(lambda both: (both[0], *both[1]))


def made_up(programs: SearchStrategy[Program], count: int, number: int) -> list[Program]:
    """Programs; of one seed always the same."""
    found: list[Program] = []

    @seed(number)
    @settings(
        max_examples=count, database=None, deadline=None, phases=(Phase.generate,), verbosity=Verbosity.quiet,
        suppress_health_check=(), print_blob=False,
    )  # fmt: skip
    @given(programs)
    def collect(steps: Program) -> None:
        found.append(steps)

    collect()
    return found


async def explore(
    c: Context, machine: type[Machine], programs: SearchStrategy[Program], *, examples: int, least: int = 0
) -> None:
    """Play so many programs; where time is real for some seconds, but at least so many. AssertionError with one
    that fails, as code from which no step can be left out.

    Hypothesis is not asynchronous: it makes the programs up, and they are played and made shorter here.
    """
    virtual = c.harness.virtual
    ends = time.perf_counter() + EXPLORING
    played = 0
    found = made_up(programs, examples, c.seed)
    c.random.shuffle(found)  # Hypothesis begins with the simplest, and there may be no time for others
    for steps in found:
        if not virtual and played >= least and time.perf_counter() > ends:
            break
        played += 1
        if (error := await _played(c, machine, steps)) is not None:
            if c.shorten:
                steps, error = await _shortest(c, machine, steps, error)
            what = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
            raise AssertionError(f"{what}{error}\n\n{code(c, machine, steps)}") from error
    c.remark(f"{played} programs")


async def _shortest(c: Context, machine: type[Machine], steps: Program, error: Exception) -> tuple[Program, Exception]:
    ends = time.perf_counter() + SHORTENING[c.harness.virtual]
    shortest = steps, error

    async def fails(steps: Program) -> bool:
        nonlocal shortest
        if time.perf_counter() > ends:
            return False
        found = await _played(c, machine, steps)
        if type(found) is not type(error):  # another type would be the error of a program that makes no sense
            return False
        shortest = steps, found
        return True

    await shorten(steps, fails)
    return shortest


async def _played(c: Context, machine: Callable[[Context], Machine], steps: Program) -> Exception | None:
    """How it failed, or None. Nothing of it goes on. Raises Unsupported, since that is no failure everywhere."""
    before = asyncio.all_tasks()
    context = c.again()
    try:
        try:
            async with asyncio.timeout(PATIENCE[c.harness.virtual]):
                await play(context, machine, steps)
        finally:
            await context.close()
    except Unsupported:
        raise
    except Exception as error:
        left = asyncio.all_tasks() - before
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        return error
    return None


async def play(c: Context, machine: Callable[[Context], Machine], steps: Program) -> None:
    """Play one program."""
    subject = machine(c)
    for name, *arguments in steps:
        await getattr(subject, name)(*arguments)
    await subject.finish()


def code(c: Context, machine: type[Machine], steps: Program) -> str:
    """The program as a test that can be pasted into a file."""
    gates = tuple(gate for gate in c.case.gates if gate.startswith("ctl:"))
    lines = [
        f"from {machine.__module__} import {machine.__name__}",
        f"from {__package__}.replay import replay",
        "",
        "",
        f"def test_{c.case.name}() -> None:",
        f"    async def program(m: {machine.__name__}) -> None:",
        *(f"        await m.{name}({', '.join(map(repr, arguments))})" for name, *arguments in steps),
        "        await m.finish()",
        "",
        f"    replay({machine.__name__}, program, harness={c.harness.name!r}{f', gates={gates!r}' if gates else ''})",
    ]
    return "\n".join(lines)
