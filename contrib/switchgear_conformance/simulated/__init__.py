"""A small broker of the kit's own, for cases of what is done to servers: `simulated://127.0.0.1:PORT[?timeout=3]`.

A process serves an embedded transport (`serving`), and the transport of this scheme is its client (`client`), so that
such cases, and the mutants that prove them, can be run anywhere. Client and server share a machine: what they say of
instants is said on its monotonic clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, parse_qs

from switchgear.errors import ConfigurationError
from switchgear.plugins import hookimpl

if TYPE_CHECKING:
    from .client import SimulatedTransport

TIMEOUT = "3"  # seconds


@hookimpl
def open_transport(scheme: str, url: SplitResult, tuning: Sequence[object]) -> SimulatedTransport | None:
    """The transport of a `simulated://` URL. Raises ConfigurationError for a URL without a port, an unknown option."""
    if scheme != "simulated":
        return None
    options = {name: values[-1] for name, values in parse_qs(url.query).items() if name != "namespace"}
    timeout = float(options.pop("timeout", TIMEOUT))
    if url.hostname is None or url.port is None or options:
        raise ConfigurationError("expected simulated://HOST:PORT, with the option `timeout` (seconds) and no other")
    from .client import SimulatedTransport

    return SimulatedTransport((url.hostname, url.port), timeout)
