"""Starting what a workload needs, through the tests' own brokers."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from tests.brokers import kafka_server, redis_server
from tests.brokers.broker import Broker


@contextmanager
def redis(folder: Path) -> Generator[str]:
    """The URL of a Redis 8 without persistence, which leaves the clients as the slower part."""
    given = os.environ.get("SWITCHGEAR_TEST_REDIS")
    if given:
        yield given
        return
    broker = Broker(redis_server.redis("8", {"appendonly": "no"}), folder)
    broker.start()
    try:
        yield broker.url
    finally:
        broker.close()


@contextmanager
def kafka(folder: Path) -> Generator[str]:
    """The URL of one Kafka node in KRaft mode."""
    given = os.environ.get("SWITCHGEAR_TEST_KAFKA")
    if given:
        yield given
        return
    broker = Broker(kafka_server.kafka(), folder)
    broker.start()
    try:
        yield broker.url
    finally:
        broker.close()


BROKERS: Mapping[str, Callable[[Path], AbstractContextManager[str]]] = {"redis": redis, "kafka": kafka}
