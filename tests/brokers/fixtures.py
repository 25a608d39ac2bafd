"""Fixtures that give tests real brokers; a broker that this machine lacks is reported as not run."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from . import redis_server as recipes
from .broker import Broker, NotRun

if TYPE_CHECKING:
    from .certificates import Certificates

ADDRESS = os.environ.get("SWITCHGEAR_TEST_REDIS", "")
"""A Redis to use instead of local processes; tests that kill, pause or configure a server are then not run."""


@dataclass(frozen=True)
class Server:
    """A running Redis that tests share."""

    url: str
    version: str


OwnRedis = Callable[..., Broker]


def not_run(reason: str) -> None:
    """Skip, or fail where `SWITCHGEAR_REQUIRE_BROKERS=1` says that every broker has to be there."""
    if os.environ.get("SWITCHGEAR_REQUIRE_BROKERS") == "1":
        pytest.fail(f"SWITCHGEAR_REQUIRE_BROKERS=1 and a broker is missing: {reason}", pytrace=False)
    pytest.skip(f"not run: {reason}")


@pytest.fixture(scope="session", params=["address"] if ADDRESS else recipes.VERSIONS)
def redis_version(request: pytest.FixtureRequest) -> str:
    """ "8" and "7" in turn, or "address" where a server is given."""
    return str(request.param)


@pytest.fixture(scope="session")
def redis_server(redis_version: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A Redis for the whole session, for tests that keep to names of their own (`namespace`)."""
    if ADDRESS:
        yield Server(ADDRESS, "as given")
        return
    try:
        broker = Broker(recipes.redis(redis_version), tmp_path_factory.mktemp(f"redis{redis_version}-"))
    except NotRun as reason:
        not_run(str(reason))
        return
    broker.start()
    try:
        yield Server(broker.url, broker.version)
        broker.stop()
    finally:
        broker.close()


@pytest.fixture
def own_redis(redis_version: str, tmp_path: Path) -> Iterator[OwnRedis]:
    """Start servers for this test alone: `own_redis({"maxmemory": "4mb"})`; they end with it."""
    if ADDRESS:
        pytest.skip("not run: SWITCHGEAR_TEST_REDIS names a server, which this test would have to kill or configure")
    started: list[Broker] = []

    def start(settings: Mapping[str, str] | None = None, *, password: str = "", tls: bool = False) -> Broker:
        try:
            recipe = recipes.redis(redis_version, settings, password=password, tls=tls)
        except NotRun as reason:
            not_run(str(reason))
            raise
        folder = tmp_path / f"redis-{len(started)}"
        folder.mkdir()
        broker = Broker(recipe, folder)
        started.append(broker)
        return broker.start()

    yield start
    for broker in started:
        broker.close()


@pytest.fixture
def namespace() -> str:
    """A prefix for the names of one test."""
    return f"t{secrets.token_hex(4)}."


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """A certificate authority, and a certificate for 127.0.0.1."""
    from .certificates import certificates

    return certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def other_authority(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """An authority that signed nothing of the server's."""
    from .certificates import certificates

    return certificates(tmp_path_factory.mktemp("other-certificates"))
