"""What a case is, and what may come of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from .context import Context

Level = Literal["driver", "bus"]
Body = Callable[["Context"], Awaitable[None]]


class Outcome(StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    REFUSED = "refused"  # negotiation refuses the guarantee at start, and the case saw it refuse
    NOT_APPLICABLE = "not applicable"  # the transport does not declare what the case is about
    NOT_RUN = "not run"  # the infrastructure is absent
    PENDING = "pending"  # waits for a feature that is not built
    WAIVED = "waived"  # failed, as a waiver says


class Tier(StrEnum):
    CORE = "Core"
    CAPABILITIES = "Capabilities"
    DURABLE = "Durable (process crash)"
    FAULTS = "Fault-tested"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One numbered promise. A number is never reused; it may be held at both levels, by one function each."""

    number: int
    name: str
    level: Level
    part: str
    """Where a number is held by several functions at one level: what this one is about."""
    gates: tuple[str, ...]
    """What the transport must declare, or the harness be able to do (`ctl:…`), for the case to apply."""
    bound: float
    """Seconds (of the loop's time) after which it counts as failed."""
    virtual: bool
    """Whether it may run in virtual time."""
    embedded: bool
    """Whether it knows what to do where there is no server, in spite of its `ctl:` gates."""
    body: Body

    @property
    def id(self) -> str:
        return f"{self.number}.{self.level}" + (f".{self.part}" if self.part else "")

    @property
    def summary(self) -> str:
        return (self.body.__doc__ or "").partition("\n")[0]

    @property
    def powers(self) -> tuple[str, ...]:
        return tuple(gate.removeprefix("ctl:") for gate in self.gates if gate.startswith("ctl:"))

    @property
    def tier(self) -> Tier:
        return tier(self.number)


CORE = {*range(1, 29), 41, 43, 50, 51, 57, 58, 74, 75, 79, 85, 91}
DURABLE = {45, 47, 60, 61, 69, 70, 71}
FAULTS = {*range(62, 69), 72, 73, 78, 81, 82}


def tier(number: int) -> Tier:
    """The tier that a case belongs to."""
    if number in CORE:
        return Tier.CORE
    if number in DURABLE:
        return Tier.DURABLE
    return Tier.FAULTS if number in FAULTS else Tier.CAPABILITIES


PENDING: dict[int, tuple[str, str]] = {
    49: ("priority", "priorities="),
    55: ("filter", "filtered subscriptions"),
}
"""Cases that wait for a feature: number, name, and what is missing."""


def case(
    number: int,
    *gates: str,
    level: Level = "driver",
    part: str = "",
    bound: float = 30.0,
    virtual: bool = True,
    embedded: bool = False,
) -> Callable[[Body], Body]:
    """Mark a function of a catalogue module as the case of this number."""

    def mark(body: Body) -> Body:
        marked = Case(
            number=number, name=body.__name__.removesuffix("_through_bus").removesuffix(f"_{part}"), level=level,
            part=part, gates=gates, bound=bound, virtual=virtual, embedded=embedded, body=body,
        )  # fmt: skip
        body.__case__ = marked  # type: ignore[attr-defined]
        return body

    return mark
