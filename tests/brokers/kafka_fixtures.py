"""Fixtures that give tests a real Kafka; a machine that lacks Java is reported as not run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from . import kafka_server as recipes
from .broker import Broker, NotRun
from .fixtures import Server, not_run

ADDRESS = os.environ.get("SWITCHGEAR_TEST_KAFKA", "")
"""A Kafka to use instead of local processes; tests that kill, pause or configure a server are then not run."""

OwnKafka = Callable[..., Broker]


@pytest.fixture(scope="session")
def kafka_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A Kafka for the whole session, for tests that keep to names of their own (`namespace`)."""
    if ADDRESS:
        yield Server(ADDRESS, "as given")
        return
    try:
        broker = Broker(recipes.kafka(), tmp_path_factory.mktemp("kafka-"))
    except NotRun as reason:
        not_run(str(reason))
        return
    broker.start()
    try:
        yield Server(broker.url, broker.version)
        broker.stop()
    finally:
        broker.close()


def by(engine: str, url: str) -> str:
    """The URL with this client."""
    return f"{url}{'&' if '?' in url else '?'}client={engine}"


@pytest.fixture(params=["aiokafka", "confluent"])
def engine(request: pytest.FixtureRequest) -> str:
    """Each client of Kafka in turn."""
    name: str = request.param
    pytest.importorskip("confluent_kafka" if name == "confluent" else name)
    return name


@pytest.fixture
def kafka(engine: str, kafka_broker: Server) -> Server:
    """The Kafka of the session with each client in turn."""
    return Server(by(engine, kafka_broker.url), kafka_broker.version)


@pytest.fixture(scope="session")
def shaky_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A Kafka that tests kill, pause and restart, one after the other; each leaves it running."""
    if ADDRESS:
        pytest.skip("not run: SWITCHGEAR_TEST_KAFKA names a server, which this test would have to kill")
    try:
        # else its controller takes a node that was paused for dead, some time after it goes on
        recipe = recipes.kafka({"broker.session.timeout.ms": "6000"})
        broker = Broker(recipe, tmp_path_factory.mktemp("shaky-kafka-"))
    except NotRun as reason:
        not_run(str(reason))
        return
    broker.start()
    yield broker
    broker.close()


@pytest.fixture
def own_kafka(tmp_path: Path) -> Iterator[OwnKafka]:
    """Start brokers for this test alone: `own_kafka({"message.max.bytes": "9000"})`; they end with it."""
    if ADDRESS:
        pytest.skip("not run: SWITCHGEAR_TEST_KAFKA names a server, which this test would have to kill or configure")
    started: list[Broker] = []
    numbers = count()  # several may be started at the same time, from threads

    def start(*given: Any, **options: Any) -> Broker:
        try:
            recipe = recipes.kafka(*given, **options)
        except NotRun as reason:
            not_run(str(reason))
            raise
        folder = tmp_path / f"kafka-{next(numbers)}"
        folder.mkdir()
        broker = Broker(recipe, folder)
        started.append(broker)
        return broker.start()

    yield start
    for broker in started:
        broker.close()
