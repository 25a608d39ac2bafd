"""Where the contract's tests get their brokers: one entry a broker, found by name, started when first used."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

from tests.brokers.fixtures import ADDRESS, not_run

Begun = tuple[str, Callable[[], None]]
"""The broker's URL, and how it is stopped."""


def memory(_: Path) -> Begun:
    return f"memory://conformance-{secrets.token_hex(4)}", lambda: None


def sqlite(folder: Path) -> Begun:
    return f"sqlite:///{folder}/conformance.db", lambda: None


def redis(version: str) -> Callable[[Path], Begun]:
    def start(folder: Path) -> Begun:
        if ADDRESS:
            return ADDRESS, lambda: None
        from tests.brokers import redis_server
        from tests.brokers.broker import Broker, NotRun

        try:
            broker = Broker(redis_server.redis(version), folder)
        except NotRun as reason:
            not_run(str(reason))
            raise
        broker.start()
        return broker.url, broker.close

    return start


HARNESSES: dict[str, Callable[[Path], Begun]] = {
    "memory": memory,
    "sqlite": sqlite,
    **({"redis": redis("")} if ADDRESS else {"redis8": redis("8"), "redis7": redis("7")}),
}
"""By name; the name without digits is the marker of its tests."""
