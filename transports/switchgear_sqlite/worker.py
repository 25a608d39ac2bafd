"""A thread with a connection of its own: the loop hands it jobs and never waits for the disk."""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from switchgear.errors import Unavailable

from .schema import unopened

T = TypeVar("T")
Call = Callable[[sqlite3.Connection], T]
TOGETHER = 64  # jobs taken at once


class Job:
    """What to do with the connection, and who waits for it."""

    __slots__ = ("call", "future", "give_up", "sending")

    def __init__(self, call: Call[Any], future: asyncio.Future[Any], give_up: float, sending: bool) -> None:
        self.call, self.future, self.give_up, self.sending = call, future, give_up, sending


class Outcome(NamedTuple):
    """What to tell who waits."""

    future: asyncio.Future[Any]
    result: Any = None
    error: Exception | None = None


Execute = Callable[[sqlite3.Connection, Sequence[Job]], list[Outcome]]


class Worker:
    """Runs jobs on one thread, in order; in between it may look around."""

    def __init__(
        self,
        path: str,
        opens: Callable[[], sqlite3.Connection],
        execute: Execute,
        patience: float,
        look: Callable[[sqlite3.Connection], float | None] = lambda _: None,
    ) -> None:
        """`look` is called when no job waits, and says after how many seconds again (None: after the next job)."""
        self._path, self._opens, self._execute, self._patience, self._look = path, opens, execute, patience, look
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._poke = Job(lambda _: None, self._loop.create_future(), 0.0, False)
        self._poke.future.cancel()  # so that it is dropped
        self._opened: asyncio.Future[Any] = self._loop.create_future()
        self._ended: asyncio.Future[Any] = self._loop.create_future()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"switchgear-sqlite {path}", daemon=True)

    async def start(self) -> None:
        """Open the connection. Raises ConfigurationError, Refused or Unavailable."""
        self._thread.start()
        try:
            await self._opened
        except BaseException:
            await self.close()
            raise

    async def run(self, call: Call[T], *, sending: bool = False, within: float | None = None) -> T:
        """Run a job and return what it returns; wait `within` seconds for the file's lock (default `busy_timeout`).

        Raises what the job raises, errors of SQLite as `schema.explained` says.
        """
        if self._closed:
            raise Unavailable(f"sqlite:///{self._path} is closed")
        patience = self._patience if within is None else min(self._patience, within)
        future: asyncio.Future[T] = self._loop.create_future()
        self._jobs.put(Job(call, future, time.monotonic() + patience, sending))
        return await future

    def poke(self) -> None:
        """Look around now."""
        self._jobs.put(self._poke)

    async def close(self) -> None:
        """Do what is waiting, close the connection, end the thread."""
        if not self._closed:
            self._closed = True
            self._jobs.put(None)
        await asyncio.shield(self._ended)
        self._thread.join()

    # ---- on the thread

    def _run(self) -> None:
        try:
            db = self._open()
        except Exception as error:  # noqa: BLE001  (whatever it is, it belongs to who waits)
            self._tell([Outcome(self._opened, error=error), Outcome(self._ended)])
            return
        self._tell([Outcome(self._opened)])
        try:
            self._work(db)
        finally:
            db.close()
            self._tell([Outcome(self._ended)])

    def _open(self) -> sqlite3.Connection:
        try:
            return self._opens()
        except sqlite3.Error as error:
            raise unopened(self._path, error) from error

    def _work(self, db: sqlite3.Connection) -> None:
        while True:
            wait = self._look(db)
            try:
                job = self._jobs.get(timeout=wait)
            except queue.Empty:
                continue
            jobs: list[Job] = []
            while job is not None:
                if not job.future.cancelled():
                    jobs.append(job)
                if len(jobs) == TOGETHER or self._jobs.empty():
                    break
                job = self._jobs.get()
            if jobs:
                self._tell(self._execute(db, jobs))
            if job is None:
                return

    def _tell(self, outcomes: list[Outcome]) -> None:
        try:
            self._loop.call_soon_threadsafe(_resolve, outcomes)
        except RuntimeError:  # the loop is gone, and with it whoever waited
            return


def _resolve(outcomes: list[Outcome]) -> None:
    for outcome in outcomes:
        if outcome.future.done():
            continue
        if outcome.error is not None:
            outcome.future.set_exception(outcome.error)
        else:
            outcome.future.set_result(outcome.result)
