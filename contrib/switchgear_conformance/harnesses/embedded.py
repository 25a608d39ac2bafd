"""Transports that live in the process: there is nothing to start."""

from __future__ import annotations

import secrets
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from urllib.parse import unquote, urlsplit

from switchgear_conformance.harness import Harness, Setup

FILLING = 4 << 20  # bytes


@dataclass(frozen=True)
class Place:
    """A URL, and nothing that runs."""

    url: str
    version: str

    def close(self) -> None:
        """Nothing was started."""


class File:
    """A SQLite file. Fillable: what opens it while it is full can store nothing in it, nor in what becomes free."""

    version = sqlite3.sqlite_version

    def __init__(self, url: str) -> None:
        self._url = self.url = url
        self._path = unquote(urlsplit(url).path)[1:]

    def fill(self) -> None:
        """Take room, and let the URL say that the file has reached its most pages (`max_page_count`)."""
        with closing(sqlite3.connect(self._path, timeout=10.0)) as db:
            db.execute("CREATE TABLE filling AS SELECT zeroblob(?)", (FILLING,))
            db.commit()
            (pages,) = db.execute("PRAGMA page_count").fetchone()
        self.url = f"{self._url}{'&' if '?' in self._url else '?'}max_page_count={pages}"

    def free(self) -> None:
        """Give that room back, which is then free inside the file."""
        with closing(sqlite3.connect(self._path, timeout=10.0)) as db:
            db.execute("DROP TABLE filling")
            db.commit()
        self.url = self._url

    def close(self) -> None:
        """Nothing was started."""


def memory_place(setup: Setup) -> Place:
    own = f"memory://conformance-{secrets.token_hex(6)}"
    return Place(setup.url if setup.url not in ("", "memory://") else own, version("switchgear"))


def sqlite_place(setup: Setup) -> File:
    own = f"sqlite:///{setup.folder}/conformance.db"
    return File(setup.url if setup.url not in ("", "sqlite://") else own)


def a_folder(url: str) -> str:
    """The folder of a database, which is none."""
    return url.partition("?")[0].rpartition("/")[0]


memory = Harness(
    name="memory", start=memory_place, embedded=True, virtual=True, storage="none",
    native="switchgear_memory.group.Stored",
)  # fmt: skip
sqlite = Harness(
    name="sqlite", start=sqlite_place, embedded=True, storage="WAL, synchronous=FULL: fsync per commit",
    dead=a_folder, native="switchgear_sqlite.store.Stored", powers=frozenset({"disk"}),
)  # fmt: skip
