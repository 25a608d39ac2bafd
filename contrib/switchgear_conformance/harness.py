"""What an author says of a broker: how it is started, and what can be done to it.

A harness is found by name in the entry point group `switchgear.harnesses`. Its broker has a URL; every further power is
an attribute that it has or has not: a case that needs one which is missing is *not run* (or, for a transport without a
server, *not applicable*), never passed.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol, runtime_checkable
from urllib.parse import urlsplit, urlunsplit

from switchgear.errors import ConfigurationError

HARNESSES = "switchgear.harnesses"


class HarnessLied(ConfigurationError):
    """The harness claims what it does not do."""


class NotRun(Exception):
    """This machine lacks what the broker needs; the text says what and how to get it."""


class BrokerFailed(Exception):
    """The broker did not do what was asked of it; the text ends with the tail of its log."""


Address = tuple[str, int]


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a harness is told when it starts a broker."""

    folder: Path
    """Empty, for the broker's data and logs; removed by the kit."""
    url: str = ""
    """As given on the command line; "" where only the harness was named."""
    advertise: Sequence[Address] = ()
    """Addresses of proxies that stand before the broker's own; a broker that advertises addresses names these."""


class Broker(Protocol):
    """A running broker. `close` ends what was started, and only that; the rest is optional (below)."""

    @property
    def url(self) -> str: ...
    @property
    def version(self) -> str:
        """Of the broker, for the report."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class Killable(Protocol):
    """`ctl:kill`: SIGKILL, then `start` on the same data and address."""

    def kill(self) -> object: ...
    def start(self) -> object: ...


@runtime_checkable
class Pausable(Protocol):
    """`ctl:pause`: SIGSTOP and SIGCONT."""

    def pause(self) -> object: ...
    def resume(self) -> object: ...


@runtime_checkable
class Restartable(Protocol):
    """`ctl:restart`: an orderly stop, then start on the same data and address."""

    def stop(self) -> object: ...
    def start(self) -> object: ...


@runtime_checkable
class Proxied(Protocol):
    """`ctl:proxy`: the broker's own addresses, and the URL of clients that come through others (a proxy each)."""

    @property
    def upstream(self) -> Sequence[Address]: ...
    def through(self, addresses: Sequence[Address]) -> str: ...


@runtime_checkable
class Fillable(Protocol):
    """`ctl:disk`: leave the broker no room to store, and give it back."""

    def fill(self) -> object: ...
    def free(self) -> object: ...


POWERS: dict[str, type] = {
    "kill": Killable, "pause": Pausable, "restart": Restartable, "proxy": Proxied, "disk": Fillable,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Harness:
    """How one kind of broker is had."""

    name: str
    start: Callable[[Setup], Broker]
    """Start it, ready when this returns. Raises NotRun where the machine lacks it, BrokerFailed where it won't."""
    embedded: bool = False
    """There is no server beside the process: what is done to servers does not apply."""
    emulator: bool = False
    """Not the real broker: it never earns the tier Durable."""
    virtual: bool = False
    """The transport takes its time from outside (`Clocked`): cases run in virtual time."""
    storage: str = ""
    """When the broker writes to disk (its fsync settings), for the report."""
    lease: float = 2.0
    """Seconds: the lease that cases ask for where one has to end."""
    addresses: int = 1
    """How many addresses its brokers have, for `ctl:proxy`."""
    dead: Callable[[str], str] | None = None
    """From the URL of a broker, the URL of one that is not there. None: of a server, its URL with a port where nobody
    listens; what is embedded then has none."""
    native: str = ""
    """The type of `message.native` as the transport documents it, for example "aiokafka.structs.ConsumerRecord"."""
    powers: frozenset[str] = frozenset()
    """What its brokers can be told: kill, pause, restart, proxy, disk. They then have the methods."""


def nobody(url: str) -> str:
    """The URL with an address at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    parts = urlsplit(url)
    user, at, _ = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user}{at}127.0.0.1:{port}"))


def harnesses() -> dict[str, str]:
    """Installed harnesses: name and where it is defined."""
    return {entry.name: entry.value for entry in sorted(entry_points(group=HARNESSES), key=lambda entry: entry.name)}


def harness(name: str) -> Harness:
    """The installed harness of this name. Raises ConfigurationError when there is none, or it is none."""
    claims = {entry.value: entry for entry in entry_points(group=HARNESSES) if entry.name == name}
    if not claims:
        known = ", ".join(harnesses()) or "none"
        raise ConfigurationError(
            f"no harness is named {name!r}; installed: {known}. A package adds one by an entry point in the group "
            f"{HARNESSES!r}"
        )
    if len(claims) > 1:
        raise ConfigurationError(f"two packages bring a harness named {name!r}: {' and '.join(claims)}")
    (entry,) = claims.values()
    try:
        found = entry.load()
    except Exception as error:  # whatever an author's module does
        raise ConfigurationError(f"the harness {name!r} ({entry.value}) can't be imported: {error}") from error
    if not isinstance(found, Harness):
        raise ConfigurationError(f"the harness {name!r} ({entry.value}) is {type(found).__name__}; expected a Harness")
    return found
