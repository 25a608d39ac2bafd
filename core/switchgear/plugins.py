"""Finding transports and codecs: pluggy project "switchgear", entry points `switchgear.{transports,codecs}`.

Only the entry point that a URL's scheme names is imported, so an installed transport costs nothing until it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import pluggy

from .errors import ConfigurationError, TransportNotFound

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint
    from urllib.parse import SplitResult

    from .codec import Codec
    from .driver import Transport

hookspec = pluggy.HookspecMarker("switchgear")
hookimpl = pluggy.HookimplMarker("switchgear")

TRANSPORTS = "switchgear.transports"
CODECS = "switchgear.codecs"
SECRET = ("pass", "pwd", "secret", "token", "credential", "apikey", "api_key", "access_key")
"""What marks an option of a URL whose value is shown nowhere."""
PLANNED = {
    "nats": "nats", "nats+tls": "nats", "pulsar": "pulsar", "pulsar+ssl": "pulsar", "pubsub": "pubsub", "sns": "sns",
}  # fmt: skip
"""Schemes that Switchgear will serve and does not yet, by the extra that will bring them."""


class Hooks:
    """What a plugin may implement, with `from switchgear.plugins import hookimpl`."""

    @hookspec(firstresult=True)
    def open_transport(self, scheme: str, url: SplitResult, tuning: Sequence[object]) -> Transport | None:
        """Make the transport for a URL; no input or output happens before `Transport.connect`.

        Raises ConfigurationError for an option it does not know, TransportNotFound where its client is missing.
        """

    @hookspec(firstresult=True)
    def open_codec(self, content_type: str) -> Codec | None:
        """Make the codec of a content type, or None if it is not this plugin's."""


def manager() -> pluggy.PluginManager:
    """A plugin manager that knows our hooks and no plugin yet."""
    pm = pluggy.PluginManager("switchgear")
    pm.add_hookspecs(Hooks)
    return pm


@lru_cache(maxsize=1)
def _transports() -> dict[str, list[EntryPoint]]:
    from importlib.metadata import entry_points

    found: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=TRANSPORTS):
        claims = found.setdefault(entry.name, [])
        if all(other.value != entry.value for other in claims):  # an editable install may list itself twice
            claims.append(entry)
    return found


def schemes() -> dict[str, str]:
    """Installed URL schemes and the module that serves each."""
    return {scheme: claims[0].value for scheme, claims in sorted(_transports().items())}


def open_transport(url: str, tuning: Sequence[Any] = ()) -> Transport:
    """The transport for `url`, not yet connected.

    Raises ConfigurationError for a malformed URL or two plugins that claim one scheme, TransportNotFound for a scheme
    that nobody serves.
    """
    parts = split(url)
    scheme = parts.scheme
    claims = _transports().get(scheme, [])
    if not claims:
        raise TransportNotFound(_missing(scheme))
    if len(claims) > 1:
        both = " and ".join(f"{c.value} ({c.dist.name if c.dist else 'unknown distribution'})" for c in claims)
        raise ConfigurationError(f"two plugins claim the scheme {scheme}://: {both}; uninstall one of them")
    pm = manager()
    try:
        pm.register(claims[0].load())
    except ImportError as error:
        raise TransportNotFound(f"the plugin {claims[0].value} for {scheme}:// cannot be imported: {error}") from error
    mine = [t for t in tuning if tunes(t.scheme, scheme)]
    transport: Transport | None = pm.hook.open_transport(scheme=scheme, url=parts, tuning=mine)
    if transport is None:
        raise TransportNotFound(f"the plugin {claims[0].value} is registered for {scheme}:// but did not open it")
    return transport


def tunes(tuned: str, scheme: str) -> bool:
    """Whether a tuning for one scheme is for another too: one plugin may serve several (redis, rediss)."""
    served = {claim.value for claim in _transports().get(scheme, ())}
    return tuned == scheme or any(claim.value in served for claim in _transports().get(tuned, ()))


def split(url: str) -> SplitResult:
    """A URL in its parts; several servers stand with commas between them, each with a port of its own or none.

    Raises ConfigurationError that shows no password.
    """
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        for server in parts.netloc.rpartition("@")[2].split(","):
            _ = urlsplit(f"//{server}").port
    except ValueError:  # its text may hold a part of the password
        raise ConfigurationError(
            f"malformed broker URL {_scheme_of(url)}://…: the port is no number up to 65535, or brackets do not match; "
            "in user and password, '/', '?', '#', '@' and ':' are written as %2F, %3F, %23, %40 and %3A"
        ) from None
    if not parts.scheme or "://" not in url:
        raise ConfigurationError(
            f"malformed broker URL {redact(url)!r}: expected scheme://…, for example sqlite:///app.db or redis://localhost"
        )
    return parts


def _scheme_of(url: str) -> str:
    return url.partition("://")[0] if "://" in url else "…"


def redact(url: str) -> str:
    """The URL without its password (or a lone user, which may be a token) and without option values that look secret;
    fit for logs and errors."""
    head, at, tail = url.rpartition("@")
    if at:
        scheme, slashes, user = head.partition("://") if "://" in head else ("", "", head)
        name, colon, _ = user.partition(":")
        url = f"{scheme}{slashes}{name + ':***' if colon else '***'}@{tail}"
    base, question, query = url.partition("?")
    if question:
        pairs: list[str] = []
        for pair in query.split("&"):
            name, equals, _ = pair.partition("=")
            secret = any(word in name.lower() for word in SECRET)
            pairs.append(f"{name}=***" if secret and equals else pair)
        url = f"{base}?{'&'.join(pairs)}"
    return url


def _missing(scheme: str) -> str:
    installed = ", ".join(f"{name}://" for name in schemes()) or "none"
    if scheme in PLANNED:
        return (
            f"{scheme}:// is planned and not part of this version of switchgear: the extra "
            f"switchgear[{PLANNED[scheme]}] will bring it; installed: {installed}"
        )
    from difflib import get_close_matches

    near = get_close_matches(scheme, [*schemes(), *PLANNED], n=1)
    hint = f"; did you mean {near[0]}://?" if near else ""
    return f"no transport serves the scheme {scheme}://; installed: {installed}{hint}"
