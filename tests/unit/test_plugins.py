"""Finding transports: by scheme, with errors that say what to do and show no secret."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from importlib.metadata import EntryPoint
from types import ModuleType
from typing import Any

import pytest

from switchgear import Bus, ConfigurationError, TransportNotFound, plugins
from switchgear.plugins import hookimpl, open_transport, redact, split
from switchgear_redis import RedisTuning


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[Any]]]:
    """Install a plugin for a scheme: a module whose hook notes what it was given."""
    real = metadata.entry_points
    entries = list(real(group=plugins.TRANSPORTS))

    def make(scheme: str, module: str, opened: object = "transport") -> list[Any]:
        given: list[Any] = []
        plugin = ModuleType(module)

        @hookimpl
        def open_transport(scheme: str, url: object, tuning: Sequence[object]) -> object:
            given.append((scheme, url, list(tuning)))
            return opened

        plugin.open_transport = open_transport  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module, plugin)
        entries.append(EntryPoint(scheme, module, plugins.TRANSPORTS))
        return given

    monkeypatch.setattr(
        metadata, "entry_points", lambda group: entries if group == plugins.TRANSPORTS else real(group=group)
    )
    plugins._transports.cache_clear()
    yield make
    plugins._transports.cache_clear()


def test_a_plugin_is_opened_by_its_scheme(install: Callable[..., list[Any]]) -> None:
    given = install("carrier", "switchgear_carrier")
    assert open_transport("carrier://user:pw@host:7/x?y=1") == "transport"
    ((scheme, url, _),) = given
    assert (scheme, url.hostname, url.port, url.path, url.query) == ("carrier", "host", 7, "/x", "y=1")


def test_two_plugins_that_claim_one_scheme_are_both_named(install: Callable[..., list[Any]]) -> None:
    install("carrier", "switchgear_carrier")
    install("carrier", "pigeons")
    with pytest.raises(
        ConfigurationError, match=r"two plugins claim the scheme carrier://.*switchgear_carrier.*pigeons"
    ):
        open_transport("carrier://host")


def test_a_plugin_that_is_listed_twice_is_one(install: Callable[..., list[Any]]) -> None:
    install("carrier", "switchgear_carrier")
    install("carrier", "switchgear_carrier")
    open_transport("carrier://host")


def test_a_plugin_that_does_not_open_its_scheme(install: Callable[..., list[Any]]) -> None:
    install("carrier", "switchgear_carrier", opened=None)
    with pytest.raises(TransportNotFound, match="switchgear_carrier is registered for carrier:// but did not open it"):
        open_transport("carrier://host")


def test_a_plugin_that_cannot_be_imported(install: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    install("carrier", "switchgear_carrier")
    monkeypatch.setitem(sys.modules, "switchgear_carrier", None)
    with pytest.raises(TransportNotFound, match="switchgear_carrier for carrier:// cannot be imported"):
        open_transport("carrier://host")


def test_tuning_goes_to_its_plugin_whatever_the_scheme_and_to_no_other(install: Callable[..., list[Any]]) -> None:
    class Tuned:
        def __init__(self, scheme: str) -> None:
            self.scheme = scheme

    plain, secure = install("carrier", "switchgear_carrier"), install("carriers", "switchgear_carrier")
    mine, other = Tuned("carrier"), Tuned("redis")
    open_transport("carrier://host", [mine, other, Tuned("kafka")])
    open_transport("carriers://host", [mine, other])
    given = [*plain, *secure]
    assert [tuning for _, _, tuning in given] == [[mine], [mine]]


def test_redis_tuning_is_for_tls_as_well() -> None:
    assert plugins.tunes(RedisTuning().scheme, "rediss")
    assert not plugins.tunes(RedisTuning().scheme, "memory")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redsi://host", "did you mean redis://"),
        ("amqp://host", "no transport serves the scheme amqp://; installed: .*memory://"),
        ("nats://host", r"planned.*switchgear\[nats\]"),
        ("pulsar+ssl://host", r"planned.*switchgear\[pulsar\]"),
    ],
)
def test_a_scheme_that_nobody_serves(url: str, says: str) -> None:
    with pytest.raises(TransportNotFound, match=says):
        open_transport(url)


def test_a_missing_client_says_which_extra_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name == "redis" or name.startswith(("redis.", "switchgear_redis"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(TransportNotFound, match=r"pip install 'switchgear\[redis\]'"):
        open_transport("redis://host")


@pytest.mark.parametrize("url", ["localhost:6379", "redis:/host", "", "redis", "://host"])
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(ConfigurationError, match="malformed broker URL"):
        split(url)


@pytest.mark.parametrize(
    "url",
    [
        "redis://user:hunter2@host:port/0",
        "redis://:hunter2/x@host/0",
        "redis://:hunter2#x@host/0",
        "redis://user:hunter2",
        "redis://host:hunter2/0",
        "redis://user:hunter2@[::1/0",
        "user:hunter2@host",
    ],
)
async def test_a_malformed_url_shows_no_password(url: str) -> None:
    with pytest.raises(ConfigurationError, match="malformed broker URL") as caught:
        await Bus(url, config={}).__aenter__()
    assert "hunter2" not in str(caught.value)
    assert caught.value.__context__ is None or caught.value.__suppress_context__, "the standard library's text holds it"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://user:hunter2@host:6379/0", "redis://user:***@host:6379/0"),
        ("redis://:hunter2@host", "redis://:***@host"),
        ("nats://token@host", "nats://***@host"),
        ("redis://u:p@ss@host", "redis://u:***@host"),
        ("redis://:hunter2@host?x=a@b", "redis://:***@b"),
        ("kafka://host?sasl_password=a&api_key=b&linger=1", "kafka://host?sasl_password=***&api_key=***&linger=1"),
        ("sqlite:///app.db?wal=1", "sqlite:///app.db?wal=1"),
    ],
)
def test_redacted_urls(url: str, shown: str) -> None:
    assert redact(url) == shown
