"""Playing again what a failed model printed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from switchgear_conformance import harness as harnesses
from switchgear_conformance.case import Case, Outcome
from switchgear_conformance.context import Context
from switchgear_conformance.runner import Session, run_case

M = TypeVar("M")


def replay(
    machine: Callable[[Context], M], program: Callable[[M], Awaitable[None]], *, harness: str, url: str = "",
    gates: tuple[str, ...] = (),
) -> None:  # fmt: skip
    """Play one program on a new broker of an installed harness, or on that of `url`.

    Raises AssertionError when it fails, or when the harness lacks a gate such as "ctl:proxy"; ConfigurationError when
    no harness has this name.
    """

    async def body(context: Context) -> None:
        await program(machine(context))

    case = Case(
        number=75, name="replay", level="driver", part="", gates=gates, bound=3600.0, virtual=True, embedded=False,
        body=body,
    )  # fmt: skip
    with Session.open(harnesses.harness(harness), url=url, seed=1) as session:
        result = run_case(case, session)
    assert result.outcome is Outcome.PASSED, f"{result.outcome}: {result.reason}\n{result.detail}"
