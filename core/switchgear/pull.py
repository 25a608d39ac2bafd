"""Pull style: messages one by one, settled by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Literal

from msgspec import UNSET

from .config import check_knobs
from .consumer import Consumer as Engine
from .core import Core
from .driver import Delivery, Settlement, Verdict
from .errors import Lost, MaybeSent, Misuse, NotSent, TransportError, Unavailable
from .message import Message
from .middleware.retry import backoff
from .outcomes import Reject, RetryAfter
from .reading import Reading
from .router import Declared
from .topic import Topic, check_group_name
from .watermark import Cumulative
from .working import open_message

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    from .bus import Bus

    T = TypeVar("T")
else:
    from typing import TypeVar

    T = TypeVar("T")


class Consumer(AsyncIterator[Message[T]], Generic[T]):
    """Messages of one topic for one group, handed out in the order of their arrival."""

    def __init__(self, engine: Engine, idle: float | None) -> None:
        self._engine, self._idle = engine, idle

    def __aiter__(self) -> Consumer[T]:
        return self

    async def __anext__(self) -> Message[T]:
        """The next message. A cancelled call takes none. Raises what ended the subscription for good."""
        engine = self._engine
        clock, lanes = engine.clock, engine.lanes
        until = None if self._idle is None else clock.monotonic() + self._idle
        while True:
            delivery = await self._take(until)
            if delivery is None:
                raise StopAsyncIteration
            message: Message[T] = Message(delivery, engine.reading, UNSET)
            try:
                open_message(engine, message)
            except Exception as error:  # noqa: BLE001  (its fate is decided here)
                self._keep(delivery)
                try:
                    await engine.fate.conclude(message, error)
                except BaseException:
                    lanes.ready.appendleft(delivery)
                    raise
                finally:
                    self._let_go(delivery)
                continue
            if engine.program.group is None:
                engine.dismiss(delivery)  # nobody but us sees it
            else:
                self._keep(delivery)
            return message

    def _keep(self, delivery: Delivery) -> None:
        self._engine.handed[delivery.token] = delivery
        self._engine.handed_at[delivery.token] = self._engine.time()

    def _let_go(self, delivery: Delivery) -> None:
        self._engine.handed.pop(delivery.token, None)
        self._engine.handed_at.pop(delivery.token, None)

    async def _take(self, until: float | None) -> Delivery | None:
        engine = self._engine
        ready = engine.lanes.ready
        while not ready or engine.ending or not engine.may_begin(engine.time()):
            if engine.failure is not None:
                raise engine.failure
            if engine.finished.is_set():
                return None
            if until is not None and engine.clock.monotonic() >= until:
                return None
            if ready and not engine.ending:
                await asyncio.sleep(0.01)  # it is not known whether they are still ours
            else:
                await _something(engine, until)
        delivery = ready.popleft()
        if 2 * len(ready) <= engine.prefetch:
            engine.wake_room()
        return delivery


async def _something(engine: Engine, until: float | None) -> None:
    """Return when something may be ready, or at `until` on the clock. Cancelled, it leaves it to another call."""
    waiter: asyncio.Future[None] = engine.loop.create_future()
    engine.idle.append(waiter)
    timer = None if until is None else engine.clock.call_at(until, partial(_end, waiter))
    try:
        await asyncio.wait([waiter])
    finally:
        if timer is not None:
            timer.cancel()
        if waiter in engine.idle:
            engine.idle.remove(waiter)
        elif engine.lanes.ready:
            engine.wake_one()  # this call may have been cancelled


def _end(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class PullReading(Reading):
    """A reading whose messages are settled by their own methods."""

    engine: Engine

    def _claim(self, message: Message[Any]) -> Delivery | None:
        """The delivery to settle, once; None where it was settled before. Broadcast has nothing to settle.

        Raises Lost when it is no longer ours.
        """
        if self.group is None:
            return None
        engine, token = self.engine, message._received().token
        engine.handed_at.pop(token, None)
        delivery = engine.handed.pop(token, None)
        if delivery is not None and (engine.source is None or engine.lanes.current(delivery) is None):
            engine.lanes.free(delivery)
            raise Lost("the message is no longer ours: its lease or its connection ended, and it comes again")
        return delivery

    async def ack(self, message: Message[Any]) -> None:
        engine = self.engine
        delivery = self._claim(message)
        if delivery is None:
            return
        if isinstance(engine.settler, Cumulative):
            engine.done(delivery)
            await engine.settler.flush()
            return
        source, current = engine.source, engine.lanes.current(delivery)
        assert source is not None
        assert current is not None
        try:
            error = (await source.settle([Settlement(current, Verdict.ACK)]))[0]
            if isinstance(error, (Unavailable, NotSent, MaybeSent)):
                raise error
        except TransportError as error:
            if isinstance(error, Unavailable):
                engine.host.link.down(error)
            engine.handed[delivery.token] = delivery
            engine.handed_at[delivery.token] = engine.time()
            raise
        newer = engine.lanes.moved.get(delivery.token, current)
        engine.lanes.free(delivery)
        engine.failures.pop(delivery.token, None)
        if newer is not None and newer is not current:  # handed out again meanwhile
            engine.lanes.hold_again(newer)
            engine.settler.put(Settlement(newer, Verdict.ACK))
        engine.wake_room()
        if error is not None:
            engine.count("lease_lost", 1)
            raise error
        engine.handled(1)

    async def retry(self, message: Message[Any], after: float | None) -> None:
        delivery = self._claim(message)
        if delivery is None:
            if self.group is None:
                raise Misuse("a broadcast message cannot be retried: give the consumer a group")
            return
        policy = self.engine.settings.retry
        delay = after if after is not None else backoff(policy, message.attempt, self.engine.draw)
        await self.engine.fate.conclude(message, RetryAfter(delay, "the consumer asked for it"))

    async def reject(self, message: Message[Any], reason: str) -> None:
        delivery = self._claim(message)
        if delivery is None:
            if self.group is None:
                raise Misuse("a broadcast message has no dead letters: give the consumer a group")
            return
        await self.engine.fate.conclude(message, Reject(reason))


@asynccontextmanager
async def pulling(
    bus: Bus, topic: Topic[Any], named: bool, group: str | None, start: Literal["new", "earliest"] | datetime,
    idle: float | None,
) -> AsyncGenerator[Consumer[Any]]:  # fmt: skip
    """Subscribe for the while of the block; see `Bus.consumer`."""
    if group is not None:
        check_group_name(group)
    knobs: dict[str, object] = {"start": start}
    check_knobs(knobs, f"consumer({topic.name!r}, group={group!r})")
    core: Core = bus._running()
    declared = Declared(topic=topic, named=named, group=group, fn=_body, knobs=knobs)
    await core.link.wait()
    assembled = (await core.assemble([declared]))[0]
    await core.prepare([assembled])
    program = assembled.program
    program.pull = True
    program.make_reading = PullReading
    engine = core.add(assembled)
    consumer: Consumer[Any] = Consumer(engine, idle)
    try:
        await core.joined([engine])
        yield consumer
    finally:
        await core.remove(engine, bus._deadline())


async def _body(body: Any) -> None:
    """Stands for the handler that a pulled topic does not have."""
