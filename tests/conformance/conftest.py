"""Every test of this folder runs on every broker of `harnesses.py`; one that can't be had is skipped, saying why."""

from __future__ import annotations

import asyncio
import gc
import secrets
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from switchgear.driver import Transport
from switchgear.plugins import open_transport

from .harnesses import HARNESSES

Another = Callable[[], Awaitable[Transport]]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "broker" in metafunc.fixturenames:
        names = [pytest.param(name, marks=getattr(pytest.mark, name.rstrip("0123456789"))) for name in HARNESSES]
        metafunc.parametrize("broker", names, indirect=True, scope="session")


@pytest.fixture(scope="session")
def broker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a broker that the tests share; each keeps to names of its own."""
    name: str = request.param
    url, stop = HARNESSES[name](tmp_path_factory.mktemp(name))
    yield url
    stop()


@pytest.fixture
def topic() -> str:
    return f"t{secrets.token_hex(4)}.orders"


@pytest.fixture
async def another(broker: str) -> AsyncIterator[Another]:
    """Open further transports to the same broker, as other processes would; they are closed with the test."""
    opened: list[Transport] = []

    async def connect() -> Transport:
        transport = open_transport(broker)
        opened.append(transport)
        await transport.connect(asyncio.get_running_loop().time() + 10)
        return transport

    yield connect
    for transport in reversed(opened):
        await transport.close()


@pytest.fixture
async def transport(another: Another) -> Transport:
    return await another()


@pytest.fixture
def leftovers() -> Callable[[], tuple[int, frozenset[threading.Thread], int]]:
    """Tasks, threads and file descriptors of this process."""

    def count() -> tuple[int, frozenset[threading.Thread], int]:
        gc.collect()
        return len(asyncio.all_tasks()), frozenset(threading.enumerate()), len(list(Path("/proc/self/fd").iterdir()))

    return count
