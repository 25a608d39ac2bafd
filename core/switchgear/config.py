"""Where settings come from: command line, code, environment, `switchgear.toml`.

    url = "${BROKER_URL:-sqlite:///dev.db}"     # of every bus; `namespace`, `grace`, `provision` likewise
    [bus.live]                                  # of Bus(name="live")
    url = "${REDIS_URL}"
    [topics.orders]                             # where a Topic leaves it open
    partitions = 12
    [subscriptions."orders.billing"]            # "<topic>.<group>": its knobs
    concurrency = 64
    retry = { attempts = 10, cap = 300 }

The file is `config=`, else that of `SWITCHGEAR_CONFIG`, else `switchgear.toml` in the working directory, if there is
one. In its strings `${NAME}` and `${NAME:-default}` are read from the environment when the value is used, so another
bus's variables need not be set; `$${` is a literal `${`. Durations are seconds.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Mapping
from os import PathLike
from typing import Any, cast

from .errors import ConfigurationError
from .plugins import redact
from .settings import CODE, DEFAULT, Settings, check_from_file, check_keys, check_knobs, merge, nearest, resolve
from .topic import ORDERS, check_group_name, check_topic_name
from .units import Seconds, seconds

__all__ = ["CODE", "COMMAND_LINE", "DEFAULT", "Config", "Settings", "check_knobs", "merge", "resolve"]

COMMAND_LINE = "command line"
FILE = "switchgear.toml"

_VARIABLE = re.compile(r"\$?\$\{(?:([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?)?\}?")


class Config:
    """One bus's view of its configuration. Nothing of it is read again after `load`."""

    def __init__(self, document: Mapping[str, Any], label: str, bus: str, environ: Mapping[str, str]) -> None:
        """Use `load`. `label` names the source in errors and origins."""
        self._document = document
        self._label = label
        self._bus = bus
        self._environ = environ
        self._url: str | None = None
        self._check()

    @classmethod
    def load(
        cls,
        config: str | PathLike[str] | Mapping[str, Any] | None,
        *,
        bus: str,
        environ: Mapping[str, str] = os.environ,
    ) -> Config:
        """Read the configuration of the bus named `bus`; a mapping stands for a file's content.

        Raises ConfigurationError naming file, key and nearest known key for what is not understood.
        """
        if isinstance(config, Mapping):
            return cls(config, "config=", bus, environ)
        if config is None:
            config = environ.get("SWITCHGEAR_CONFIG") or None
        if config is not None:
            return cls(_read(config), str(config), bus, environ)
        return cls(_read(FILE) if os.path.isfile(FILE) else {}, FILE, bus, environ)  # noqa: PTH113

    def override(self, *, url: str) -> None:
        """Let the command line's (or a test's) URL go before all others."""
        self._url = url

    def url(self, code: str | None) -> tuple[str, str]:
        """The broker's URL and its origin: command line, code, SWITCHGEAR_URL, the bus's section, the file's top.

        Raises ConfigurationError where there is none.
        """
        if self._url is not None:
            return self._url, COMMAND_LINE
        if code is not None:
            return code, CODE
        if self._environ.get("SWITCHGEAR_URL"):
            return self._environ["SWITCHGEAR_URL"], "environment SWITCHGEAR_URL"
        found = self._top("url")
        if found is None:
            raise ConfigurationError(
                f'bus {self._bus!r} has no URL: write Bus("sqlite:///app.db"), or set SWITCHGEAR_URL, or put '
                f'url = "…" into {FILE}, or give --url on the command line'
            )
        return found

    def value(self, name: str, code: Any, default: Any) -> tuple[Any, str]:
        """`namespace`, `grace` (seconds) or `provision`, and its origin: file, else code (None: not given)."""
        found = self._top(name)
        if found is not None:
            return found
        if code is None:
            return default, DEFAULT
        return _checked(name, code, f"bus {self._bus!r}"), CODE

    def topic(self, name: str) -> dict[str, Any]:
        """What the file says of a topic: `order`, `partitions`, `retention` (seconds)."""
        section = self._document.get("topics", {}).get(name, {})
        origin = self.topic_origin(name)
        return {key: _checked(key, self._expand(raw, key, origin), origin) for key, raw in section.items()}

    def topic_origin(self, name: str) -> str:
        """What the section of a topic is called."""
        return f"{self._label} [topics.{_quoted(name)}]"

    def subscription(self, topic: str, group: str | None) -> tuple[dict[str, Any], str]:
        """A subscription's section as the file has it, and its name. Broadcast subscriptions have none."""
        name = f"{topic}.{group}"
        origin = f'{self._label} [subscriptions."{name}"]'
        section: Mapping[str, Any] = {}
        if group is not None:
            section = self._document.get("subscriptions", {}).get(name, section)
        return {key: self._expand(raw, key, origin) for key, raw in section.items()}, origin

    def misspelt(self, subscriptions: Collection[tuple[str, str | None]]) -> list[str]:
        """Sections for none of these subscriptions that look as if they were meant for one; others may be of another
        program."""
        from difflib import get_close_matches

        known = {f"{topic}.{group}" for topic, group in subscriptions if group is not None}
        return [
            f'{self._label} [subscriptions."{name}"] is for no subscription of this program; did you mean {near!r}?'
            for name in self._document.get("subscriptions", {})
            if name not in known
            for near in get_close_matches(str(name), known, n=1, cutoff=0.9)
        ]

    def _top(self, name: str) -> tuple[Any, str] | None:
        section = self._document.get("bus", {}).get(self._bus, {})
        for table, origin in (
            (section, f"{self._label} [bus.{_quoted(self._bus)}]"),
            (self._document, self._label),
        ):
            if name in table:
                return _checked(name, self._expand(table[name], name, origin), origin), origin
        return None

    def _check(self) -> None:
        """Every key, also of sections that this bus does not use; values as far as they name no variable."""
        tables = ("bus", "topics", "subscriptions")
        for key, raw in self._document.items():
            if key in tables:
                _table(raw, f"{self._label} [{key}]")
            else:
                self._key(key, raw, _BUS, self._label, (*_BUS, *tables))
        for name, section in self._document.get("bus", {}).items():
            origin = f"{self._label} [bus.{_quoted(name)}]"
            for key, raw in _table(section, origin).items():
                self._key(key, raw, _BUS, origin, _BUS)
        for name, section in self._document.get("topics", {}).items():
            origin = f"{self._label} [topics.{_quoted(name)}]"
            for key, raw in _table(section, origin).items():
                if isinstance(raw, dict) and key not in _TOPIC:
                    raise ConfigurationError(
                        f'{origin}: {key!r} is a table; a name with dots needs quotes: [topics."{name}.{key}"]'
                    )
                self._key(key, raw, _TOPIC, origin, _TOPIC)
            _named(check_topic_name, name, origin)
        for name, section in self._document.get("subscriptions", {}).items():
            self._check_subscription(name, section)

    def _check_subscription(self, name: str, section: Any) -> None:
        topic, dot, group = name.rpartition(".")
        if not dot:
            raise ConfigurationError(
                f'{self._label} [subscriptions.{name}]: expected [subscriptions."<topic>.<group>"], in quotes'
            )
        origin = f'{self._label} [subscriptions."{name}"]'
        _named(check_topic_name, topic, origin)
        _named(check_group_name, group, origin)
        for key, raw in _table(section, origin).items():
            check_keys(key, raw, origin)
            if not _has_variable(raw):
                check_from_file(key, raw, origin)

    def _key(self, key: str, raw: Any, known: Mapping[str, Any], origin: str, names: Collection[str]) -> None:
        if key not in known:
            raise ConfigurationError(f"{origin}: there is no key {key!r}{nearest(key, names)}")
        if not _has_variable(raw):
            _checked(key, raw, origin)

    def _expand(self, raw: Any, key: str, origin: str) -> Any:
        if isinstance(raw, Mapping):
            return {k: self._expand(v, k, f"{origin} {key}") for k, v in cast(Mapping[str, Any], raw).items()}
        if not _has_variable(raw):
            return raw

        def variable(found: re.Match[str]) -> str:
            name, default = found[1], found[2]
            if found[0].startswith("$$"):
                return found[0][1:]
            if name is None or not found[0].endswith("}"):
                raise ConfigurationError(
                    f"{origin}: {key} has a '${{' that is neither ${{NAME}} nor ${{NAME:-default}}"
                )
            value = self._environ.get(name)
            if value or (value is not None and default is None):
                return value
            if default is None:
                raise ConfigurationError(
                    f"{origin}: {key} needs the environment variable {name}, which is not set: set it, or write "
                    f"${{{name}:-default}}"
                )
            return default

        text = _VARIABLE.sub(variable, raw)
        return text if key in _TEXTS else _literal(text)


# ---- reading --------------------------------------------------------------------------------------------------------


def _read(path: str | PathLike[str]) -> dict[str, Any]:
    import tomllib
    from pathlib import Path

    try:
        return tomllib.loads(Path(path).read_bytes().decode())
    except FileNotFoundError:
        raise ConfigurationError(f"there is no configuration file {str(path)!r}") from None
    except OSError as error:
        raise ConfigurationError(f"configuration file {str(path)!r} cannot be read: {error.strerror}") from error
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError
        raise ConfigurationError(f"configuration file {str(path)!r} is no TOML: {error}") from None


def _table(raw: Any, origin: str) -> dict[str, Any]:
    if not isinstance(raw, Mapping):
        raise ConfigurationError(f"{origin} is {raw!r}; expected a table")
    return dict(cast(Mapping[str, Any], raw))


def _named(check: Callable[[object], str], name: str, origin: str) -> None:
    try:
        check(name)
    except ConfigurationError as error:
        raise ConfigurationError(f"{origin}: {error}") from None


def _quoted(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else f'"{name}"'


def _has_variable(raw: Any) -> bool:
    if isinstance(raw, Mapping):
        return any(map(_has_variable, cast(Mapping[str, Any], raw).values()))
    return isinstance(raw, str) and "${" in raw


def _literal(text: str) -> Any:
    """What a variable's text means where no text is expected."""
    if text in ("true", "false"):
        return text == "true"
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


# ---- values of buses and topics -------------------------------------------------------------------------------------


def _checked(key: str, value: Any, origin: str) -> Any:
    expected, convert = (_BUS | _TOPIC)[key]
    try:
        return convert(value)
    except (ValueError, ConfigurationError):
        shown = redact(value) if key == "url" and isinstance(value, str) else value
        raise ConfigurationError(f"{origin}: {key} is {shown!r}; expected {expected}") from None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value


def _filled(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError
    return value


def _duration(value: Seconds) -> float:
    found = seconds(value)
    if not 0 <= found < float("inf"):
        raise ValueError
    return found


def _retention(value: Seconds) -> float:
    if not _duration(value):
        raise ValueError
    return seconds(value)


def _order(value: Any) -> str:
    if value not in ORDERS:
        raise ValueError
    return str(value)


def _provision(value: Any) -> str:
    if value not in ("create", "check", "off"):
        raise ValueError
    return str(value)


def _partitions(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError
    return value


_BUS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "url": ("a broker URL such as sqlite:///app.db", _filled),
    "namespace": ("text that every physical name starts with", _text),
    "grace": ("seconds, 0 or more", _duration),
    "provision": ("one of 'create', 'check', 'off'", _provision),
}
_TOPIC: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "order": ("one of 'none', 'key', 'total'", _order),
    "partitions": ("a whole number, 1 or more", _partitions),
    "retention": ("seconds, more than 0", _retention),
}
_TEXTS = frozenset(
    ("url", "namespace", "provision", "order", "delivery", "start", "unhandled", "topic", "after", "name")
)
