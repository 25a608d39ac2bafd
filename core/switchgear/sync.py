"""The bus for programs without an event loop: one background thread runs it.

It starts at the first use, again after a fork, flushes at exit, and is refused where a loop is running (there the
asynchronous Bus belongs).
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import threading
import time
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from contextvars import copy_context
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, Self, TypeVar, Unpack
from weakref import WeakSet

from . import bus as _bus
from .errors import Misuse
from .knobs import PublishOptions
from .message import Message
from .pull import Consumer as AsyncConsumer
from .topic import Topic
from .units import Seconds

if TYPE_CHECKING:
    from typing_extensions import TypeForm

T = TypeVar("T")
R = TypeVar("R")

log = logging.getLogger("switchgear")

FORK = 1.0  # seconds that a fork waits for calls of other threads

Run = Callable[[Coroutine[Any, Any, Any]], Any]


class Bus:
    """Like `switchgear.Bus`, with plain calls. Without `with` it opens at the first call and closes at exit."""

    def __init__(self, url: str | None = None, *, name: str | None = None, namespace: str = "") -> None:
        self._arguments = (url, name, namespace)
        self._lock = threading.Lock()
        self._held = False
        self._pid = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._bus: _bus.Bus | None = None
        self._attached = False
        self._closed = False
        self._calls: set[Future[Any]] = set()
        self._inherited: object = None
        _ALL.add(self)

    @classmethod
    def attached(cls, bus: _bus.Bus, loop: asyncio.AbstractEventLoop) -> Bus:
        """The facade of a bus that runs already, for `def` handlers of it."""
        facade = cls()
        facade._bus, facade._loop, facade._attached, facade._pid = bus, loop, True, os.getpid()
        return facade

    # ---- life -----------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._ensure()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Flush what is published and stop the thread. Idempotent; the next call after it raises Misuse."""
        with self._lock:
            self._closed = True
            loop, thread, bus = self._loop, self._thread, self._bus
            if self._attached or loop is None or thread is None or bus is None or self._pid != os.getpid():
                return
            self._loop = self._thread = self._bus = None
        try:
            _submit(loop, bus.close()).result()
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            for call in list(self._calls):  # of other threads, too late for the loop to see
                if not call.done():
                    call.set_exception(Misuse("the bus is closed"))

    def _ensure(self) -> tuple[asyncio.AbstractEventLoop, _bus.Bus]:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            pass
        else:
            raise Misuse("switchgear.sync.Bus blocks, and an event loop is running here: use switchgear.Bus")
        with self._lock:
            if self._closed:
                raise Misuse("the bus is closed")
            if self._pid == os.getpid() and self._loop is not None and self._bus is not None:
                return self._loop, self._bus
            if self._attached:
                raise Misuse("this bus lives in the parent process: make a switchgear.sync.Bus of its own here")
            url, name, namespace = self._arguments
            bus = _bus.Bus(url, name=name, namespace=namespace)
            loop = asyncio.new_event_loop()
            thread = threading.Thread(target=_turn, args=(loop,), name="switchgear", daemon=True)
            thread.start()
            try:
                _submit(loop, bus.__aenter__()).result()
            except BaseException:
                loop.call_soon_threadsafe(loop.stop)
                thread.join()
                raise
            self._pid, self._loop, self._thread, self._bus = os.getpid(), loop, thread, bus
            return loop, bus

    def _hold(self) -> None:
        """Before a fork: let calls end, for a moment, so that no client is copied in the middle of something."""
        until = time.monotonic() + FORK
        self._held = self._lock.acquire(timeout=FORK)
        while self._calls and time.monotonic() < until:
            time.sleep(0.001)

    def _let_go(self) -> None:
        if self._held:
            self._held = False
            self._lock.release()

    def _forked(self) -> None:
        """In a child process: the loop's thread does not exist here, and what it holds must not be touched (nor freed:
        that would close the parent's connections)."""
        self._inherited = (self._inherited, self._loop, self._bus, self._thread)
        self._lock, self._held, self._calls = threading.Lock(), False, set()
        if not self._attached:
            self._loop = self._thread = self._bus = None

    def _call(self, make: Callable[[_bus.Bus], Coroutine[Any, Any, R]]) -> R:
        loop, bus = self._ensure()
        return self._run(loop, make(bus))

    def _run(self, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, R]) -> R:
        return _submit(loop, work, self._calls).result()

    # ---- what a bus does ------------------------------------------------------------------------------------------

    def publish(self, topic: Topic[T] | str, value: T, **options: Unpack[PublishOptions]) -> str:
        """See `switchgear.Bus.publish`."""
        return self._call(lambda bus: bus.publish(topic, value, **options))

    def publish_many(
        self, topic: Topic[T] | str, values: Iterable[T], *, id: Callable[[T], str] | None = None
    ) -> list[str]:
        """See `switchgear.Bus.publish_many`."""
        return self._call(lambda bus: bus.publish_many(topic, values, id=id))

    def request(self, topic: Topic[T] | str, value: T, reply: TypeForm[R], *, timeout: Seconds = 10.0) -> R:
        """See `switchgear.Bus.request`."""
        return self._call(lambda bus: bus.request(topic, value, reply, timeout=timeout))

    def consumer(
        self,
        topic: Topic[T] | str,
        *,
        group: str | None,
        start: Literal["new", "earliest"] = "new",
        idle: Seconds | None = None,
    ) -> AbstractContextManager[Consumer[T]]:
        """See `switchgear.Bus.consumer`; messages are settled with the consumer's own methods."""
        return self._consumer(topic, group, start, idle)

    @contextmanager
    def _consumer(
        self, topic: Topic[T] | str, group: str | None, start: Literal["new", "earliest"], idle: Seconds | None
    ) -> Generator[Consumer[T]]:
        loop, bus = self._ensure()
        manager = bus.consumer(topic, group=group, start=start, idle=idle)
        consumer: AsyncConsumer[T] = self._run(loop, manager.__aenter__())
        try:
            yield Consumer(consumer, lambda work: self._run(loop, work))
        finally:
            self._run(loop, manager.__aexit__(None, None, None))


class Consumer(Iterator[Message[T]], Generic[T]):
    """Messages one by one. A message's own `ack` and its like are coroutines: settle here."""

    def __init__(self, consumer: AsyncConsumer[T], run: Run) -> None:
        self._consumer, self._run = consumer, run

    def __next__(self) -> Message[T]:
        async def step() -> Message[T] | None:
            try:
                return await self._consumer.__anext__()
            except StopAsyncIteration:
                return None

        message: Message[T] | None = self._run(step())
        if message is None:
            raise StopIteration
        return message

    def ack(self, message: Message[T]) -> None:
        """Acknowledge; returns when the broker confirmed."""
        self._run(message.ack())

    def retry(self, message: Message[T], after: Seconds | None = None) -> None:
        """Give it back for another attempt."""
        self._run(message.retry(after))

    def reject(self, message: Message[T], reason: str) -> None:
        """Send it to the group's dead letters."""
        self._run(message.reject(reason))


def _turn(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        while left := asyncio.all_tasks(loop):
            for task in left:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def _submit(
    loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, R], calls: set[Future[Any]] | None = None
) -> Future[R]:
    """Run a coroutine on the loop in a copy of this thread's context, so that correlation goes on across threads."""
    context = copy_context()
    future: Future[R] = Future()
    if calls is not None:
        calls.add(future)
        future.add_done_callback(calls.discard)

    async def carry() -> None:
        try:
            future.set_result(await work)
        except asyncio.CancelledError:
            future.set_exception(Misuse("the bus was closed"))
        except BaseException as error:  # noqa: BLE001  (the caller's, who gets it)
            future.set_exception(error)

    def begin() -> None:
        task = loop.create_task(carry(), context=context)
        future.add_done_callback(lambda _: task)  # the loop alone would not keep the task

    try:
        loop.call_soon_threadsafe(begin)
    except RuntimeError:  # the loop is closed
        work.close()
        if calls is not None:
            calls.discard(future)
        raise Misuse("the bus is closed") from None
    return future


_ALL: WeakSet[Bus] = WeakSet()


@atexit.register
def _close_all() -> None:
    for bus in list(_ALL):
        try:
            bus.close()
        except Exception:
            log.exception("closing %r at exit failed", bus)


def _all(act: Callable[[Bus], None]) -> Callable[[], None]:
    def each() -> None:
        for bus in list(_ALL):
            act(bus)

    return each


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_all(Bus._hold), after_in_parent=_all(Bus._let_go), after_in_child=_all(Bus._forked))
