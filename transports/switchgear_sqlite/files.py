"""What a transport has open: the writing and the reading thread, and who waits for messages."""

from __future__ import annotations

import sqlite3
import time
from dataclasses import dataclass

from . import SqliteTuning, schema, store
from .transaction import reading, writing
from .wakeup import Watch
from .worker import Worker

TRIM_EVERY = 1.0  # seconds between slices, once nothing more is to be deleted


class Trimmer:
    """Deletes what need not be kept, a slice at a time; on the writer's thread."""

    def __init__(self, tuning: SqliteTuning) -> None:
        self._tuning = tuning
        self._next: dict[int, float] = {}

    def __call__(self, db: sqlite3.Connection, topic: int) -> None:
        """Delete a slice of a topic, if it is time."""
        if time.monotonic() < self._next.get(topic, 0.0):
            return
        more = store.trim(db, topic, self._tuning.retention, self._tuning.max_messages, time.time())
        self._next[topic] = time.monotonic() + (0.0 if more else TRIM_EVERY)


@dataclass(frozen=True)
class Files:
    """Open for one transport."""

    writer: Worker
    reader: Worker
    watch: Watch
    trim: Trimmer

    async def close(self) -> None:
        """Do what is waiting, then end both threads."""
        await self.reader.close()
        await self.writer.close()


async def open_files(path: str, tuning: SqliteTuning) -> Files:
    """Open the file, making what is missing. Raises ConfigurationError, Refused or Unavailable."""

    def opens() -> sqlite3.Connection:
        return schema.connect(path, tuning)

    def opens_and_prepares() -> sqlite3.Connection:
        db = opens()
        try:
            schema.prepare(db, path)
            db.execute("PRAGMA busy_timeout = 0")  # from here on we wait ourselves
        except BaseException:
            db.close()
            raise
        return db

    watch = Watch(tuning.poll)
    writer = Worker(path, opens_and_prepares, writing(path, tuning.max_page_count), tuning.busy_timeout)
    reader = Worker(path, opens, reading(path), tuning.busy_timeout, watch.look)
    await writer.start()
    try:
        await reader.start()
    except BaseException:
        await writer.close()
        raise
    return Files(writer, reader, watch, Trimmer(tuning))
