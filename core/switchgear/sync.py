"""The bus for programs without an event loop: one background thread runs it.

It starts at the first use, again after a fork, flushes at exit, and is refused where a loop is running (there the
asynchronous Bus belongs).
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator
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

Run = Callable[[Coroutine[Any, Any, Any]], Any]


class Bus:
    """Like `switchgear.Bus`, with plain calls. Without `with` it opens at the first call and closes at exit."""

    def __init__(self, url: str | None = None, *, name: str | None = None, namespace: str = "") -> None:
        self._arguments = (url, name, namespace)
        self._lock = threading.Lock()
        self._pid = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._bus: _bus.Bus | None = None
        self._attached = False
        self._closed = False

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
            if self._loop is not None and self._bus is not None and self._pid == os.getpid():
                return self._loop, self._bus
            url, name, namespace = self._arguments
            loop = asyncio.new_event_loop()
            bus = _bus.Bus(url, name=name, namespace=namespace)
            started = threading.Event()
            thread = threading.Thread(target=_turn, args=(loop, started), name="switchgear", daemon=True)
            thread.start()
            started.wait()
            try:
                _submit(loop, bus.__aenter__()).result()
            except BaseException:
                loop.call_soon_threadsafe(loop.stop)
                thread.join()
                raise
            self._pid, self._loop, self._thread, self._bus = os.getpid(), loop, thread, bus
            _OPEN.add(self)
            return loop, bus

    def _call(self, make: Callable[[_bus.Bus], Coroutine[Any, Any, R]]) -> R:
        loop, bus = self._ensure()
        return _submit(loop, make(bus)).result()

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
    ) -> Iterator[Consumer[T]]:
        loop, bus = self._ensure()
        manager = bus.consumer(topic, group=group, start=start, idle=idle)
        consumer: AsyncConsumer[T] = _submit(loop, manager.__aenter__()).result()
        try:
            yield Consumer(consumer, lambda work: _submit(loop, work).result())
        finally:
            _submit(loop, manager.__aexit__(None, None, None)).result()


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


def _turn(loop: asyncio.AbstractEventLoop, started: threading.Event) -> None:
    asyncio.set_event_loop(loop)
    loop.call_soon(started.set)
    try:
        loop.run_forever()
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def _submit(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, R]) -> Future[R]:
    """Run a coroutine on the loop in a copy of this thread's context, so that correlation goes on across threads."""
    context = copy_context()
    future: Future[R] = Future()

    def begin() -> None:
        async def carry() -> None:
            try:
                future.set_result(await work)
            except BaseException as error:
                future.set_exception(error)

        tasks.add(task := loop.create_task(carry(), context=context))
        task.add_done_callback(tasks.discard)

    tasks: set[asyncio.Task[None]] = set()
    loop.call_soon_threadsafe(begin)
    return future


_OPEN: WeakSet[Bus] = WeakSet()


@atexit.register
def _close_all() -> None:
    for bus in list(_OPEN):
        bus.close()
