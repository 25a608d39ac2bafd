"""Redis as a child process: 8 from a wheel, or 7 of the distribution."""

from __future__ import annotations

import socket
from pathlib import Path

from switchgear_conformance.harness import Harness, NotRun, Setup
from switchgear_conformance.server import HOST, Server

from . import redis_server

STORAGE = "appendonly yes, appendfsync always"
NATIVE = "builtins.list"  # the entry's fields, names and values in turn


class RedisServer(Server):
    """Also Fillable."""

    def fill(self) -> None:
        """No more memory than it has."""
        self._configure("maxmemory", "1")

    def free(self) -> None:
        self._configure("maxmemory", "0")

    def _configure(self, name: str, value: str) -> None:
        with socket.create_connection((HOST, self.ports[0]), timeout=5.0) as connection:
            connection.sendall(f"CONFIG SET {name} {value}\r\n".encode())
            said = connection.recv(64)
        if not said.startswith(b"+OK"):
            raise OSError(f"CONFIG SET {name} {value}: {said!r}")


def _start(version: str, setup: Setup) -> RedisServer:
    folder = Path(setup.folder)
    server = RedisServer(redis_server.redis(version), folder)
    server.start()
    return server


def _redis8(setup: Setup) -> RedisServer:
    return _start("8", setup)


def _redis7(setup: Setup) -> RedisServer:
    return _start("7", setup)


def _any(setup: Setup) -> RedisServer:
    try:
        return _start("8", setup)
    except NotRun:
        return _start("7", setup)


POWERS = frozenset({"kill", "pause", "restart", "proxy", "disk"})

redis = Harness(name="redis", start=_any, storage=STORAGE, native=NATIVE, powers=POWERS)
redis8 = Harness(name="redis8", start=_redis8, storage=STORAGE, native=NATIVE, powers=POWERS)
redis7 = Harness(name="redis7", start=_redis7, storage=STORAGE, native=NATIVE, powers=POWERS)
