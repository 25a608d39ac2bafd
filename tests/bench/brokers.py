"""Starting what a workload needs, through the tests' own brokers."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from tests.brokers import redis_server
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


BROKERS: Mapping[str, Callable[[Path], AbstractContextManager[str]]] = {"redis": redis}
