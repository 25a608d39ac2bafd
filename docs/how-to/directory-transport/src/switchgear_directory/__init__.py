"""The transport of `directory:///path`: the hook by which Switchgear finds it."""

from collections.abc import Sequence
from urllib.parse import SplitResult

from switchgear.driver import Transport
from switchgear.errors import ConfigurationError
from switchgear.plugins import hookimpl


@hookimpl
def open_transport(scheme: str, url: SplitResult, tuning: Sequence[object]) -> Transport:
    """`directory:///var/spool/app`; it has no options."""
    from .transport import DirectoryTransport

    if url.netloc or url.query or len(url.path) < 2:
        raise ConfigurationError(f"{url.geturl()}: expected directory:///path, without host and options")
    return DirectoryTransport(url.path)
