"""What came of a run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from .case import Level, Outcome, Tier


@dataclass(frozen=True, kw_only=True)
class Result:
    """One case at one level."""

    number: int
    name: str
    level: Level
    part: str = ""
    tier: Tier
    outcome: Outcome
    reason: str = ""
    """Why it failed, was refused, waived, not run or not applicable."""
    detail: str = ""
    """Of a failure: the traceback."""
    seconds: float = 0.0

    @property
    def id(self) -> str:
        return f"{self.number}.{self.level}" + (f".{self.part}" if self.part else "")


@dataclass(kw_only=True)
class Report:
    """A run against one broker."""

    harness: str
    url: str
    """Without secrets."""
    seed: int
    embedded: bool
    emulator: bool
    storage: str
    versions: dict[str, str] = field(default_factory=dict[str, str])
    """Of the suite, the transport, its client, the broker."""
    claims: dict[str, object] = field(default_factory=dict[str, object])
    """The capabilities that the connected transport declares."""
    results: list[Result] = field(default_factory=list[Result])

    @property
    def failed(self) -> list[Result]:
        return [r for r in self.results if r.outcome is Outcome.FAILED]

    @property
    def counts(self) -> Counter[Outcome]:
        return Counter(r.outcome for r in self.results)
