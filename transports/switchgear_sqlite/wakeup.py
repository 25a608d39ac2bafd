"""Noticing what other processes have committed, and what falls due, while sources wait.

`PRAGMA data_version` changes when another connection has committed (https://www.sqlite.org/pragma.html): a few
microseconds, asked for only while somebody waits. On a change each waiting source's question is put to the file, and
only those with an answer are woken.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable

Question = Callable[[sqlite3.Connection], float | None]
"""When there is something, unix seconds (0: now); None: nothing is known to come."""


class Waiter:
    """A source that waits; made on the loop, asked about on the reader's thread."""

    __slots__ = ("future", "question", "since", "when")

    def __init__(self, question: Question, future: asyncio.Future[None]) -> None:
        self.question, self.future = question, future
        self.since = -1  # the version of the file for which `when` holds
        self.when: float | None = None


class Watch:
    """The waiting sources of a transport."""

    def __init__(self, poll: float) -> None:
        self._poll = poll
        self._loop = asyncio.get_running_loop()
        self._waiters: dict[Waiter, None] = {}

    def add(self, waiter: Waiter) -> None:
        """Ask from now on; the reader's thread must be told to look."""
        self._waiters[waiter] = None

    def remove(self, waiter: Waiter) -> None:
        """Ask no more."""
        self._waiters.pop(waiter, None)

    def wake_all(self) -> None:
        """Something was committed here: let everybody look. On the loop."""
        for waiter in list(self._waiters):
            _wake(waiter)

    def look(self, db: sqlite3.Connection) -> float | None:
        """Ask for everybody who waits; on the reader's thread. Returns the seconds to the next look."""
        waiters = list(self._waiters)
        if not waiters:
            return None
        try:
            (version,) = db.execute("PRAGMA data_version").fetchone()
            for waiter in waiters:
                if waiter.since != version:
                    waiter.when = waiter.question(db)
                    waiter.since = version
        except sqlite3.Error:
            for waiter in waiters:  # the claim that follows says what is wrong
                waiter.when = 0.0
        now = time.time()
        due = [waiter for waiter in waiters if waiter.when is not None and waiter.when <= now]
        if due:
            for waiter in due:
                self.remove(waiter)
            try:
                self._loop.call_soon_threadsafe(_wake, *due)
            except RuntimeError:  # the loop is gone
                return None
        return self._poll


def _wake(*waiters: Waiter) -> None:
    for waiter in waiters:
        if not waiter.future.done():
            waiter.future.set_result(None)
