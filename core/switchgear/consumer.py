"""One subscription at work: fetch what there is room for, hand it to long-lived workers in order, settle in batches.

Nothing is made per message but the Message itself: no task, no timer, no future. Leases and overruns are looked at by
one tick for all.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import secrets
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, Protocol

from msgspec import UNSET

from .clock import Clock, Timer
from .driver import (
    Delivery,
    Fence,
    Order,
    Registry,
    Settlement,
    Settling,
    Source,
    Subscription,
    Transport,
    Verdict,
)  # fmt: skip
from .emulate.dead_letters import PARKED, Parked, letter
from .emulate.partitions import Lease
from .errors import (
    CodecError,
    Lost,
    NotSent,
    SwitchgearError,
    TransportError,
    Unavailable,
)  # fmt: skip
from .lanes import Lanes
from .message import Message, handling
from .middleware.retry import backoff
from .outcomes import Drop, Reject, RetryAfter
from .program import OutputFailed, Program, Skip
from .reading import Reading
from .settling import AT, Cumulative, Individual, Settler, Unsettled
from .supervision import Link, said

log = logging.getLogger("switchgear.consumer")

FETCH = 1000  # the most messages of one receive
PREFETCH_BYTES = 64 << 20
SLICE = 0.002  # seconds that a worker may go on without letting the loop turn
QUICK, SLOW = 0.25, 2.0  # a full receive handled in less: fetch more at once; in more: less
BACKOFF, BACKOFF_CAP = 0.1, 5.0  # seconds between tries to subscribe or to write a dead letter


class Host(Protocol):
    """What a consumer needs of its bus."""

    name: str
    transport: Transport
    link: Link
    clock: Clock

    async def emit(self, out: Any, timeout: float | None = None) -> None: ...
    def count(self, event: str, topic: str, group: str | None, n: int) -> None: ...
    def buried(self, message: Message[Any], topic: str, group: str) -> None: ...
    async def reply(self, message: Message[Any], value: object, failure: str | None) -> None: ...
    def physical(self, name: str) -> str: ...


class Slot:
    """One worker and what it is at."""

    __slots__ = ("batch", "delivery", "overrun", "started", "task")

    def __init__(self) -> None:
        self.delivery: Delivery | None = None
        self.batch: Sequence[Delivery] = ()
        self.started = 0.0
        self.overrun = False
        self.task: asyncio.Task[None]


class Consumer:
    """A (topic, group) of one bus, from the first connection to the last acknowledgement."""

    def __init__(self, program: Program, host: Host) -> None:
        self.program, self._host = program, host
        self.settings = program.settings
        self._loop = asyncio.get_running_loop()
        self._clock = host.clock
        self.state = "starting"
        self.detail = ""
        self.ready: asyncio.Future[None] = self._loop.create_future()
        self.failure: BaseException | None = None
        """What ended the subscription for good."""
        self.finished: asyncio.Event = asyncio.Event()
        self.draw = random.Random()
        self._main: asyncio.Task[None] | None = None
        self._stopping = False
        self._stop_at = float("inf")
        self._order = program.order
        self._idle: deque[asyncio.Future[None]] = deque()
        self._room: asyncio.Future[bool] | None = None
        self._slots: list[Slot] = []
        self._prefetch = max(2 * self.settings.concurrency, 2 * (program.batch.size if program.batch else 1), 16)
        self._valid_until = float("inf")
        self._timers: dict[Any, Timer] = {}
        self._gathering = asyncio.Lock()
        self._lease: Lease | None = None
        self._lost = False
        self._stuck: set[Any] = set()
        self._full_lanes: frozenset[str] = frozenset()
        self.on_change: Callable[[], None] = lambda: None
        self.lanes = Lanes(Order.NONE if program.pull else self._order)
        self.handed: dict[Any, Delivery] = {}
        """Pull style: by token, what the program has and has not settled."""
        self.failures: dict[Any, int] = {}
        """By token: attempts that failed in this process and were not told to the broker."""
        self._source: Source | None = None
        self.reading: Reading
        self._settler: Settler
        self._parked: Parked | None = None
        self._halted: set[str] = set()
        self._aside: list[Delivery] = []

    # ---- life -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin in the background; `ready` resolves when subscribed (or standing by), or fails for good."""
        self._main = self._loop.create_task(self._run(), name=f"switchgear {self.program.where}")

    async def stop(self, deadline: float) -> None:
        """Drain: fetch nothing more, let handlers finish until `deadline` (the loop's clock), release the rest, leave."""
        self._stop_at = deadline
        self._stopping = True
        self._wake_room()
        self._wake_idle()
        if self._main is None:
            return
        if self.state in ("starting", "standby", "reconnecting"):
            self._main.cancel()
        await asyncio.wait([self._main])

    async def _run(self) -> None:
        failures = 0
        try:
            while not self._stopping:
                try:
                    await self._host.link.wait()
                    await self._serve()
                    failures = 0
                except Unavailable as error:
                    self._host.link.down(error)
                except Lost as error:
                    log.warning("%s: %s; subscribing again", self.program.where, error)
                except NotSent as error:
                    log.warning("%s: cannot subscribe yet: %s", self.program.where, error)
                if not self._stopping:
                    failures += 1
                    self._become("reconnecting")
                    await self._clock.sleep(
                        random.uniform(0.5, 1.0) * min(BACKOFF_CAP, BACKOFF * 2 ** min(failures, 6))
                    )
        except asyncio.CancelledError:
            if not self._stopping:
                raise
        except Exception as error:
            self.failure = error
            log.error("%s ends: %s: %s", self.program.where, type(error).__name__, error)
            if not isinstance(error, SwitchgearError):
                log.exception("this is a bug of the transport or of Switchgear", exc_info=error)
        finally:
            await self._end_workers()
            self._become("failed" if self.failure else "closed")
            if not self.ready.done():
                if self.failure is not None:
                    self.ready.set_exception(self.failure)
                else:
                    self.ready.cancel()
            self.finished.set()
            self._wake_idle()
            self.on_change()

    def _become(self, state: str, detail: str = "") -> None:
        self.state, self.detail = state, detail
        self.on_change()

    async def _serve(self) -> None:
        """Subscribe and work until told to stop, or until the source or the lease is lost."""
        program, settings, host = self.program, self.settings, self._host
        member = f"{host.name}/{socket.gethostname()}/{os.getpid()}/{secrets.token_hex(4)}"
        fence: Fence | None = None
        keeper: asyncio.Task[None] | None = None
        self._lost = False
        if program.leased is not None:
            registry = host.transport
            assert isinstance(registry, Registry)
            self._lease = Lease(registry, program.leased, member, settings.lease, self._clock)
            fence = await self._lease.acquire(self._stand_by)
            self._valid_until = self._lease.until
            keeper = self._loop.create_task(self._keep(self._lease))
        lanes = self.lanes
        source: Source | None = None
        tasks: list[asyncio.Task[None]] = []
        try:
            source = await host.transport.subscribe(
                Subscription(
                    topics=dict.fromkeys(program.physical, fence),
                    group=program.physical_group,
                    consumer=member,
                    start=settings.start,
                    order=Order.NONE if program.leased else self._order,
                    lease=settings.lease,
                    outstanding=max(settings.window, FETCH),
                    private=program.private,
                ),
                self._revoked,
            )
            self._source = source
            self.reading = program.reading(source, self.failures)
            if program.pull:
                self.reading.engine = self  # type: ignore[attr-defined]
            self._settler = self._make_settler(source, lanes)
            if settings.dead_letter is not None and settings.dead_letter.after == "park":
                assert isinstance(host.transport, Registry)
                prefix = host.physical("")
                self._parked = Parked(host.transport, prefix, program.topic, program.group or "")
                await self._parked.refresh()
            fetch = self._loop.create_task(self._fetch(source))
            settle = self._loop.create_task(self._settler.run())
            ticks = self._loop.create_task(self._ticks(source))
            tasks = [fetch, settle, ticks]
            if not self._slots and not program.pull:
                work = self._work_batches if program.batch is not None else self._work
                for _ in range(settings.concurrency):
                    slot = Slot()
                    slot.task = self._loop.create_task(work(slot))
                    self._slots.append(slot)
            self._become("active")
            if not self.ready.done():
                self.ready.set_result(None)
            watched = {*tasks, *(slot.task for slot in self._slots), *([keeper] if keeper else ())}
            done, _ = await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
            if not self._stopping:
                for task in done:
                    task.result()  # raises what ended it
                raise Lost("the lease is with another member" if keeper in done else "the source ended")
            await self._drain(source)
        finally:
            if keeper is not None:
                keeper.cancel()
            await self._abandon(source, tasks)
            if self._lease is not None:
                try:
                    async with asyncio.timeout(2.0):
                        await self._lease.release()
                except (TransportError, TimeoutError) as error:
                    log.debug("%s: the lease runs out by itself: %s", program.where, said(error))
                self._lease = None
                self._valid_until = float("inf")

    def _make_settler(self, source: Source, lanes: Lanes) -> Settler:
        link = self._host.link
        if self.settings.delivery == "at_most_once":
            return Unsettled(lanes, self._settled)
        if source.capabilities.settling is Settling.INDIVIDUAL:
            return Individual(lanes, source, self._clock, down=link.down, up=link.wait, settled=self._settled)

        def failures(delivery: Delivery) -> int:
            return self.failures.get(delivery.token, 0)

        def recall(delivery: Delivery, attempts: int) -> None:
            self.failures[delivery.token] = attempts

        return Cumulative(
            lanes, source, self._clock, down=link.down, up=link.wait, settled=self._settled,
            failures=failures, recall=recall, note_limit=source.capabilities.note,
        )  # fmt: skip

    def _stand_by(self, holder: str) -> None:
        log.info("%s: standby, %s is active", self.program.where, holder)
        self._become("standby", f"standby: {holder} is active")
        if not self.ready.done():
            self.ready.set_result(None)

    async def _keep(self, lease: Lease) -> None:
        keeping = self._loop.create_task(lease.keep())
        try:
            while not keeping.done():
                self._valid_until = lease.until
                await asyncio.wait([keeping], timeout=min(1.0, self.settings.lease / 6))
        finally:
            self._valid_until = 0.0 if keeping.done() else self._valid_until
            keeping.cancel()

    # ---- fetching -------------------------------------------------------------------------------------------------

    async def _fetch(self, source: Source) -> None:
        lanes, settings = self.lanes, self.settings
        ready, held = lanes.ready, lanes.held
        window = settings.window
        at_most_once = settings.delivery == "at_most_once"
        began, pending = self._loop.time(), False
        while not self._stopping:
            room = self._prefetch - len(ready)
            full: Collection[str] = ()
            blocked = lanes.bytes >= PREFETCH_BYTES
            if len(held) >= window and not blocked:
                full = self._over_window(window)
            else:
                self._open_lanes()
            if self._halted:
                full = {*full, *self._halted}
            blocked |= "" in full
            if room <= self._prefetch // 2 or blocked:
                if not await self._made_room():
                    await self._receive(source, 0, full)
                continue
            if pending:  # the last full receive is mostly handled: how long did it take?
                took = self._loop.time() - began
                if took < QUICK:
                    self._prefetch = min(2 * FETCH, self._prefetch * 2)
                elif took > SLOW:
                    self._prefetch = max(2 * settings.concurrency, self._prefetch // 2)
            room = self._prefetch - len(ready)
            limit = min(FETCH, room, max(1, window - len(held)) if not full else room)
            batch = await self._receive(source, limit, full)
            pending = 2 * len(batch) >= limit
            began = self._loop.time()
            if not batch:
                continue
            if self._closing(source):
                self._give_back(batch)
                break
            if at_most_once:
                batch = await self._take_for_good(source, batch)
            batch = self._settler.admit(batch)
            again = lanes.admit(batch)
            if again:
                log.debug("%s: %d deliveries came again while held", self.program.where, again)
            if self._parked is not None:
                await self._parked.refresh()
            if self._halted:
                self._set_aside()
            if ready and self._idle:
                self._wake_one()  # who wakes the next, while there is more

    def _closing(self, source: Source) -> bool:
        return self._stopping or source is not self._source

    async def _made_room(self) -> bool:
        """Whether there is room again; False after a second, for the source's sake."""
        room = self._room = self._loop.create_future()
        timer = self._loop.call_later(1.0, _expire, room)
        made: bool = await room
        timer.cancel()
        self._room = None
        return made

    async def _receive(self, source: Source, limit: int, full: Collection[str]) -> Sequence[Delivery]:
        """Receive over interruptions of the connection: the source stays and hands out again what was missed."""
        while True:
            try:
                batch = await source.receive(limit, full)
            except Unavailable as error:
                self._host.link.down(error)
                self._become("reconnecting", f"cannot reach the broker: {error}")
                waiting = asyncio.ensure_future(self._host.link.wait())
                while not self._stopping and not waiting.done():
                    await asyncio.wait([waiting], timeout=0.2)
                if self._stopping and not waiting.done():
                    waiting.cancel()
                    return ()
                waiting.result()
                self._become("active")
                continue
            return batch

    async def _take_for_good(self, source: Source, batch: Sequence[Delivery]) -> Sequence[Delivery]:
        """At most once: acknowledge before the handler sees anything; what could not be is left to the broker."""
        outcomes = await source.settle([Settlement(d, Verdict.ACK) for d in batch])
        return [d for d, outcome in zip(batch, outcomes, strict=True) if outcome is None]

    def _over_window(self, window: int) -> frozenset[str]:
        """Lanes that hold as much as they may; "" where there are no lanes. Logged when it changes."""
        counts = Counter(d.lane for d in self.lanes.held.values())
        full = frozenset(lane for lane, n in counts.items() if n >= window)
        for lane in full - self._full_lanes:
            log.warning(
                "%s: %s is paused: %d messages wait behind retries or slow handlers (window=%d)",
                self.program.where, f"lane {lane}" if lane else "the subscription", counts[lane], window,
            )  # fmt: skip
        if full != self._full_lanes:
            self._full_lanes = full
            self.on_change()
        return full

    def _open_lanes(self) -> None:
        if self._full_lanes:
            log.info("%s: goes on", self.program.where)
            self._full_lanes = frozenset()
            self.on_change()

    def _give_back(self, batch: Sequence[Delivery]) -> None:
        for delivery in batch:
            if delivery.token not in self.lanes.held:
                self._settler.put(Settlement(delivery, Verdict.RELEASE))

    def _wake_room(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(True)

    def _wake_idle(self) -> None:
        while self._idle:
            waiter = self._idle.popleft()
            if not waiter.done():
                waiter.set_result(None)

    def _wake_one(self) -> None:
        while self._idle:
            waiter = self._idle.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    async def _revoked(self, names: Collection[str], lost: bool) -> None:
        """The broker takes lanes away: let what runs finish within its budget, settle, then give the lanes up."""
        gone = set(names)
        lanes = self.lanes
        source = self._source
        if source is None:
            return
        if not lost:
            lanes.lose([d.token for d in lanes.waiting() if d.lane in gone], ())
            lanes.lose([t for t, d in lanes.delayed.items() if d.lane in gone], ())
            until = self._loop.time() + source.capabilities.revoke_within * 0.8
            while self._running_in(gone) and self._loop.time() < until:
                await asyncio.sleep(0.005)
            try:
                async with asyncio.timeout_at(until + source.capabilities.revoke_within * 0.15):
                    await self._settler.flush()
            except (Unavailable, TimeoutError) as error:
                log.warning("%s: lanes left unsettled: %s", self.program.where, said(error))
        running = {d.token for d in self._running()}
        lanes.lose([t for t, d in lanes.held.items() if d.lane in gone], running)
        self._settler.lose(list(gone))
        self._drop_timers()
        self._wake_room()

    def _running(self) -> list[Delivery]:
        found = [slot.delivery for slot in self._slots if slot.delivery is not None]
        for slot in self._slots:
            found.extend(slot.batch)
        return found

    def _running_in(self, names: Collection[str]) -> bool:
        return any(d.lane in names for d in self._running())

    def _drop_timers(self) -> None:
        for token in [t for t in self._timers if t not in self.lanes.delayed]:
            self._timers.pop(token).cancel()

    # ---- handling -------------------------------------------------------------------------------------------------

    async def _work(self, slot: Slot) -> None:
        """The hot path: take what is ready, hand it over, note that it is done."""
        program = self.program
        lanes, failures = self.lanes, self.failures
        ready, chains, order = lanes.ready, lanes.chains, lanes.order
        route = program.route
        special = route is None or self._parked is not None
        media, decode, handle = (b"", None, None) if route is None else (route.media, route.decode, route.handle)
        clock, idle, new_future, enter = time.monotonic, self._idle, self._loop.create_future, handling.set
        undecoded: Any = UNSET
        while not self._stopping:
            if not ready:
                enter(None)
                waiter = new_future()
                idle.append(waiter)
                await waiter
                if idle and len(ready) > 1:
                    self._wake_one()
            until = clock() + SLICE
            while ready and not self._stopping:
                delivery = ready.popleft()
                now = clock()
                if now > until:
                    ready.appendleft(delivery)
                    await asyncio.sleep(0)
                    until = clock() + SLICE
                    continue
                if self._room is not None and 2 * len(ready) <= self._prefetch:
                    self._wake_room()
                if now > self._valid_until:  # the lease is over: no new handler; the keeper sees to the rest
                    ready.appendleft(delivery)
                    await asyncio.sleep(0.01)
                    break
                slot.started = now
                slot.delivery = delivery
                message: Message[Any] = Message(delivery, self.reading, undecoded)
                enter(message)
                try:
                    body = delivery.body
                    if special or delivery.marked or body is None or delivery.media != media:
                        await self._handle_unusual(message)
                    else:
                        message._body = decode(body)  # type: ignore[misc]
                        await handle(message)  # type: ignore[misc]
                except BaseException as error:
                    await self._failed(slot, message, error)
                    continue
                slot.delivery = None
                settler = self._settler
                done = settler.done
                done.append(delivery)
                n = len(done)
                if n == 1 or n == AT:
                    settler.kick(n)
                if order:
                    key = delivery.key if order == 1 else b""
                    if key is not None:
                        waiting = chains.get(key)
                        if waiting:
                            ready.append(waiting.popleft())
                        else:
                            chains.pop(key, None)
                if failures:
                    failures.pop(delivery.token, None)

    async def _handle_unusual(self, message: Message[Any]) -> None:
        """Whatever the hot path does not do: several types, expiry, other codecs, tombstones, requests, parked keys."""
        delivery = message._received()
        if self._parked is not None and delivery.key in self._parked:
            raise Reject(PARKED)
        reading = self.reading
        envelope = reading.check(message)
        if envelope.expires is not None and envelope.expires <= self._clock.now():
            raise Skip("expired", "its expiry time has passed")
        route = self.program.pick(message)
        route.decode_into(message, delivery, envelope)
        value = await route.handle(message)
        if envelope.reply_to is not None:
            await self._answer(message, value, None)

    async def _answer(self, message: Message[Any], value: object, failure: str | None) -> None:
        try:
            await self._host.reply(message, value, failure)
        except TransportError as error:
            log.warning("%s: the answer to request %s was not sent: %s", self.program.where, message.id, error)

    async def _work_batches(self, slot: Slot) -> None:
        """Gather, hand over as a list, settle item by item."""
        batch_of = self.program.batch
        assert batch_of is not None
        while not self._stopping:
            handling.set(None)
            async with self._gathering:
                gathered = await self._gather(batch_of.size, batch_of.wait)
            if not gathered:
                continue
            slot.batch, slot.started = gathered, time.monotonic()
            await self._handle_batch(slot, gathered)
            slot.batch = ()
            self._wake_room()

    async def _gather(self, size: int, wait: float) -> list[Delivery]:
        """Up to `size` deliveries; of a key those that follow each other come together, in order."""
        lanes = self.lanes
        ready, chains = lanes.ready, lanes.chains
        batch: list[Delivery] = []
        until: float | None = None
        while not self._stopping:
            while ready and len(batch) < size:
                if self._loop.time() > self._valid_until:
                    await asyncio.sleep(0.01)
                    return batch
                delivery = ready.popleft()
                batch.append(delivery)
                key = lanes.chain_of(delivery)
                chain = chains.get(key) if key is not None else None
                while chain and len(batch) < size:
                    batch.append(chain.popleft())
                    ready_key = key
                    assert ready_key is not None
            self._wake_room()
            if len(batch) >= size or (batch and wait <= 0):
                return batch
            now = self._clock.monotonic()
            if batch and until is None:
                until = now + wait
            if until is not None and now >= until:
                return batch
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._idle.append(waiter)
            timer = None if until is None else self._clock.call_at(until, partial(_let_go, waiter))
            await waiter
            if timer is not None:
                timer.cancel()
        for delivery in reversed(batch):  # stopping: nothing of it was handed over
            ready.appendleft(delivery)
        return []

    async def _handle_batch(self, slot: Slot, gathered: list[Delivery]) -> None:
        messages: list[Message[Any]] = []
        failed: dict[int, BaseException] = {}
        route = self.program.route or next(iter(self.program.routes.values()))
        for delivery in gathered:
            message: Message[Any] = Message(delivery, self.reading, UNSET)
            messages.append(message)
            try:
                if self._parked is not None and delivery.key in self._parked:
                    raise Reject(PARKED)
                envelope = None
                if delivery.marked or delivery.media != route.media or delivery.body is None:
                    envelope = self.reading.check(message)
                    if envelope.expires is not None and envelope.expires <= self._clock.now():
                        raise Skip("expired", "its expiry time has passed")
                route.decode_into(message, delivery, envelope)
            except Exception as error:
                failed[id(message)] = error
        good = [m for m in messages if id(m) not in failed]
        if good:
            try:
                outcomes = await route.handle_batch(good)
                if outcomes is not None and len(outcomes) != len(good):
                    raise ValueError(
                        f"the batch handler returned {len(outcomes)} outcomes for {len(good)} messages: "
                        "return one per message, or None"
                    )
                for message, outcome in zip(good, outcomes or (), strict=False):
                    if outcome is not None:
                        failed[id(message)] = outcome
            except BaseException as error:
                if not self._handlers_fault(slot, error):
                    raise
                failed.update((id(m), self._as_failure(slot, error)) for m in good)
        ended: set[bytes] = set()
        back: list[Delivery] = []
        last: dict[bytes, Delivery] = {}
        for message in messages:
            delivery = message._received()
            key = self.lanes.chain_of(delivery)
            if key is not None and key in ended:
                self._count_failure(message, failed.get(id(message)))
                back.append(delivery)
                continue
            failure = failed.get(id(message))
            if failure is None:
                self._done(delivery)
                if key is not None:
                    last[key] = delivery
            elif await self.conclude(message, failure):
                if key is not None:
                    last[key] = delivery
            elif key is not None:
                ended.add(key)  # it is tried again and keeps its key
        for delivery in reversed(back):
            key = self.lanes.chain_of(delivery)
            assert key is not None
            chain = self.lanes.chains.get(key)
            if chain is None:
                chain = self.lanes.chains[key] = deque()
            chain.appendleft(delivery)
        for key, delivery in last.items():
            if key not in ended:
                self.lanes.advance(delivery)
        self._wake_one()

    def _count_failure(self, message: Message[Any], error: BaseException | None) -> None:
        if error is not None and not isinstance(error, (Drop, Reject, RetryAfter, Skip)):
            token = message._received().token
            self.failures[token] = self.failures.get(token, 0) + 1

    def _done(self, delivery: Delivery) -> None:
        settler = self._settler
        settler.done.append(delivery)
        settler.kick(len(settler.done))
        self.failures.pop(delivery.token, None)

    # ---- pull style: for `pull.Consumer` ---------------------------------------------------------------------------

    @property
    def cumulative(self) -> bool:
        return isinstance(self._settler, Cumulative)

    def now(self) -> float:
        """Unix seconds."""
        return self._clock.now()

    async def wait_ready(self, timeout: float | None) -> None:
        """Return when something may be ready, or after `timeout` seconds."""
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._idle.append(waiter)
        try:
            await asyncio.wait([waiter], timeout=timeout)
        finally:
            if not waiter.done():
                waiter.cancel()
            elif self.lanes.ready:
                self._wake_one()  # this call may have been cancelled: another one takes it

    def taken(self) -> None:
        if 2 * len(self.lanes.ready) <= self._prefetch:
            self._wake_room()

    def wake(self) -> None:
        self._wake_room()

    def handled(self, n: int) -> None:
        self._host.count("handled", self.program.topic, self.program.group, n)

    async def done_now(self, delivery: Delivery) -> None:
        """Acknowledge by watermark, confirmed."""
        self._settler.done.append(delivery)
        await self._settler.flush()

    def busy(self) -> bool:
        """Whether anything can go on without time passing: something ready, running or not yet settled."""
        if self.state in ("closed", "failed"):
            return False
        settler = getattr(self, "_settler", None)
        unsettled = settler is not None and bool(settler.done or getattr(settler, "other", ()))
        return self.state != "active" or bool(self.lanes.ready) or bool(self._running()) or unsettled

    # ---- failures -------------------------------------------------------------------------------------------------

    async def _failed(self, slot: Slot, message: Message[Any], error: BaseException) -> None:
        """A handler did not return. Carries out what follows; re-raises what is not the handler's doing."""
        if not self._handlers_fault(slot, error):
            raise error
        delivery = message._received()
        if await self.conclude(message, self._as_failure(slot, error)):
            self.lanes.advance(delivery)
            self._wake_one()
        slot.delivery = None

    def _handlers_fault(self, slot: Slot, error: BaseException) -> bool:
        if isinstance(error, asyncio.CancelledError):
            task = slot.task
            if slot.overrun:
                while task.cancelling():
                    task.uncancel()
                return True
            return not task.cancelling()  # the handler let a cancellation of its own escape
        return isinstance(error, Exception)

    def _as_failure(self, slot: Slot, error: BaseException) -> Exception:
        if slot.overrun:
            slot.overrun = False
            return TimeoutError(f"the handler took longer than max_handling={self.settings.max_handling:g} s")
        if isinstance(error, Exception):
            return error
        failure = RuntimeError("the handler was cancelled from within")
        failure.__cause__ = error
        return failure

    async def conclude(self, message: Message[Any], error: BaseException) -> bool:
        """What becomes of a message that was not handled; True when it is done with, False when it is tried again."""
        where, settings, host = self.program.where, self.settings, self._host
        topic, group = self.program.topic, self.program.group
        delivery = message._received()
        if isinstance(error, Skip):
            host.count(error.event, topic, group, 1)
            log.debug("%s: message %s is not handled: %s", where, message.id, error)
            self._done(delivery)
            return True
        if isinstance(error, Drop):
            host.count("dropped", topic, group, 1)
            log.debug("%s: message %s is dropped: %s", where, message.id, error.reason)
            self._done(delivery)
            return True
        if isinstance(error, OutputFailed):
            log.warning("%s: the output of message %s was not stored: %s", where, message.id, error.__cause__)
            self._hold(delivery, self.draw.uniform(0.5, 1.0))
            return False
        undecoded = message._body is UNSET and isinstance(error, self.program.decode_errors)
        if isinstance(error, Reject) or undecoded:
            reason = error.reason if isinstance(error, Reject) else _describe(error)
            attempts = message.attempt if isinstance(error, Reject) and reason != PARKED else 0
            host.count("rejected", topic, group, 1)
            return await self._bury(message, reason, attempts)
        attempt = message.attempt
        policy = settings.retry
        more = policy.attempts is None or attempt < policy.attempts
        if settings.delivery == "at_most_once":
            more = False
        if isinstance(error, RetryAfter):
            delay, worth = error.seconds, True
        else:
            delay, worth = backoff(policy, attempt, self.draw), isinstance(error, policy.on)
        if not (more and worth):
            log.warning("%s: message %s failed for good (attempt %d): %s", where, message.id, attempt, _describe(error))
            return await self._bury(message, _describe(error), attempt)
        host.count("retried", topic, group, 1)
        log.info(
            "%s: message %s failed (attempt %d), again in %.2f s: %s",
            where, message.id, attempt, delay, _describe(error),
        )  # fmt: skip
        return self._again(message, delivery, delay)

    def _again(self, message: Message[Any], delivery: Delivery, delay: float) -> bool:
        """Another attempt: by the broker where nothing is ordered, else held here, keeping its key."""
        source = self._source
        assert source is not None
        longest = source.capabilities.retry_delay
        if self.lanes.chain_of(delivery) is None and longest is not None and delay <= longest and self.program.group:
            current = self.lanes.current(delivery)
            self.failures.pop(delivery.token, None)
            if current is None:
                self.lanes.free(delivery)
            else:
                self._settler.put(Settlement(current, Verdict.RETRY, delay))
            return True
        token = delivery.token
        self.failures[token] = self.failures.get(token, 0) + 1
        self._hold(delivery, delay)
        return False

    def _hold(self, delivery: Delivery, delay: float) -> None:
        token = delivery.token
        self.lanes.delayed[token] = delivery

        def due() -> None:
            self._timers.pop(token, None)
            held = self.lanes.delayed.pop(token, None)
            if held is not None:
                self.lanes.ready.append(held)
                self._wake_one()

        self._timers[token] = self._clock.call_at(self._clock.monotonic() + delay, due)

    async def _bury(self, message: Message[Any], reason: str, attempts: int) -> bool:
        """Write the dead letter, and only then acknowledge; while it can't be written, wait and try again."""
        settings, host, program = self.settings, self._host, self.program
        delivery = message._received()
        policy = settings.dead_letter
        if policy is None or program.group is None:
            log.error("%s: message %s is given up: %s", program.where, message.id, reason)
            host.count("dropped", program.topic, program.group, 1)
            await self._answer_failure(message, reason)
            self._done(delivery)
            return True
        park = policy.after == "park" and delivery.key is not None
        out = letter(
            message, self.reading, topic=program.dead_letters, reason=reason, attempts=attempts,
            binding=host.transport.capabilities.binding, limits=host.transport.capabilities.headers,
        )  # fmt: skip
        failures = 0
        while True:
            try:
                if park and self._parked is not None and reason != PARKED:
                    assert delivery.key is not None
                    await self._parked.park(delivery.key)
                await host.emit(out, timeout=5.0)
                break
            except TransportError as error:
                failures += 1
                log.warning(
                    "%s: the dead letter of message %s cannot be written, nothing is acknowledged: %s",
                    program.where, message.id, error,
                )  # fmt: skip
                self._become("active", f"the dead-letter topic {program.dead_letters} cannot be written: {error}")
                if self._stopping and self._loop.time() > self._stop_at - 1.0:
                    self._release(delivery)
                    return True
                await asyncio.sleep(random.uniform(0.5, 1.0) * min(BACKOFF_CAP, BACKOFF * 2 ** min(failures, 6)))
        if failures:
            self._become("active")
        host.count("dead_lettered", program.topic, program.group, 1)
        host.buried(message, program.topic, program.group)
        if reason != PARKED:
            await self._answer_failure(message, reason)
        if policy.after == "stop":
            self._halt(message, reason)
            return False
        self._done(delivery)
        return True

    def _halt(self, message: Message[Any], reason: str) -> None:
        """`after="stop"`: the dead letter is written; the message stays held, unacknowledged, so that nobody goes past
        it; it is acknowledged when the subscription is drained."""
        delivery = message._received()
        self._halted.add(delivery.lane)
        self._stuck.add(delivery.token)
        self._set_aside()
        detail = (
            f"stopped after a dead letter: topic {self.program.topic}, key {message.key!r}, "
            f"position {self.reading.position(message)}: {reason}"
        )
        log.error("%s: %s; restart to go on", self.program.where, detail)
        self._become("stopped", detail)

    def _set_aside(self) -> None:
        """Take what waits in stopped lanes out of the workers' reach; it stays held."""
        aside = [d for d in self.lanes.waiting() if d.lane in self._halted]
        self.lanes.take_out({d.token for d in aside})
        self._aside.extend(aside)

    async def _answer_failure(self, message: Message[Any], reason: str) -> None:
        if message._received().marked:
            try:
                reply_to = message._attributes().reply_to
            except CodecError:
                return
            if reply_to is not None:
                await self._answer(message, None, reason)

    def _release(self, delivery: Delivery) -> None:
        current = self.lanes.current(delivery)
        if current is None:
            self.lanes.free(delivery)
        else:
            self._settler.put(Settlement(current, Verdict.RELEASE))

    def _settled(self, batch: Sequence[Settlement], errors: Sequence[TransportError | None]) -> None:
        """Count what the broker confirmed, and see what is no longer ours."""
        lost = [s.delivery.token for s, error in zip(batch, errors, strict=True) if error is not None]
        topic, group = self.program.topic, self.program.group
        if lost:
            self._host.count("lease_lost", topic, group, len(lost))
            log.warning("%s: %d deliveries were no longer ours and will come again", self.program.where, len(lost))
            self.lanes.lose(lost, {d.token for d in self._running()} | set(self.handed))
            self._drop_timers()
        ack = Verdict.ACK
        handled = sum(1 for s in batch if s.verdict is ack) - len(lost)
        if handled > 0:
            self._host.count("handled", topic, group, handled)
        self._wake_room()

    # ---- leases and overruns --------------------------------------------------------------------------------------

    async def _ticks(self, source: Source) -> None:
        """One clock for leases and handler deadlines: a pass a tick, nothing per message."""
        lease = self.settings.lease
        leases = source.capabilities.settling is Settling.INDIVIDUAL and source.capabilities.lease_cap > 0
        leases = leases and self.settings.delivery != "at_most_once"
        lanes = self.lanes
        tick = min(0.5, lease / 4)
        while True:
            await self._clock.sleep(tick)
            now = self._clock.monotonic()
            if leases:
                due: list[Delivery] = []
                for delivery in lanes.held.values():
                    if delivery.until > now + lease / 2:
                        break
                    due.append(delivery)
                if due:
                    await self._extend(source, due, now, lease)
            wall = time.monotonic()
            for slot in self._slots:
                busy = slot.delivery is not None or bool(slot.batch)
                if busy and wall - slot.started > self.settings.max_handling:
                    if not slot.overrun:
                        self._host.count("overrun", self.program.topic, self.program.group, 1)
                        log.warning("%s: a handler overran max_handling and is cancelled", self.program.where)
                        slot.overrun = True
                        slot.task.cancel()

    async def _extend(self, source: Source, due: list[Delivery], now: float, lease: float) -> None:
        try:
            outcomes = await source.settle([Settlement(d, Verdict.EXTEND, lease) for d in due])
        except Unavailable as error:
            self._host.link.down(error)
            return
        held = self.lanes.held
        lost = []
        for delivery, outcome in zip(due, outcomes, strict=True):
            if outcome is not None:
                if held.get(delivery.token) is delivery:
                    lost.append(delivery.token)
            elif held.get(delivery.token) is delivery:
                delivery.until = now + lease
                del held[delivery.token]
                held[delivery.token] = delivery  # back to the end: leases are in order
        if lost:
            self._host.count("lease_lost", self.program.topic, self.program.group, len(lost))
            log.warning("%s: lost the lease of %d messages", self.program.where, len(lost))
            self.lanes.lose(lost, {d.token for d in self._running()} | set(self.handed))
            self._drop_timers()
            self._wake_room()

    # ---- the end --------------------------------------------------------------------------------------------------

    async def _drain(self, source: Source) -> None:
        """Let handlers finish until the deadline, then settle what they did and release what none has begun."""
        self._become("draining")
        while self._running() and self._loop.time() < self._stop_at:
            tasks = [slot.task for slot in self._slots if slot.delivery is not None or slot.batch]
            await asyncio.wait(tasks, timeout=min(0.05, max(0.0, self._stop_at - self._loop.time())))
        for slot in self._slots:
            for delivery in [slot.delivery, *slot.batch]:
                if delivery is not None:
                    log.warning("%s: a handler was still running at the deadline", self.program.where)
                    self._release(delivery)
            slot.task.cancel()
        if self._slots:
            await asyncio.wait([slot.task for slot in self._slots], timeout=1.0)
        for delivery in [*self.lanes.waiting(), *self._aside, *self.handed.values()]:
            self._release(delivery)
        for token, delivery in list(self.lanes.delayed.items()):
            del self.lanes.delayed[token]
            self._timers.pop(token).cancel()
            if source.capabilities.settling is Settling.INDIVIDUAL and source.capabilities.retry_delay is not None:
                if self.failures.get(token):
                    current = self.lanes.current(delivery)
                    if current is not None:
                        self._settler.put(Settlement(current, Verdict.RETRY, 0.0))
                else:
                    self._release(delivery)
        for token in self._stuck:
            delivery_ = self.lanes.held.get(token)
            if delivery_ is not None:
                self._settler.done.append(delivery_)
        self._stuck.clear()
        limit = max(self._stop_at, self._loop.time() + 1.0)
        try:
            async with asyncio.timeout_at(limit):
                await self._settler.flush()
        except (Unavailable, TimeoutError) as error:
            log.warning("%s: the last acknowledgements failed, messages may come again: %s", self.program.where, error)

    async def _abandon(self, source: Source | None, tasks: list[asyncio.Task[None]]) -> None:
        """Leave this source. Handlers that run go on: their outcome settles nothing unless their message comes again."""
        if source is None:
            return
        self._source = None
        self._settler.stop()
        try:
            async with asyncio.timeout(5.0):
                await source.close()
        except (TransportError, TimeoutError) as error:
            log.debug("%s: closing the source failed: %s", self.program.where, said(error))
        self._wake_room()
        for task in tasks[1:]:
            task.cancel()
        _, late = await asyncio.wait(tasks, timeout=3.0)  # a receive is not cancelled: closing ended it
        for task in late:
            task.cancel()
        await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled():
                task.exception()
        self._settler.forget()
        self.lanes.lose(list(self.lanes.held), {d.token for d in self._running()} | set(self.handed))
        self._drop_timers()

    async def _end_workers(self) -> None:
        for slot in self._slots:
            slot.task.cancel()
        if self._slots:
            await asyncio.wait([slot.task for slot in self._slots], timeout=1.0)
        for slot in self._slots:
            if slot.task.done() and not slot.task.cancelled():
                slot.task.exception()
        self._slots = []


def _let_go(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _expire(room: asyncio.Future[bool]) -> None:
    if not room.done():
        room.set_result(False)


def _describe(error: BaseException) -> str:
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
