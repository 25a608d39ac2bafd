"""One real broker as a child process: start, stop, kill, pause, resume, restart on the same data."""

from __future__ import annotations

import atexit
import ctypes
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from .harness import Address, BrokerFailed

HOST = "127.0.0.1"
LOG_TAIL = 30  # lines of the log that an error shows


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one kind of broker is started. `ports` in its callables are the free ports that were chosen."""

    name: str
    version: str
    command: Callable[[Sequence[int], Path], Sequence[str]]
    """From ports and data folder to the command line."""
    url: Callable[[Sequence[int]], str]
    ready: Callable[[Sequence[int], str], bool]
    """One attempt to find it ready by its own protocol, from ports and this start's log; OSError counts as not yet."""
    ports: int = 1
    patience: float = 20.0
    """Seconds until it must be ready, and until it must have stopped."""
    stop_signal: signal.Signals = signal.SIGTERM
    environment: Mapping[str, str] = field(default_factory=dict[str, str])


class Server:
    """A broker of a recipe in a folder of its own. Every method blocks; a test may call them from its event loop."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.recipe = recipe
        self.folder = folder
        self.log = folder / f"{recipe.name}.log"
        self.ports: tuple[int, ...] = tuple(free_ports(recipe.ports))
        self._process: subprocess.Popen[bytes] | None = None
        self._paused = False
        self._logged = 0
        # The kernel ends the child with the thread that forked it, so that thread has to live as long as the broker.
        self._spawner = ThreadPoolExecutor(1, thread_name_prefix=recipe.name)

    def __repr__(self) -> str:
        return f"<{self.recipe.name} {self.version} on {self.ports}>"

    @property
    def url(self) -> str:
        return self.recipe.url(self.ports)

    @property
    def version(self) -> str:
        return self.recipe.version

    @property
    def upstream(self) -> Sequence[Address]:
        """Where it listens itself."""
        return [(HOST, port) for port in self.ports]

    def through(self, addresses: Sequence[Address]) -> str:
        """The URL of clients that come through these addresses, of the same host, instead."""
        return self.recipe.url([port for _, port in addresses])

    @property
    def pid(self) -> int:
        return self._running().pid

    def start(self) -> Server:
        """Start and wait until it is ready; raises BrokerFailed as soon as it exits or its patience is over."""
        if self._process is not None:
            raise BrokerFailed(f"{self} was started already")
        for port in self.ports:
            refuse_busy(port)
        data = self.folder / "data"
        data.mkdir(parents=True, exist_ok=True)
        command = list(self.recipe.command(self.ports, data))
        self._logged = self.log.stat().st_size if self.log.exists() else 0
        self._process = self._spawner.submit(self._spawn, command).result()
        atexit.register(self.close)
        try:
            self._wait_ready()
        except BaseException:
            self.kill()
            raise
        return self

    def stop(self) -> None:
        """End it the broker's own way, and by SIGKILL when that takes longer than its patience."""
        if self._process is None:
            return
        self.resume()
        self._signal(self.recipe.stop_signal)
        try:
            self._process.wait(self.recipe.patience)
        except subprocess.TimeoutExpired:
            self.kill()
            raise BrokerFailed(f"{self} did not stop within {self.recipe.patience:g} s{self._tail()}") from None
        self._forget()

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        if self._process is None:
            return
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._forget()

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        self._running()
        self._signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)  # until every thread has stopped
        self._paused = True

    def resume(self) -> None:
        """SIGCONT after `pause`."""
        if self._paused:
            self._signal(signal.SIGCONT)
            self._paused = False

    def restart(self) -> Server:
        """Stop if it runs, then start on the same ports and data."""
        self.stop()
        return self.start()

    def close(self) -> None:
        """Kill what still runs and give everything back; the data folder is the caller's."""
        self.kill()
        self._spawner.shutdown()

    def _spawn(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder, start_new_session=True,
                env={**os.environ, **self.recipe.environment}, preexec_fn=die_with_parent(),  # noqa: PLW1509 (it makes one system call and takes no lock)
            )  # fmt: skip

    def _wait_ready(self) -> None:
        limit = time.monotonic() + self.recipe.patience
        while True:
            code = self._running().poll()
            if code is not None:
                raise BrokerFailed(f"{self} exited with {code} before it was ready{self._tail()}")
            try:
                if self.recipe.ready(self.ports, self._said()):
                    return
            except OSError:
                pass  # nobody listens yet
            if time.monotonic() > limit:
                raise BrokerFailed(f"{self} was not ready within {self.recipe.patience:g} s{self._tail()}")
            time.sleep(0.01)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise BrokerFailed(f"{self} is not running")
        return self._process

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):  # it has ended already; wait() collects it
            os.killpg(self._running().pid, number)  # a session of its own: launchers and their children alike

    def _forget(self) -> None:
        self._process, self._paused = None, False
        atexit.unregister(self.close)

    def _said(self) -> str:
        with self.log.open("rb") as log:
            log.seek(self._logged)
            return log.read().decode(errors="replace")

    def _tail(self) -> str:
        lines = self._said().splitlines()[-LOG_TAIL:]
        return ":\n" + "\n".join(lines) if lines else "; it logged nothing"


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface on which nobody listens.

    Below those that systems take for outgoing connections (from 32768 on): among them a client that tries to reconnect
    could be given the very port of the server that it waits for.
    """
    found: set[int] = set()
    while len(found) < count:
        port = 10_000 + secrets.randbelow(22_000)
        with socket.socket() as s:
            try:
                s.bind((HOST, port))
            except OSError:
                continue
        found.add(port)
    return list(found)


def refuse_busy(port: int) -> None:
    """A leftover server would answer in the place of the new one. Raises BrokerFailed if somebody listens there."""
    with socket.socket() as s:
        s.settimeout(1.0)
        if s.connect_ex((HOST, port)) == 0:
            raise BrokerFailed(f"port {port} is in use by another process")


def die_with_parent() -> Callable[[], None] | None:
    """For the child: be killed when this process ends, however it ends. On Linux; elsewhere `atexit` has to do."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl  # looked up before the fork
    return lambda: prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
