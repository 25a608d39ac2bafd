"""From what was asked on a command line to a harness and case numbers."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from switchgear.errors import ConfigurationError
from switchgear.plugins import open_transport

from .case import Tier, tier
from .catalogue import NUMBERS
from .harness import Harness, Setup, harness, harnesses
from .harnesses.embedded import Place

TIERS = {"core": Tier.CORE, "capabilities": Tier.CAPABILITIES, "durable": Tier.DURABLE, "faults": Tier.FAULTS}


def choose_harness(url: str, name: str | None) -> Harness:
    """The harness of this name; without one that of an embedded scheme, else a broker that runs already, at `url`.

    Raises ConfigurationError: unknown harness or scheme.
    """
    if url:
        open_transport(url)  # says what is wrong with the URL
    if name is not None:
        return harness(name)
    scheme = urlsplit(url).scheme
    if scheme in harnesses():
        found = harness(scheme)
        if found.embedded:
            return found
    return given(scheme)


def given(scheme: str) -> Harness:
    """A broker that somebody else runs: nothing can be done to it."""

    def start(setup: Setup) -> Place:
        return Place(setup.url, "not known")

    return Harness(name=scheme, start=start, storage="not known")


def choose_numbers(cases: Sequence[int], tiers: Sequence[str]) -> set[int] | None:
    """Numbers of the cases asked for; None: all. Raises ConfigurationError for one that does not exist."""
    for number in cases:
        if not 1 <= number <= NUMBERS:
            raise ConfigurationError(f"there is no case {number}: the catalogue has 1 to {NUMBERS}")
    for name in tiers:
        if name not in TIERS:
            raise ConfigurationError(f"there is no tier {name!r}: choose from {', '.join(TIERS)}")
    if not cases and not tiers:
        return None
    wanted = {TIERS[name] for name in tiers}
    return {*cases, *(n for n in range(1, NUMBERS + 1) if tier(n) in wanted)}
