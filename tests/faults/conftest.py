"""The brokers of fault tests: a file, or a Redis or Kafka that a test may kill."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.brokers.broker import Broker
from tests.brokers.fixtures import OwnRedis, own_redis
from tests.brokers.kafka_fixtures import OwnKafka, own_kafka

__all__ = ["own_kafka", "own_redis"]

LEASE = 3.0
ENDLESS = 3600.0
"""A lease that ends in no test: what comes again did not wait for that, and no stall of the machine brings it."""


@dataclass(frozen=True)
class Place:
    """A broker for one test."""

    url: str
    server: Broker | None = None
    """None for a file, which has no process of its own."""


Places = Callable[[], Place]

ANYWHERE = [
    *(pytest.param(name, marks=getattr(pytest.mark, name)) for name in ("sqlite", "redis", "kafka")),
    pytest.param("kafka+confluent", marks=pytest.mark.kafka),
]
"""For `any_place`, with both clients of Kafka."""


@pytest.fixture(scope="session")
def redis_version() -> str:
    """One version is enough here; the conformance tests run with both."""
    return os.environ.get("SWITCHGEAR_FAULTS_REDIS", "8")


@pytest.fixture(
    params=[pytest.param("sqlite", marks=pytest.mark.sqlite), pytest.param("redis", marks=pytest.mark.redis)]
)
def places(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Places]:
    """A new broker at each call."""
    if request.param == "redis":
        start: OwnRedis = request.getfixturevalue("own_redis")

        def redis() -> Place:
            broker = start()
            return Place(broker.url, broker)

        yield redis
        return
    made = iter(range(1000))

    def sqlite() -> Place:
        return Place(f"sqlite:///{tmp_path / f'broker-{next(made)}.db'}")

    yield sqlite


@pytest.fixture
def place(places: Places) -> Place:
    """A broker for this test alone."""
    return places()


@pytest.fixture(
    params=[
        pytest.param("sqlite", marks=pytest.mark.sqlite),
        pytest.param("redis", marks=pytest.mark.redis),
        pytest.param("kafka", marks=pytest.mark.kafka),
    ]
)
def any_place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A broker for this test alone; also Kafka, which takes some seconds to start."""
    if request.param == "sqlite":
        return Place(f"sqlite:///{tmp_path / 'broker.db'}")
    server, _, client = request.param.partition("+")
    start: OwnRedis | OwnKafka = request.getfixturevalue(f"own_{server}")
    broker = start()
    return Place(f"{broker.url}?client={client}" if client else broker.url, broker)
