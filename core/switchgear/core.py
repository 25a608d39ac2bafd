"""A bus while it is open: its transport, connection, publisher and running subscriptions."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from . import names
from .clock import Clock, LoopClock
from .config import Config, Settings, merge, resolve
from .consumer import Consumer
from .driver import Clocked, Order, Outgoing, Provisioner, Registry, Resource, Scheduling, Transport
from .emulate import retry_topics
from .emulate.delay import Delays
from .envelope import Stamp
from .errors import (
    ConfigurationError,
    MaybeSent,
    Misuse,
    NotFound,
    NotSent,
    SwitchgearError,
    TransportError,
    Unavailable,
    Unsupported,
)
from .guarantees import Need, negotiate, refuse
from .handlers import body_schema, compile_batch, compile_handler
from .health import Health
from .knobs import PUBLISH, Handler, Middleware, Outcomes
from .message import Message, handling
from .middleware.timeout import bounded
from .plans import Plan, agree
from .plans import resolve as resolve_plan
from .plugins import open_transport, redact
from .program import BatchHandler, Program, Route, chain, check_single_types
from .publisher import Publisher, weight
from .reading import Reading
from .replies import Replies, answer
from .router import Declared, as_topic
from .services import BusScope, Services
from .supervision import Link, said
from .topic import ORDERS, Topic
from .writing import Ids, Writer

if TYPE_CHECKING:
    from .bus import Bus

T = TypeVar("T")

log = logging.getLogger("switchgear")

CONNECT = 5.0  # seconds that opening a bus waits for its broker before it goes on in the background
PROMOTE, PROMOTE_MOST = 1000, 0.5  # messages moved at once; seconds between looks at what is due
LOOK = 2.0  # seconds between looks at what other members have begun to use
PAUSE = 0.1  # seconds before what the broker did not answer is asked again


@dataclass(slots=True)
class Assembled:
    """A program with how it was come by."""

    program: Program
    settings: Settings
    origins: Mapping[str, str]
    needs: list[Need]
    services: Services
    topic: Topic[Any]
    plan: Plan


class Core:
    """Made by `Bus` for each time that it is open."""

    def __init__(self, bus: Bus, url: str, tuning: Sequence[Any], config: Config, clock: Clock | None) -> None:
        self.bus, self.config = bus, config
        self.name = bus.name
        self.loop = asyncio.get_running_loop()
        self.thread = get_ident()
        self.running = self.loop.is_running
        """With `thread`, tells a call from another loop; asking asyncio for the running one costs a system call."""
        self.clock = clock or LoopClock()
        self.url = redact(url)
        self.transport: Transport = open_transport(url, tuning)
        self.scheme = url.partition(":")[0].lower()
        if isinstance(self.transport, Clocked) and clock is not None:
            self.transport.set_clock(clock)
        self.link = Link(self.transport, self.url)
        self.publisher: Publisher | None = None
        self.immediate = False
        """Whether the transport stores without waiting; known once connected."""
        own = type(self.loop).time is asyncio.BaseEventLoop.time
        self.time: Callable[[], float] = time.monotonic if own else self.loop.time
        """The loop's clock, without a Python frame where it is the standard one."""
        self.consumers: dict[Consumer, Assembled] = {}
        self.scope = BusScope()
        self.overrides: Mapping[Callable[..., Any], Callable[..., Any]] = {}
        self.replies: Replies | None = None
        self.closing = self.closed = False
        self.failure: BaseException | None = None
        self.failed: asyncio.Event = asyncio.Event()
        self.writers: dict[object, Writer] = {}
        self.plans: dict[str, Plan] = {}
        self._ids, self._stamp = Ids(), Stamp(self.clock.now)
        self._observers = tuple(bus._observers)
        self.taps: Sequence[Callable[[str, str, str | None, Any], None]] = tuple(bus._test_taps)
        """Told of messages published and handled, for `testing`."""
        self.watched = bool(self._observers or self.taps)
        """Whether anybody is told of what is published."""
        self.delays = Delays(self)
        self._used: frozenset[str] | None = None
        """Names of rows that tell what is in use on the broker; None: not asked for yet."""
        self._watcher: asyncio.Task[None] | None = None
        self._promoter: asyncio.Task[None] | None = None
        self._due_soon = asyncio.Event()
        self._looks_at = math.inf
        """When we look again at what is due, on the loop's clock; while we do, never."""
        self._openings: dict[str, _Opening] = {}
        self._provisioned: set[str] = set()

    # ---- life -----------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Connect; a broker that is away is tried again in the background. Raises what makes trying pointless."""
        self.link.start()
        waiting = asyncio.ensure_future(self.link.wait())
        try:
            await asyncio.wait([waiting], timeout=CONNECT)
        finally:
            if not waiting.done():
                waiting.cancel()
        if waiting.done() and not waiting.cancelled():
            waiting.result()

    async def close(self, deadline: float) -> None:
        """Drain subscriptions, flush publishes, close; all before `deadline` (the loop's clock). Idempotent."""
        if self.closed:
            return
        self.closing = True
        try:
            if self._watcher is not None:
                self._watcher.cancel()
                await asyncio.wait([self._watcher])
            if self.consumers:
                await asyncio.gather(*(self.remove(consumer, deadline) for consumer in list(self.consumers)))
            await self.delays.close(deadline)
            if self.replies is not None:
                await self.replies.close(deadline)
            try:
                await self.scope.stack.aclose()
            except Exception:
                log.exception("a dependency of the bus failed at its end")
            asking = [place.future for opening in self._openings.values() for place in opening.queue]
            if asking:
                await asyncio.wait(asking, timeout=max(0.0, deadline - self.loop.time()))
            self.closed = True
            self.writers.clear()  # what is published from here on finds the bus closed
            if self._promoter is not None:
                self._promoter.cancel()
                await asyncio.wait([self._promoter])
            if self.publisher is not None:
                await self.publisher.close(deadline)
        finally:
            self.closed = True
            self.writers.clear()
            await self.link.close()
            for opening in list(self._openings.values()):
                opening.task.cancel()
            try:
                async with asyncio.timeout(max(2.0, deadline - self.loop.time())):
                    await self.transport.close()
            except (SwitchgearError, OSError) as error:  # a TimeoutError is an OSError
                log.debug("closing %s: %s", self.url, said(error))

    def physical(self, name: str) -> str:
        return (
            names.physical(self.transport.capabilities.names, self.bus.namespace, name) if name else self.bus.namespace
        )

    async def reached(self, deadline: float = math.inf) -> None:
        """Wait for a connection. Raises Unavailable at the deadline, or the terminal error."""
        if self.closed:
            raise Misuse("the bus is closed")
        if not self.link.up:
            try:
                async with asyncio.timeout_at(None if deadline == math.inf else deadline):
                    await self.link.wait()
            except TimeoutError:
                away = self.link.unavailable()
                raise away from away.__cause__

    async def connected(self, deadline: float) -> Publisher:
        """The publisher, once there has been a connection. Raises Unavailable at the deadline, or what is terminal."""
        if self.closed:
            raise Misuse("the bus is closed")
        if self.publisher is None:
            await self.reached(deadline)
        if self.publisher is None:
            self.publisher = Publisher(self.transport, self.link)
            self.immediate = self.publisher.immediate
            self._move_due()
        return self.publisher

    async def insist(self, ask: Callable[[], Awaitable[T]], deadline: float = math.inf) -> T:
        """Ask the broker something that may be asked twice, over interruptions, until the deadline.

        Raises Unavailable or NotSent at the deadline, and whatever makes asking again pointless.
        """
        while True:
            await self.reached(deadline)
            try:
                async with asyncio.timeout_at(None if deadline == math.inf else deadline):
                    return await ask()
            except Unavailable as error:
                self.link.down(error)
            except (NotSent, MaybeSent) as error:
                if self.loop.time() + PAUSE >= deadline:
                    raise
                log.debug("%s: asking again: %s", self.url, error)
                await asyncio.sleep(PAUSE)
            except TimeoutError:
                if not self.link.up:
                    away = self.link.unavailable()
                    raise away from away.__cause__
                raise NotSent(f"{self.url} did not answer in time what there is to know of the topic") from None

    # ---- publishing -----------------------------------------------------------------------------------------------

    async def plan(self, topic: Topic[Any], deadline: float = math.inf, *, write: bool = True) -> Plan:
        """The topic's plan, resolved once; waits for the broker until the deadline."""
        configured = self.config.topic(topic.name)
        plan = self.plans.get(topic.name)
        if plan is None:
            plan = await self.insist(
                lambda: resolve_plan(topic, configured, self.transport, self.bus.namespace, write=write), deadline
            )
            if write:
                plan = self.plans.setdefault(topic.name, plan)
        agree(topic, configured, plan)
        return plan

    async def writer(self, topic: Topic[Any] | str, deadline: float) -> Writer:
        """The compiled topic, made at its first use."""
        found = self.writers.get(topic)
        return found if found is not None else await self.first(topic, _itself, deadline)

    async def first(self, topic: Topic[Any] | str, use: Callable[[Writer], T], deadline: float) -> T:
        """What `use` makes of the topic's writer, once there is one.

        Until the broker has told about the topic, publishers wait here; then `use` is called for all of them at once
        and in the order of their calls, so that none of a later call is before them. Raises Unavailable or NotSent at
        the deadline, and whatever makes the topic impossible.
        """
        if self.closed:
            raise Misuse("the bus is closed")
        declared = as_topic(topic)
        if declared.priorities:
            raise Unsupported(f"topic {declared.name!r}: priorities= has no machinery yet; use a topic for each")
        opening = self._openings.get(declared.name)
        if opening is None and self.link.up and self.transport.capabilities.immediate:
            await self.connected(deadline)  # nothing of this waits, so that nobody comes between
            known = await self.plan(declared, deadline)
            await self._provision_topic(declared, known)
            return use(self._keep(topic, declared, known))
        if opening is None:
            plan = self.plans.get(declared.name)
            if plan is not None and declared.name in self._provisioned and self.publisher is not None:
                agree(declared, self.config.topic(declared.name), plan)
                return use(self._keep(topic, declared, plan))
            opening = self._openings[declared.name] = _Opening(deque(), self.loop.create_future())
            opening.task = self.loop.create_task(self._open_topic(declared.name, opening))
        place: _Place = _Place(topic, declared, use, self.loop.create_future())
        opening.queue.append(place)
        try:
            async with asyncio.timeout_at(deadline):
                found: T = await place.future
        except TimeoutError:
            if not self.link.up:
                away = self.link.unavailable()
                raise away from away.__cause__
            raise NotSent(f"{self.url} did not tell about topic {declared.name!r} before the timeout") from None
        return found

    async def _open_topic(self, name: str, opening: _Opening) -> None:
        """Find out about a topic for all who wait, by the declaration of the first; whose declaration is wrong fails
        alone."""
        queue = opening.queue
        try:
            while queue:
                place = queue[0]
                if place.future.done():
                    queue.popleft()
                    continue
                try:
                    await self.connected(math.inf)
                    wanted = await self.plan(place.declared)
                    if name not in self._provisioned:
                        await self.insist(partial(self._provision_topic, place.declared, wanted))
                        self._provisioned.add(name)
                except Exception as error:  # noqa: BLE001  (the publisher's, who gets it)
                    if not place.future.done():
                        place.future.set_exception(error)
                    continue
                break
        except asyncio.CancelledError:
            pass
        finally:
            del self._openings[name]
            for place in queue:
                if place.future.done():
                    continue
                try:
                    plan = self.plans.get(name)
                    if self.closed or plan is None:
                        raise Misuse("the bus was closed")
                    agree(place.declared, self.config.topic(name), plan)
                    place.future.set_result(place.use(self._keep(place.topic, place.declared, plan)))
                except Exception as error:  # noqa: BLE001  (the publisher's, who gets it)
                    place.future.set_exception(error)

    def _keep(self, topic: Topic[Any] | str, declared: Topic[Any], plan: Plan) -> Writer:
        writer = self.writers.get(topic)
        if writer is None:
            writer = self.writers[topic] = self._writer(declared, plan)
        return writer

    def _writer(self, topic: Topic[Any], plan: Plan) -> Writer:
        return Writer(
            topic, plan, self.transport.capabilities, source=f"/{self.name}", clock=self.clock, ids=self._ids,
            scheme=self.scheme, stamp=self._stamp,
        )  # fmt: skip

    async def emit(self, out: Outgoing, timeout: float | None = None, chained: tuple[str, bytes] | None = None) -> None:
        """Store one message through the publisher. Raises TransportError."""
        deadline = self.loop.time() + (PUBLISH if timeout is None else timeout)
        publisher = await self.connected(deadline)
        if publisher.immediate:
            await publisher.send_now(out, deadline)
        else:
            await publisher.put(out, chained, deadline, True, weight(out))

    async def emit_all(self, outs: Sequence[Outgoing]) -> Sequence[Exception | None]:
        """Store messages through the publisher, those that others read in the order of their keys; by message what
        went wrong."""
        deadline = self.loop.time() + PUBLISH
        outcomes: list[Exception | None] = []
        try:
            publisher = await self.connected(deadline)
        except TransportError as error:
            return [error] * len(outs)
        if publisher.immediate:
            for out in outs:
                try:
                    await publisher.send_now(out, deadline)
                except TransportError as error:
                    outcomes.append(error)
                else:
                    outcomes.append(None)
            return outcomes
        stored = [
            publisher.put(
                out, None if out.key is None or out.private else (out.topic, out.key), deadline, True, weight(out)
            )
            for out in outs
        ]
        for outcome in await asyncio.gather(*stored, return_exceptions=True):
            if outcome is not None and not isinstance(outcome, Exception):
                raise outcome
            outcomes.append(outcome)
        return outcomes

    async def send_back(self, out: Outgoing, target: str, timeout: float) -> None:
        """Store a copy for one group, that arrives when it is due. Raises SwitchgearError."""
        placed = await self.place(out, target, timeout)
        await self.emit(placed, timeout)
        self.stored((placed,))

    async def place(self, out: Outgoing, target: str, timeout: float) -> Outgoing:
        """What is stored now so that a message arrives at `target` when it is due. Raises SwitchgearError."""
        placed = self.delays.placed(out, target)
        if placed.topic != out.topic:
            await self.delays.ready(self.loop.time() + timeout)
        return placed

    def stored(self, outs: Sequence[Outgoing]) -> None:
        """These were stored: what of it is delayed is looked for when it may be due."""
        due = min((out.due for out in outs if out.due is not None), default=None)
        if due is not None:
            self.due_soon(due)

    async def announce(self, due: float, deadline: float) -> None:
        """Make what a message needs that is due then (unix seconds), before it is sent. Raises TransportError."""
        await self.connected(deadline)
        if self.delays.emulated and due - self.clock.now() > self.transport.capabilities.delay:
            await self.delays.ready(deadline)

    def hand_over(
        self, writer: Writer, out: Outgoing, deadline: float, again: bool = True
    ) -> asyncio.Future[None] | None:
        """Buffer a message at once; None where the transport stores without waiting, and `send_now` is to be called."""
        publisher = self.publisher
        assert publisher is not None  # who has a writer has been connected
        if publisher.immediate:
            return None
        return publisher.put(out, writer.chain(out), deadline, again, weight(out))

    async def send_now(self, out: Outgoing, deadline: float) -> None:
        """Send one message past the buffer. Raises TransportError."""
        assert self.publisher is not None
        await self.publisher.send_now(out, deadline)

    @staticmethod
    async def joined(consumers: Sequence[Consumer]) -> None:
        """Return when they are subscribed. Raises what makes it impossible, Misuse where the bus is closed before."""
        if not consumers:
            return
        done, _ = await asyncio.wait([one.ready for one in consumers], return_when=asyncio.FIRST_EXCEPTION)
        for ready in done:
            if ready.cancelled():
                raise Misuse("the bus was closed")
            ready.result()

    async def listening(self, deadline: float) -> Replies:
        """The answers to this bus's requests, subscribed to. Raises Unsupported, or Unavailable at the deadline."""
        if self.closed:
            raise Misuse("the bus is closed")
        if not self.transport.capabilities.broadcast:  # a group of its own for each process would stay on the broker
            raise Unsupported(f"{self.scheme}:// has no broadcast, by which an answer finds the process that asked")
        if self.replies is None or self.replies.failed:
            self.replies = Replies(self)
        await self.replies.ready(deadline)
        return self.replies

    def due_soon(self, due: float) -> None:
        """A message was stored that is due then: look again now, unless we do so before that in any case."""
        if due - self.clock.now() < self._looks_at - self.loop.time():
            self._due_soon.set()

    def _move_due(self) -> None:
        """Begin to move what falls due, as every bus of the broker does that publishes or subscribes."""
        if self._promoter is None and isinstance(self.transport, Scheduling):
            self._promoter = self.loop.create_task(self._promote(self.transport))

    async def _promote(self, scheduling: Scheduling) -> None:
        pause: float = 0.0
        while True:
            try:
                async with asyncio.timeout(min(pause, PROMOTE_MOST) if pause > 0 else 0.001):
                    await self._due_soon.wait()
            except TimeoutError:
                pass
            self._due_soon.clear()
            self._looks_at = math.inf
            try:
                await self.link.wait()
            except SwitchgearError:
                return  # there will be no connection; whoever publishes or subscribes is told
            try:
                next_ = await scheduling.promote(PROMOTE)
                pause = PROMOTE_MOST if next_ is None else max(0.0, next_)
            except Unavailable as error:
                self.link.down(error)
                pause = PROMOTE_MOST
            except SwitchgearError as error:
                log.warning("moving delayed messages failed: %s", error)
                pause = PROMOTE_MOST
            except Exception:
                log.exception("the transport failed in promote; this is a bug of the transport")
                pause = PROMOTE_MOST
            self._looks_at = self.loop.time() + min(pause, PROMOTE_MOST)

    # ---- subscriptions --------------------------------------------------------------------------------------------

    async def assemble(
        self, declared: Iterable[Declared], *, write: bool = True, refused: bool = False
    ) -> list[Assembled]:
        """Compile declarations: one program for each (topic, group). Raises ConfigurationError before anything runs."""
        groups: dict[tuple[str, str | None, int], list[Declared]] = {}
        for number, one in enumerate(declared):
            alone = number if one.group is None else 0  # each broadcast handler is a subscription of its own
            groups.setdefault((one.topic.name, one.group, alone), []).append(one)
        return [await self._assemble(members, write=write, refused=refused) for members in groups.values()]

    async def _assemble(self, members: list[Declared], *, write: bool, refused: bool) -> Assembled:
        first = members[0]
        group, name = first.group, first.topic.name
        where = f"{name} → {group or 'broadcast'}"
        knobs = [(one.where, {**one.knobs, **({"batch": one.batch} if one.batch else {})}) for one in members]
        settings, origins = resolve(name, group, merge(knobs, name, group), self.config)
        topic = _declared_topic(members)
        plan = await self.plan(topic, write=write)
        asked = Order(ORDERS.index(settings.order)) if settings.order is not None else plan.order
        if asked > plan.order:
            raise ConfigurationError(
                f"{where}: order={ORDERS[asked]!r} is more than the topic's plan, which is {ORDERS[plan.order]!r}: "
                "declare it on the Topic, since the publisher must know it"
            )
        needs = negotiate(topic, group, settings, origins, plan, self.transport, self.scheme, asked)
        if settings.batch is not None and (self.bus._middleware or settings.middleware):
            whose = "subscription" if settings.middleware else "bus"
            advice = "a middleware wraps single messages and would not see a batch: leave one of the two out"
            if not settings.middleware:
                advice += ", or give the batch subscription a bus of its own"
            needs.append(Need(name, group, "middleware", f"of the {whose}, with batch=", "code", "refused", advice))
        if not refused:
            refuse(needs)
        copies = retry_topics.needed(settings, self.transport.capabilities, asked, group)
        returns = names.retry_topic(name, group) if group is not None else None
        returning = copies or (returns is not None and self._row(returns) in await self._uses())
        services = Services(
            self.bus, self.scope, self.overrides, self.bus._sync_facade, settings.concurrency, where
        )  # fmt: skip
        routes: dict[str | None, Route] = {}
        check_single_types([(one.topic.type, one.where) for one in members], where)
        for one in members:
            routes[one.topic.type] = await self._route(one, settings, services, write=write)
        letters = settings.dead_letter
        dead = letters.topic if letters is not None and letters.topic else names.dead_letter_topic(name, group or "")
        emulated = plan.order > self.transport.capabilities.order and asked > Order.NONE and group is not None
        program = Program(
            topic=name, group=group, settings=settings, order=asked, physical=plan.physical,
            physical_group=None if group is None else self.physical(group),
            leased=self.physical(names.lease_row(name, group)) if emulated and group is not None else None,
            dead_letters=self.physical(dead), routes=routes, default_type=first.topic.type or name,
            batch=settings.batch,
            returns=None if returns is None else self.physical(returns), copies=copies, returning=returning,
        )  # fmt: skip
        return Assembled(program, settings, origins, needs, services, topic, plan)

    async def _route(self, one: Declared, settings: Settings, services: Services, *, write: bool) -> Route:
        schema = (
            body_schema(one.fn, one.batch is not None) if one.named or one.topic.schema is Any else one.topic.schema
        )
        where = one.where
        if one.batch is not None:
            batch = compile_batch(one.fn, where=where, schema=schema, services=services, executor=settings.executor)
            if settings.timeout is not None:
                batch = bounded(settings.timeout, batch)
            if self.taps:
                batch = self._tapped_batch(batch, one)
            return Route(schema=schema, content_type=one.topic.codec, handle=_never, handle_batch=batch)
        handle: Handler = compile_handler(
            one.fn, where=where, schema=schema, services=services, executor=settings.executor
        )
        if settings.timeout is not None:
            handle = bounded(settings.timeout, handle)
        handle = wrap(handle, (*self.bus._middleware, *settings.middleware))
        if one.to is not None:
            if write:
                await self.plan(one.to)
            handle = chain(handle, self._output(one.to))
        if self.taps:
            handle = self._tapped(handle, one)
        return Route(schema=schema, content_type=one.topic.codec, handle=handle)

    def _tapped(self, handle: Handler, one: Declared) -> Handler:
        async def tapped(message: Message[Any]) -> object:
            value = await handle(message)
            for tap in self.taps:
                tap("handled", one.topic.name, one.group, message)
            return value

        return tapped

    def _tapped_batch(self, handle: BatchHandler, one: Declared) -> BatchHandler:
        async def tapped(messages: list[Message[Any]]) -> Outcomes:
            outcomes = await handle(messages)
            for message, outcome in zip(messages, outcomes or [None] * len(messages), strict=False):
                if outcome is None:
                    for tap in self.taps:
                        tap("handled", one.topic.name, one.group, message)
            return outcomes

        return tapped

    def _output(self, to: Topic[Any]) -> Callable[[Message[Any], object], Any]:
        async def publish(message: Message[Any], value: object) -> None:
            handling.set(message)
            id_ = derived_id(message.id, to.name)
            reading = message._read()
            if not isinstance(reading, Reading) or reading.outputs is None:
                await self.bus.publish(to, value, id=id_)
                return

            def make(writer: Writer) -> tuple[Writer, Outgoing]:
                return writer, writer.message(value, {"id": id_}, message)

            known = self.writers.get(to)
            writer, out = make(known) if known else await self.first(to, make, self.loop.time() + PUBLISH)
            reading.outputs.put(message._received(), out)
            if self.watched:
                self.bus._told(self, writer, value)

        return publish

    def add(self, assembled: Assembled) -> Consumer:
        """Start one subscription in the background. Raises Misuse once the bus is being closed."""
        if self.closing:
            raise Misuse("the bus was closed before this subscription had begun")
        consumer = Consumer(assembled.program, self)
        self.consumers[consumer] = assembled
        self._move_due()
        if self._watcher is None and isinstance(self.transport, Registry):
            self._watcher = self.loop.create_task(self._watch(self.transport))
        elif self.delays.emulated and not isinstance(self.transport, Registry):
            self.delays.start()  # there is nobody to ask whether it is needed
        consumer.on_change = lambda: self._changed(consumer)
        consumer.start()
        return consumer

    def _changed(self, consumer: Consumer) -> None:
        if consumer.failure is not None and self.failure is None:
            self.failure = consumer.failure
            self.failed.set()

    async def remove(self, consumer: Consumer, deadline: float) -> None:
        """Drain one subscription and leave its group."""
        await consumer.stop(deadline)
        assembled = self.consumers.pop(consumer, None)
        if assembled is not None:
            assembled.services.close(wait=False)

    async def prepare(self, assembled: Iterable[Assembled]) -> None:
        """Create or check what subscriptions need on the broker, before they begin."""
        wanted: list[Resource] = []
        returns: list[str] = []
        for one in assembled:
            wanted += topic_resources(one.topic, one.plan, self.config.topic(one.topic.name))
            wanted += return_resources(one)
            if one.program.copies and one.program.group is not None:
                returns.append(names.retry_topic(one.program.topic, one.program.group))
        await self.insist(partial(self.provision, wanted))
        for name in returns:
            await self.insist(partial(self.use, name))

    # ---- what is in use -------------------------------------------------------------------------------------------

    def _row(self, name: str) -> str:
        return self.physical(names.uses_row(name))

    async def use(self, name: str) -> None:
        """Let all members see that a return address, or the delay topics, are in use; it stays so. Raises
        TransportError."""
        if isinstance(self.transport, Registry) and self._row(name) not in (self._used or ()):
            await self.transport.write(self._row(name), b"1", expect=None, ttl=None)

    async def _uses(self) -> frozenset[str]:
        """Names of the rows that tell what is in use, as of the last look."""
        registry = self.transport
        if self._used is None and isinstance(registry, Registry):
            rows = await self.insist(lambda: registry.read(self.physical(names.USES)))
            self._used = frozenset(rows)
        return self._used or frozenset()

    async def _watch(self, registry: Registry) -> None:
        """Look now and then what others have begun to use, and do our part of it."""
        while True:
            try:
                await self.link.wait()
            except SwitchgearError:
                return
            try:
                self._used = frozenset(await registry.read(self.physical(names.USES)))
                if self._row(names.DELAY_GROUP) in self._used:
                    self.delays.start()
                for consumer in list(self.consumers):
                    topic, group = consumer.program.topic, consumer.program.group
                    if group is not None and self._row(names.retry_topic(topic, group)) in self._used:
                        await consumer.read_returns()
            except SwitchgearError as error:
                log.debug("%s: looking again for what is in use: %s", self.url, said(error))
            except Exception:
                log.exception("the transport failed in read or assign; this is a bug of the transport")
            await self.clock.sleep(LOOK)

    async def _provision_topic(self, topic: Topic[Any], plan: Plan) -> None:
        await self.provision(topic_resources(topic, plan, self.config.topic(topic.name)))

    async def provision(self, resources: Sequence[Resource]) -> None:
        """Create or check what is needed, as the bus's `provision` says."""
        mode = self.bus._provision
        if mode == "off" or not isinstance(self.transport, Provisioner):
            return
        drifts = await self.transport.provision(resources, mode == "create")
        missing = [d for d in drifts if not d.applied]
        if missing and mode == "check":
            lines = ", ".join(
                f"{d.resource.kind} {d.resource.name}: {d.field} is {d.found!r}, wanted {d.wanted!r}" for d in missing
            )
            raise NotFound(f"provision='check' found differences: {lines}; run `switchgear provision`")

    # ---- what consumers ask for -----------------------------------------------------------------------------------

    def count(self, event: str, topic: str, group: str | None, n: int) -> None:
        for observer in self._observers:
            try:
                observer.count(event, topic, group, n)
            except Exception:
                log.exception("an observer failed at counting %r; nothing else is affected", event)

    def abandoned(self) -> None:
        self.bus._abandoned = True

    def buried(self, message: Message[Any], topic: str, group: str) -> None:
        for tap in self.taps:
            tap("dead_lettered", topic, group, message)

    async def reply(self, message: Message[Any], value: object, failure: str | None) -> None:
        await answer(self, message, value, failure)

    def health(self) -> Health:
        detail = {"broker": "connected" if self.link.up else f"not connected: {self.link.error or 'yet'}"}
        ready = self.link.up
        live = self.failure is None and self.link.terminal is None
        if self.delays.trouble():
            detail["delays"] = self.delays.trouble()
        for consumer in list(self.consumers):  # another thread may ask
            detail[consumer.program.where] = consumer.detail or consumer.state
            ready = ready and consumer.state in ("active", "standby")
        return Health(live=live, ready=ready and live, detail=detail)


def wrap(handle: Handler, middleware: Sequence[Middleware]) -> Handler:
    """The handler inside its middlewares; the first is the outermost."""
    for layer in reversed(middleware):
        handle = layer(handle)
    return handle


def derived_id(incoming: str, topic: str) -> str:
    """The id of a `to=` message: the same for every run of the handler, so that a duplicate can be recognised."""
    return f"{incoming}>{topic}"


def topic_resources(topic: Topic[Any], plan: Plan, configured: Mapping[str, object]) -> list[Resource]:
    """What a topic needs on the broker."""
    retention = topic.retention if topic.retention is not None else configured.get("retention")
    return [
        Resource(
            kind="topic", name=name, order=plan.order, partitions=plan.partitions if plan.native else 1,
            retention=retention,  # type: ignore[arg-type]
        )
        for name in plan.physical
    ]  # fmt: skip


def return_resources(assembled: Assembled) -> list[Resource]:
    """What a subscription's return address needs on the broker, where it has one."""
    program = assembled.program
    if not program.copies or program.returns is None:
        return []
    return [Resource(kind="topic", name=program.returns, private=True)]


def group_resources(assembled: Assembled) -> list[Resource]:
    """What a subscription's group needs on the broker."""
    program = assembled.program
    if program.physical_group is None:
        return []
    return [
        Resource(
            kind="group", name=program.physical_group, topic=name, order=program.order, start=assembled.settings.start
        )
        for name in (*program.physical, *((program.returns,) if program.copies and program.returns else ()))
    ]


def _declared_topic(members: list[Declared]) -> Topic[Any]:
    """The topic as the handlers of one group declare it. Raises ConfigurationError where they contradict."""
    found = members[0].topic
    for one in members[1:]:
        other = one.topic
        for field in ("order", "partitions"):
            mine, theirs = getattr(found, field), getattr(other, field)
            if not one.named and not members[0].named and mine != theirs:
                raise ConfigurationError(
                    f"topic {found.name!r}: {members[0].where} declares {field}={mine!r}, "
                    f"{one.where} {field}={theirs!r}: declare the same"
                )
        if members[0].named and not one.named:
            found = other
    return found


def _itself(writer: Writer) -> Writer:
    return writer


async def _never(_: Message[Any]) -> object:
    raise Misuse("a batch handler does not take single messages")


class _Place(NamedTuple):
    """A publisher that waits until the broker has told about its topic."""

    topic: Topic[Any] | str
    declared: Topic[Any]
    use: Callable[[Writer], Any]
    future: asyncio.Future[Any]


@dataclass(slots=True)
class _Opening:
    """A topic about which the broker is being asked, and who waits for that, in order."""

    queue: deque[_Place]
    task: asyncio.Future[None]
