"""`sqlite:///relative.db` and `sqlite:////absolute.db`: a durable broker in one file, for any number of processes.

The folder must exist, the file is created. It may be the file of an application: every table of ours begins with
`sg_`. All processes must be on one machine (write-ahead logging does not work over network file systems). Options of
the URL are the fields of `SqliteTuning`: `sqlite:///app.db?synchronous=normal&retention=86400`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Literal
from urllib.parse import SplitResult, parse_qsl, unquote

from switchgear.errors import ConfigurationError
from switchgear.plugins import hookimpl

if TYPE_CHECKING:
    from .transport import SqliteTransport

__all__ = ["SqliteTuning", "open_transport"]


@dataclass(frozen=True)
class SqliteTuning:
    """What can be tuned."""

    synchronous: Literal["full", "extra", "normal", "off"] = "full"
    """`PRAGMA synchronous`. "full" survives loss of power, "normal" a crash of the process alone."""
    busy_timeout: float = 5.0
    """Seconds to wait for other processes that write, before a call fails."""
    retention: float = 7 * 86400.0
    """Seconds that a message stays which every group has settled; at least 120, the window of deduplication."""
    max_messages: int | None = None
    """The newest that each topic keeps, read or not."""
    max_page_count: int | None = None
    """`PRAGMA max_page_count` (pages of 4096 bytes by default): past it sending fails with NotSent. What groups take
    and settle may use up to 1000 pages more, so that a full file can be read empty."""
    poll: float = 0.015
    """Seconds between looks at what other processes have committed, while something waits for messages."""

    @property
    def scheme(self) -> str:
        """The URL scheme that this tunes."""
        return "sqlite"


@hookimpl
def open_transport(scheme: str, url: SplitResult, tuning: Sequence[object]) -> SqliteTransport | None:
    """The transport of a `sqlite://` URL. Raises ConfigurationError for a URL without a file or an unknown option."""
    if scheme != "sqlite":
        return None
    path = unquote(url.path)[1:]
    if url.netloc or not path or path.endswith("/"):
        raise ConfigurationError(
            f"sqlite://{'…' if '@' in url.netloc else url.netloc}{url.path} names no file: write sqlite:///relative.db "
            "or sqlite:////absolute/path.db"
        )
    if path == ":memory:":
        raise ConfigurationError("sqlite:///:memory: would be empty for every connection: use memory://")
    chosen = _from_url(url, path)
    for given in tuning:
        if isinstance(given, SqliteTuning):
            chosen = given
    _check(chosen, path)
    from .transport import SqliteTransport

    return SqliteTransport(path, chosen)


def _whole(text: str) -> int | None:
    return None if text == "none" else int(text)


PARSERS: dict[str, Callable[[str], object]] = {
    "synchronous": str.lower,
    "busy_timeout": float,
    "retention": float,
    "max_messages": _whole,
    "max_page_count": _whole,
    "poll": float,
}


def _from_url(url: SplitResult, path: str) -> SqliteTuning:
    known = [field.name for field in fields(SqliteTuning)]
    chosen = SqliteTuning()
    for name, value in parse_qsl(url.query, keep_blank_values=True):
        if name == "namespace":  # the bus's own
            continue
        if name not in known:
            from difflib import get_close_matches

            near = get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
            raise ConfigurationError(f"sqlite:///{path}: unknown option {name!r}{hint}")
        try:
            chosen = replace(chosen, **{name: PARSERS[name](value)})  # type: ignore[arg-type]
        except ValueError:
            raise ConfigurationError(f"sqlite:///{path}: {name}={value!r} is not a number") from None
    return chosen


def _check(chosen: SqliteTuning, path: str) -> None:
    levels = ("full", "extra", "normal", "off")
    if chosen.synchronous not in levels:
        raise ConfigurationError(
            f"sqlite:///{path}: synchronous={chosen.synchronous!r}; expected one of {', '.join(levels)}"
        )
    if not 0.001 <= chosen.poll <= 1.0:
        raise ConfigurationError(f"sqlite:///{path}: poll={chosen.poll:g} seconds; expected 0.001 to 1")
    for name in ("busy_timeout", "retention"):
        if not getattr(chosen, name) >= 0:
            raise ConfigurationError(f"sqlite:///{path}: {name}={getattr(chosen, name):g} seconds; expected 0 or more")
    for name in ("max_messages", "max_page_count"):
        value: int | None = getattr(chosen, name)
        if value is not None and value < 1:
            raise ConfigurationError(f"sqlite:///{path}: {name}={value}; expected 1 or more")
