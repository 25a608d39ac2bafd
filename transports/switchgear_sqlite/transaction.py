"""How jobs are executed: those that write share one transaction, those that read have none.

Many small sends, claims and settlements thus share one commit. A failure undoes them all, and then each is tried alone.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence

from .schema import explained
from .worker import Execute, Job, Outcome

RESERVE = 1000  # pages that groups may use beyond `max_page_count`: to take a message takes room


def writing(path: str, most: int | None = None) -> Execute:
    """Run jobs in one transaction; they are told of it after the commit.

    What is sent may fill the file up to `most` pages, the rest a little more, so that a full file can be read empty.
    """

    def run(db: sqlite3.Connection, job: Job) -> object:
        if most is not None:
            db.execute(f"PRAGMA max_page_count = {most if job.sending else most + RESERVE}")
        return job.call(db)

    def execute(db: sqlite3.Connection, jobs: Sequence[Job]) -> list[Outcome]:
        outcomes, jobs = _begin(db, jobs, path)
        if not jobs:
            return outcomes
        committing = False
        try:
            results = [run(db, job) for job in jobs]
            committing = True
            db.execute("COMMIT")
        except Exception as error:  # noqa: BLE001  (whatever it is, it belongs to who waits)
            if db.in_transaction:
                db.execute("ROLLBACK")
            if len(jobs) > 1:
                return outcomes + [outcome for job in jobs for outcome in execute(db, [job])]
            return [*outcomes, _failed(path, jobs[0], error, committing)]
        return outcomes + [Outcome(job.future, result) for job, result in zip(jobs, results, strict=True)]

    return execute


def reading(path: str) -> Execute:
    """Run jobs one by one, outside a transaction."""

    def execute(db: sqlite3.Connection, jobs: Sequence[Job]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for job in jobs:
            try:
                outcomes.append(Outcome(job.future, job.call(db)))
            except Exception as error:  # noqa: BLE001
                outcomes.append(_failed(path, job, error, False))
        return outcomes

    return execute


def _begin(db: sqlite3.Connection, jobs: Sequence[Job], path: str) -> tuple[list[Outcome], Sequence[Job]]:
    """Take the file's lock, as long as somebody has patience. SQLite's own back-off goes up to 100 ms a try."""
    outcomes: list[Outcome] = []
    pause = 0.0005
    while jobs:
        try:
            db.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            busy = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
            now = time.monotonic()
            outcomes += [_failed(path, job, error, False) for job in jobs if not busy or job.give_up <= now]
            jobs = [job for job in jobs if busy and job.give_up > now]
        else:
            return outcomes, jobs
        time.sleep(pause if jobs else 0.0)
        pause = min(pause * 1.5, 0.004)
    return outcomes, jobs


def _failed(path: str, job: Job, error: Exception, committing: bool) -> Outcome:
    if isinstance(error, sqlite3.Error):
        try:
            return Outcome(job.future, error=explained(path, error, sending=job.sending, committing=committing))
        except sqlite3.Error as bug:
            return Outcome(job.future, error=bug)
    return Outcome(job.future, error=error)
