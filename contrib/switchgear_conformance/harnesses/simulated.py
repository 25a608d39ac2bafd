"""The kit's own server, to which everything can be done on any machine."""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

import msgspec

from switchgear_conformance.harness import Harness, Setup
from switchgear_conformance.schemes import installed
from switchgear_conformance.server import HOST, Recipe, Server
from switchgear_conformance.simulated.protocol import LENGTH, Answer, Call, frame, raw


class SimulatedServer(Server):
    """Also Fillable."""

    def __init__(self, folder: Path) -> None:
        super().__init__(recipe(), folder)
        self._scheme = ExitStack()
        self._scheme.enter_context(installed(folder))

    def fill(self) -> None:
        ask(self.ports[0], "fill")

    def free(self) -> None:
        ask(self.ports[0], "free")

    def close(self) -> None:
        super().close()
        self._scheme.close()


def recipe() -> Recipe:
    """A process that serves a file of SQLite, which it syncs at every commit."""

    def command(ports: Sequence[int], data: Path) -> Sequence[str]:
        module = "switchgear_conformance.simulated.serving"
        return [sys.executable, "-m", module, str(ports[0]), f"sqlite:///{data}/broker.db"]

    def ready(ports: Sequence[int], said: str) -> bool:
        ask(ports[0], "ping")
        return True

    return Recipe(
        name="simulated", version=version("switchgear"), command=command, ready=ready,
        url=lambda ports: f"simulated://{HOST}:{ports[0]}",
    )  # fmt: skip


def ask(port: int, method: str) -> None:
    """Call the server and wait for its answer. Raises OSError."""
    with socket.create_connection((HOST, port), timeout=5.0) as connection, connection.makefile("rb") as answers:
        connection.sendall(frame(Call(1, method, raw(()))))
        head = answers.read(LENGTH.size)
        if len(head) < LENGTH.size:
            raise ConnectionError(f"the server hung up on {method!r}")
        msgspec.msgpack.decode(answers.read(LENGTH.unpack(head)[0]), type=Answer)


def start(setup: Setup) -> SimulatedServer:
    server = SimulatedServer(Path(setup.folder))
    try:
        server.start()
    except BaseException:
        server.close()
        raise
    return server


simulated = Harness(
    name="simulated", start=start, emulator=True, storage="SQLite: WAL, synchronous=FULL: fsync per commit",
    native="switchgear_conformance.simulated.protocol.Received",
    powers=frozenset({"kill", "pause", "restart", "proxy", "disk"}),
)  # fmt: skip
