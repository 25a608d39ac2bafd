"""What a `redis://` URL says; needs no Redis client."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, parse_qsl, unquote

from switchgear.errors import ConfigurationError, TransportNotFound
from switchgear.plugins import hookimpl

if TYPE_CHECKING:
    from switchgear.driver import Transport

PORT = 6379


@dataclass(frozen=True)
class RedisTuning:
    """Settings for `redis://`, ignored by every other transport; each is an option of the URL too."""

    maxlen: int | None = None
    """Messages that a stream keeps at most, read or not: what it takes unread is lost, and counted. None: no bound."""
    keep: float = 3600.0
    """Seconds for which a message stays readable (seek, browse) after every group has settled it."""
    timeout: float = 5.0
    """Seconds to connect, and to wait for an answer where the caller sets no deadline."""
    connections: int = 16
    """Most connections for commands; each subscription has one more, for reading."""

    @property
    def scheme(self) -> str:
        """The URL scheme that this is for."""
        return "redis"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Where the server is and how to talk to it."""

    host: str
    port: int = PORT
    db: int = 0
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = False
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    verify: bool = True
    wait: int = 0
    waitaof: int | None = None
    tuning: RedisTuning = RedisTuning()

    @property
    def address(self) -> str:
        """The URL without user, password and options."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'rediss' if self.tls else 'redis'}://{host}:{self.port}/{self.db}"


@hookimpl
def open_transport(scheme: str, url: SplitResult, tuning: Sequence[object]) -> Transport | None:
    """The transport of a `redis://` or `rediss://` URL; a tuning object takes the place of all that the URL tunes.

    Raises ConfigurationError for an option that is unknown or wrong, TransportNotFound without the client.
    """
    if scheme not in ("redis", "rediss"):
        return None
    settings = parse(url)
    for given in tuning:
        if isinstance(given, RedisTuning):
            settings = replace(settings, tuning=check(given, settings.address))
    try:
        from .transport import RedisTransport
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("redis", "hiredis"):
            raise
        raise TransportNotFound(f"{scheme}:// needs the Redis client: pip install 'switchgear[redis]'") from error
    return RedisTransport(settings)


def parse(url: SplitResult) -> Settings:
    """Read a URL. Raises ConfigurationError, naming the option and the nearest known one."""
    if "," in url.netloc.rpartition("@")[2]:
        raise ConfigurationError(f"{url.scheme}://…: one server is expected, and several are named")
    base = Settings(
        host=unquote(url.hostname or "localhost"), port=url.port or PORT, db=_db(url), tls=url.scheme == "rediss",
        user=unquote(url.username) if url.username else None,
        password=unquote(url.password) if url.password else None,
    )  # fmt: skip
    at = base.address
    texts = ("ca", "cert", "key")
    known = [*(f.name for f in fields(RedisTuning)), *texts, "verify", "wait", "waitaof"]
    own: dict[str, str] = {}
    tuned: dict[str, Any] = {}
    for name, value in parse_qsl(url.query, keep_blank_values=True):
        if name == "namespace":  # the bus's own
            continue
        if name not in known:
            from difflib import get_close_matches

            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise ConfigurationError(f"{at}: unknown option {name!r}; {hint}")
        if name in ("maxlen", "connections"):
            tuned[name] = _whole(at, name, value)
        elif name in ("keep", "timeout"):
            tuned[name] = _seconds(at, name, value)
        else:
            own[name] = value
    if not base.tls and (odd := [name for name in (*texts, "verify") if name in own]):
        raise ConfigurationError(f"{at}: {odd[0]!r} is an option of TLS; write rediss:// to use it")
    for name in texts:
        if name in own and not Path(own[name]).is_file():
            raise ConfigurationError(f"{at}: {name}={own[name]!r} is no file")
    if ("cert" in own) != ("key" in own):
        raise ConfigurationError(f"{at}: a client certificate takes both 'cert' and 'key'")
    return replace(
        base, tuning=check(RedisTuning(**tuned), at), ca=own.get("ca"), cert=own.get("cert"), key=own.get("key"),
        verify=_yes(at, "verify", own.get("verify", "yes")), wait=_whole(at, "wait", own.get("wait", "0")),
        waitaof=_whole(at, "waitaof", own["waitaof"]) if "waitaof" in own else None,
    )  # fmt: skip


def check(tuning: RedisTuning, at: str) -> RedisTuning:
    """The tuning itself. Raises ConfigurationError for a value out of range."""
    for name, ok, expected in (
        ("maxlen", tuning.maxlen is None or tuning.maxlen > 0, "1 message or more"),
        ("keep", tuning.keep >= 0, "0 seconds or more"),
        ("timeout", tuning.timeout > 0, "more than 0 seconds"),
        ("connections", tuning.connections > 1, "2 or more"),
    ):
        if not ok:
            raise ConfigurationError(f"{at}: {name} is {getattr(tuning, name)}; expected {expected}")
    return tuning


def _db(url: SplitResult) -> int:
    path = url.path.strip("/")
    if path and not path.isdecimal():
        raise ConfigurationError(f"{url.scheme}://{url.hostname}/{path}: expected the number of a database, such as /0")
    return int(path or 0)


def _whole(at: str, name: str, value: str) -> int:
    if not value.isdecimal():
        raise ConfigurationError(f"{at}: {name}={value!r} is no whole number")
    return int(value)


def _seconds(at: str, name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ConfigurationError(f"{at}: {name}={value!r} is no number of seconds") from None


def _yes(at: str, name: str, value: str) -> bool:
    words = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}
    if value.lower() not in words:
        raise ConfigurationError(f"{at}: {name}={value!r}; expected yes or no")
    return words[value.lower()]
