"""Calls of a client that one thread reads with.

The client lets in one thread at a time, in no order: beside one that reads again and again another may wait for ever.
So that one makes all calls, between two reads or while it waits in a callback, and commits are answered to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TypeVar

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import TopicPartition as Native

T = TypeVar("T")


class Calls:
    """What waits to be called."""

    def __init__(self) -> None:
        self._waiting: SimpleQueue[Callable[[], None]] = SimpleQueue()

    def put(self, call: Callable[[], T]) -> Future[T]:
        """Have it called; from any thread."""
        asked: Future[T] = Future()

        def run() -> None:
            if asked.set_running_or_notify_cancel():
                try:
                    asked.set_result(call())
                except BaseException as error:  # noqa: BLE001  (told to who asked)
                    asked.set_exception(error)

        self._waiting.put(run)
        return asked

    def wake(self) -> None:
        """Let `next` return."""
        self._waiting.put(_nothing)

    def next(self, within: float) -> None:
        """Make the next call that comes within so many seconds. Raises Empty."""
        self._waiting.get(timeout=within)()

    def every(self) -> None:
        """Make all that wait."""
        with suppress(Empty):
            while True:
                self._waiting.get_nowait()()


class Unheard(Exception):
    """The answer does not arrive before a rebalance has ended."""


class Answers:
    """Commits that were sent, and what the broker says of each. Used by one thread."""

    def __init__(self) -> None:
        self._waiting: list[tuple[frozenset[object], Future[Sequence[Native]]]] = []

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def expect(self, natives: Sequence[Native]) -> Future[Sequence[Native]]:
        """Its partitions, each with its error, or KafkaException."""
        asked: Future[Sequence[Native]] = Future()
        self._waiting.append((_key(natives), asked))
        return asked

    def told(self, error: KafkaError | None, natives: Sequence[Native]) -> None:
        """The client's callback: of equal commits the first is answered."""
        key = _key(natives)
        for n, (wanted, asked) in enumerate(self._waiting):
            if wanted == key:
                del self._waiting[n]
                if asked.set_running_or_notify_cancel():
                    if error is None:
                        asked.set_result(natives)
                    else:
                        asked.set_exception(KafkaException(error))
                return

    def interrupt(self, error: Exception) -> None:
        """Nothing is heard while a callback waits: who waits for an answer is told this instead."""
        waiting, self._waiting = self._waiting, []
        for _, asked in waiting:
            if asked.set_running_or_notify_cancel():
                asked.set_exception(error)


def _key(natives: Sequence[Native]) -> frozenset[object]:
    return frozenset((one.topic, one.partition, one.offset) for one in natives)


def _nothing() -> None:
    """Wakes who waits."""
