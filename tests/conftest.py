"""What every test relies on: no setting of the developer's machine reaches it."""

from __future__ import annotations

import asyncio
import signal

import pytest
from hypothesis import HealthCheck, settings

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what it runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # else processes under test would not hear Ctrl-C

# How long an example takes says how busy the machine is, and nothing of the code.
settings.register_profile("switchgear", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("switchgear")

pytest_plugins = ["tests.brokers.fixtures", "tests.brokers.kafka_fixtures"]


def pytest_configure() -> None:
    """Without this pytest-asyncio makes, before the first test, a loop that nobody closes."""
    asyncio.set_event_loop(None)


@pytest.fixture(autouse=True)
def no_outer_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker URL or a configuration file of the shell would silently move the tests somewhere else."""
    monkeypatch.delenv("SWITCHGEAR_URL", raising=False)
    monkeypatch.delenv("SWITCHGEAR_CONFIG", raising=False)
