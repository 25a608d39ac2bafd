"""Pull style: messages one by one, settled by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, Literal

from msgspec import UNSET

from .config import check_knobs
from .consumer import Consumer as Engine
from .core import Core, topic_resources
from .driver import Delivery, Settlement, Source, Verdict
from .errors import Lost, Misuse, TransportError
from .message import Message
from .middleware.retry import backoff
from .outcomes import Reject, RetryAfter
from .program import Skip
from .reading import Reading
from .router import Declared
from .topic import Topic, check_group_name

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
        self._handed: dict[Hashable, Delivery] = engine.handed

    def __aiter__(self) -> Consumer[T]:
        return self

    async def __anext__(self) -> Message[T]:
        """The next message. A cancelled call takes none. Raises what ended the subscription for good."""
        engine = self._engine
        loop = asyncio.get_running_loop()
        until = None if self._idle is None else loop.time() + self._idle
        while True:
            delivery = await self._take(until)
            if delivery is None:
                raise StopAsyncIteration
            message: Message[T] = Message(delivery, engine.reading, UNSET)
            route = engine.program.routes[None]
            try:
                envelope = engine.reading.check(message) if delivery.marked or delivery.media != route.media else None
                if envelope is not None and envelope.expires is not None and envelope.expires <= engine.now():
                    raise Skip("expired", "its expiry time has passed")
                route.decode_into(message, delivery, envelope)
            except Exception as error:
                await engine.conclude(message, error)
                continue
            if engine.program.group is None:
                engine.lanes.free(delivery)  # nobody but us sees it and nothing is to be settled
            else:
                self._handed[delivery.token] = delivery
            return message

    async def _take(self, until: float | None) -> Delivery | None:
        engine = self._engine
        loop = asyncio.get_running_loop()
        while not engine.lanes.ready:
            if engine.failure is not None:
                raise engine.failure
            if engine.finished.is_set():
                return None
            now = loop.time()
            if until is not None and now >= until:
                return None
            await engine.wait_ready(None if until is None else until - now)
        delivery = engine.lanes.ready.popleft()
        engine.taken()
        return delivery


class PullReading(Reading):
    """A reading whose messages are settled by their own methods."""

    engine: Engine
    source: Source

    def __init__(self, topic: str, group: str | None, source: Source, failures: dict[Any, int]) -> None:
        super().__init__(topic, group, source, failures)
        self.source = source

    def _claim(self, message: Message[Any]) -> Delivery | None:
        """The delivery to settle, once; None where it was settled before. Broadcast has nothing to settle."""
        if self.group is None:
            return None
        return self.engine.handed.pop(message._received().token, None)

    async def _settle(self, delivery: Delivery, verdict: Verdict, seconds: float = 0.0) -> None:
        engine = self.engine
        current = engine.lanes.current(delivery)
        if current is None:
            engine.lanes.free(delivery)
            raise Lost("the message is no longer ours: its lease ended and it comes again")
        try:
            error = (await self.source.settle([Settlement(current, verdict, seconds)]))[0]
        except TransportError:
            engine.handed[delivery.token] = delivery
            raise
        engine.lanes.free(delivery)
        engine.wake()
        if error is not None:
            raise error

    async def ack(self, message: Message[Any]) -> None:
        delivery = self._claim(message)
        if delivery is None:
            return
        if self.engine.cumulative:
            await self.engine.done_now(delivery)
        else:
            await self._settle(delivery, Verdict.ACK)
        self.engine.handled(1)

    async def retry(self, message: Message[Any], after: float | None) -> None:
        delivery = self._claim(message)
        if delivery is None:
            if self.group is None:
                raise Misuse("a broadcast message cannot be retried: give the consumer a group")
            return
        policy = self.engine.settings.retry
        delay = after if after is not None else backoff(policy, message.attempt, self.engine.draw)
        await self.engine.conclude(message, RetryAfter(delay, "the consumer asked for it"))

    async def reject(self, message: Message[Any], reason: str) -> None:
        delivery = self._claim(message)
        if delivery is None:
            if self.group is None:
                raise Misuse("a broadcast message has no dead letters: give the consumer a group")
            return
        await self.engine.conclude(message, Reject(reason))


@asynccontextmanager
async def pulling(
    bus: Bus, topic: Topic[Any], named: bool, group: str | None, start: Literal["new", "earliest"] | datetime,
    idle: float | None,
) -> AsyncIterator[Consumer[Any]]:  # fmt: skip
    """Subscribe for the while of the block; see `Bus.consumer`."""
    if group is not None:
        check_group_name(group)
    knobs: dict[str, object] = {"start": start}
    check_knobs(knobs, f"consumer({topic.name!r}, group={group!r})")
    core: Core = bus._running()
    declared = Declared(topic=topic, named=named, group=group, fn=_body, knobs=knobs)
    await core.link.wait()
    assembled = (await core.assemble([declared]))[0]
    await core.provision(topic_resources(assembled.topic, assembled.plan, core.config.topic(topic.name)))
    program = assembled.program
    program.pull = True
    program.make_reading = PullReading
    engine = core.add(assembled)
    consumer: Consumer[Any] = Consumer(engine, idle)
    try:
        await engine.ready
        yield consumer
    finally:
        await core.remove(engine, bus._deadline())


async def _body(body: Any) -> None:
    """Stands for the handler that a pulled topic does not have."""
