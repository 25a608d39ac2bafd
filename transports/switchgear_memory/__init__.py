"""`memory://[name]`: a broker inside this process, for tests and for single-process programs.

Transports of one name share one broker, which lives as long as one of them is open; `memory://` and `memory://a` are
two brokers. It keeps nothing that no group reads, and drops what every group has settled. Options of the URL are the
fields of `MemoryTuning`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, parse_qsl

from switchgear.errors import ConfigurationError
from switchgear.plugins import hookimpl

if TYPE_CHECKING:
    from .transport import MemoryTransport

__all__ = ["MemoryTuning", "open_transport"]


@dataclass(frozen=True)
class MemoryTuning:
    """What can be tuned."""

    capacity: int = 10_000
    """Messages that may wait for a group before `send` waits for room (delayed and private ones don't count)."""

    @property
    def scheme(self) -> str:
        """The URL scheme that this tunes."""
        return "memory"


@hookimpl
def open_transport(scheme: str, url: SplitResult, tuning: Sequence[object]) -> MemoryTransport | None:
    """The transport of a `memory://` URL. Raises ConfigurationError for a path or an option that means nothing here."""
    if scheme != "memory":
        return None
    if url.path not in ("", "/"):
        raise ConfigurationError(f"memory://{url.netloc}{url.path}: a memory bus has a name and no path")
    if "@" in url.netloc or ":" in url.netloc:
        raise ConfigurationError("memory:// takes a name alone, no user, password or port")
    chosen = _from_url(url)
    for given in tuning:
        if isinstance(given, MemoryTuning):
            chosen = given
    if chosen.capacity < 1:
        raise ConfigurationError(f"memory://{url.netloc}: capacity is {chosen.capacity}; expected 1 message or more")
    from .transport import MemoryTransport

    return MemoryTransport(url.netloc, chosen.capacity)


def _from_url(url: SplitResult) -> MemoryTuning:
    known = [field.name for field in fields(MemoryTuning)]
    found: dict[str, int] = {}
    for name, value in parse_qsl(url.query, keep_blank_values=True):
        if name == "namespace":  # the bus's own
            continue
        if name not in known:
            from difflib import get_close_matches

            near = get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
            raise ConfigurationError(f"memory://{url.netloc}: unknown option {name!r}{hint}")
        try:
            found[name] = int(value)
        except ValueError:
            raise ConfigurationError(f"memory://{url.netloc}: {name}={value!r} is not a whole number") from None
    return MemoryTuning(**found)
