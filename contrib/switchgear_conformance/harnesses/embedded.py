"""Transports that live in the process: there is nothing to start."""

from __future__ import annotations

import secrets
import sqlite3
from dataclasses import dataclass
from importlib.metadata import version

from switchgear_conformance.harness import Harness, Setup


@dataclass(frozen=True)
class Place:
    """A URL, and nothing that runs."""

    url: str
    version: str

    def close(self) -> None:
        """Nothing was started."""


def memory_place(setup: Setup) -> Place:
    own = f"memory://conformance-{secrets.token_hex(6)}"
    return Place(setup.url if setup.url not in ("", "memory://") else own, version("switchgear"))


def sqlite_place(setup: Setup) -> Place:
    own = f"sqlite:///{setup.folder}/conformance.db"
    return Place(setup.url if setup.url not in ("", "sqlite://") else own, sqlite3.sqlite_version)


def a_folder(url: str) -> str:
    """The folder of a database, which is none."""
    return url.partition("?")[0].rpartition("/")[0]


memory = Harness(
    name="memory", start=memory_place, embedded=True, virtual=True, storage="none",
    native="switchgear_memory.group.Stored",
)  # fmt: skip
sqlite = Harness(
    name="sqlite", start=sqlite_place, embedded=True, storage="WAL, synchronous=FULL: fsync per commit",
    dead=a_folder, native="switchgear_sqlite.store.Stored",
)  # fmt: skip
