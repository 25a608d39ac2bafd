"""One subscription at work, from the first connection to the last acknowledgement: its life and what its parts share.

The parts: `fetching` takes in what there is room for, `working` and `batching` hand it to the handler, `fate` decides
what becomes of what failed, `settling` and `watermark` tell the broker, `leases` looks after time, `draining` ends it.
Nothing is made per message but the Message itself: no task, no timer, no future.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import secrets
import socket
import time
from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from typing import Any, Protocol

from .batching import work_batches
from .clock import Clock
from .draining import abandon, drain, end_workers
from .driver import (
    Delivery,
    Fence,
    Membership,
    Order,
    Outgoing,
    Registry,
    Settlement,
    Settling,
    Source,
    Subscription,
    Transactional,
    Transport,
    Verdict,
)
from .emulate.dead_letters import Parked
from .emulate.partitions import Lease
from .errors import Lost, MaybeSent, NotSent, SwitchgearError, TransportError, Unavailable
from .fate import Fate
from .fetching import FETCH, fetch
from .lanes import Lanes
from .leases import ticks
from .message import Message
from .program import Program
from .reading import Reading
from .settling import Individual, Settler, Unsettled
from .supervision import Link, said
from .transacting import Outputs, Transaction
from .watermark import Cumulative
from .working import Slot, work

log = logging.getLogger("switchgear.consumer")

BACKOFF, BACKOFF_CAP = 0.1, 5.0  # seconds between tries to subscribe


class Host(Protocol):
    """What a consumer needs of its bus."""

    name: str
    transport: Transport
    link: Link
    clock: Clock

    async def emit(self, out: Outgoing, timeout: float | None = None) -> None: ...
    async def send_back(self, out: Outgoing, target: str, timeout: float) -> None:
        """Store a copy for `target` (logical), where it is to arrive when it is due. Raises SwitchgearError."""
        ...

    async def place(self, out: Outgoing, target: str, timeout: float) -> Outgoing:
        """What to store now for that, without storing it. Raises SwitchgearError."""
        ...

    def stored(self, outs: Sequence[Outgoing]) -> None:
        """A transaction stored these."""
        ...

    def count(self, event: str, topic: str, group: str | None, n: int) -> None: ...
    def buried(self, message: Message[Any], topic: str, group: str) -> None: ...
    async def reply(self, message: Message[Any], value: object, failure: str | None) -> None: ...
    def physical(self, name: str) -> str: ...
    def abandoned(self) -> None:
        """A `def` handler still runs and nobody waits for it any more: the process cannot end by itself."""
        ...


class Consumer:
    """A (topic, group) of one bus."""

    def __init__(self, program: Program, host: Host) -> None:
        self.program, self.host = program, host
        self.settings = program.settings
        self.loop = asyncio.get_running_loop()
        self.clock = host.clock
        self.time = _quickest(self.loop, self.clock)
        """Seconds of the clock's `monotonic`, without a Python frame where it is the system's."""
        self.ready: asyncio.Future[None] = self.loop.create_future()
        """Resolves when subscribed or standing by; fails with what ended the subscription for good."""
        self.failure: BaseException | None = None
        """What ended the subscription for good."""
        self.finished = asyncio.Event()
        self.on_change: Callable[[], None] = lambda: None
        self.draw = random.Random()
        self.stopping = False
        """Nothing more is fetched."""
        self.ending = False
        """No handler is started any more."""
        self.leaving = False
        """What still runs is being cancelled, since the deadline is here."""
        self.stop_at = float("inf")
        """The deadline of the drain, on the loop's clock."""
        self.lanes = Lanes(Order.NONE if program.pull else program.order)
        self.failures: dict[Hashable, int] = {}
        """By token: attempts that failed in this process and were not told to the broker."""
        self.idle: deque[asyncio.Future[None]] = deque()
        """Workers that wait for something to do."""
        self.room: asyncio.Future[bool] | None = None
        """What the fetching waits for, while there is no room."""
        self.prefetch = max(2 * self.settings.concurrency, 2 * (program.batch.size if program.batch else 1), 16)
        self.valid_until = float("inf")
        """No handler may start after it, unless `may_begin` says so: the end of the lease by which this member is the
        active one, or of what its source has last told of its membership."""
        self.asking = asyncio.Lock()
        """Held by the worker that waits until handlers may start again."""
        self.slots: list[Slot] = []
        self.gathering = asyncio.Lock()
        self.gathered: list[Delivery] = []
        """Taken for a batch that is not complete."""
        self.handed: dict[Hashable, Delivery] = {}
        """Pull style: by token, what the program has and has not settled."""
        self.handed_at: dict[Hashable, float] = {}
        self.source: Source | None = None
        self.membership: Membership | None = None
        """The source, if its lanes are ours only as long as the group hears of us."""
        self.source_opened = False
        """Whether there has been a source; then there are the two that follow."""
        self.reading: Reading
        self.settler: Settler
        self.parked: Parked | None = None
        self.outputs = Outputs() if self.settings.delivery == "exactly_once" else None
        """Exactly once: what is to be stored with the acknowledgements."""
        self.fate = Fate(self)
        self.left: asyncio.Future[None] = self.loop.create_future()
        """Done when threads that still run are left alone."""
        self.revoked: set[str] = set()
        """Lanes that were taken away since the last receive returned: what it brought of them is nobody's any more."""
        self.returning = program.returning
        """Whether the group's return address is read, too."""
        self._fence: Fence | None = None
        self.full: frozenset[str] = frozenset()
        """Lanes that are paused because they hold `window` messages."""
        self._phase, self._said = "starting", ""
        self._halt: asyncio.Future[None] = self.loop.create_future()
        self._main: asyncio.Task[None] | None = None
        self._waiting = True
        """For the broker, for a lease, for its next try: nothing is to be drained, and nothing is being left."""
        self._tries = 0

    # ---- life -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin in the background; see `ready`."""
        self._main = self.loop.create_task(self._run(), name=f"switchgear {self.program.where}")

    async def stop(self, deadline: float) -> None:
        """Drain: fetch nothing more, let handlers finish before `deadline` (the loop's clock), release the rest."""
        self.stop_at = min(self.stop_at, deadline)
        self.stopping = True
        if self.settings.delivery != "at_most_once":  # there, what was fetched is acknowledged: it is handled first
            self.ending = True
        self.wake_room()
        self.wake_idle()
        if not self._halt.done():
            self._halt.set_result(None)
            if self._main is not None and self._waiting:
                self._main.cancel()
        if self._main is not None:
            await asyncio.wait([self._main])

    async def _run(self) -> None:
        try:
            while not self.stopping:
                try:
                    await self.host.link.wait()
                    await self._serve()
                except Unavailable as error:
                    self.host.link.down(error)
                except Lost as error:
                    log.warning("%s: %s; subscribing again", self.program.where, error)
                except (NotSent, MaybeSent) as error:
                    log.warning("%s: cannot subscribe yet: %s", self.program.where, error)
                if not self.stopping:
                    self._tries += 1
                    self._waiting = True
                    await self._let_end()
                    self.become("reconnecting")
                    await self.clock.sleep(
                        random.uniform(0.5, 1.0) * min(BACKOFF_CAP, BACKOFF * 2 ** min(self._tries, 6))
                    )
        except asyncio.CancelledError:
            if not self.stopping:
                raise
            self._waiting = False
        except BaseException as error:
            self.failure = error
            log.error("%s ends: %s: %s", self.program.where, type(error).__name__, error)
            if not isinstance(error, SwitchgearError):
                log.exception("this is a bug of the transport or of Switchgear", exc_info=error)
            if not isinstance(error, Exception):
                raise
        finally:
            await end_workers(self, min(self.stop_at, self.loop.time() + 1.0))
            self.become("failed" if self.failure else "closed")
            if not self.ready.done():
                if self.failure is not None:
                    self.ready.set_exception(self.failure)
                    self.ready.exception()  # it is in `failure` too: nobody has to await it
                else:
                    self.ready.cancel()
            self.finished.set()
            self.wake_idle()
            self.on_change()

    async def _let_end(self) -> None:
        """Exactly once and in order: what ran when the source was lost comes again, behind what was handled before it
        and not stored. Its first run counts for nothing; it has to be over before."""
        while self.outputs is not None and self.lanes.order and self.running():
            await self.clock.sleep(0.01)

    async def _serve(self) -> None:
        """Subscribe and work until told to stop, or until the source or the lease is lost."""
        program, host = self.program, self.host
        member = f"{host.name}/{socket.gethostname()}/{os.getpid()}/{secrets.token_hex(4)}"
        lease: Lease | None = None
        self._fence = None
        keeper: asyncio.Task[None] | None = None
        source: Source | None = None
        tasks: list[asyncio.Task[None]] = []
        try:
            if program.leased is not None:
                registry = host.transport
                assert isinstance(registry, Registry)
                lease = Lease(registry, program.leased, member, self.settings.lease, self.clock)
                self._fence = await lease.acquire(self._stand_by)
                self.valid_until = lease.until
                keeper = self.loop.create_task(lease.keep(self._renewed))
            source = await host.transport.subscribe(self._subscription(member), self._revoked)
            self._waiting = False
            self._open(source)
            if self.parked is not None:
                await self.parked.refresh()
            fetching = self.loop.create_task(fetch(self, source))
            tasks = [
                fetching,
                self.loop.create_task(self.settler.run()),
                self.loop.create_task(ticks(self, source)),
                self.loop.create_task(self.fate.run()),
            ]
            self._hire()
            self._tries = 0
            self.become("active")
            if not self.ready.done():
                self.ready.set_result(None)
            watched: set[asyncio.Future[None]] = {self._halt, *tasks, *(slot.task for slot in self.slots)}
            if keeper is not None:
                watched.add(keeper)
            done, _ = await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
            if not self.stopping:
                for task in done:
                    if task.cancelled():
                        raise RuntimeError(f"{self.program.where}: one of its tasks was cancelled from outside")
                    task.result()  # raises what ended it
                raise Lost("the lease is with another member" if keeper in done else "the source ended")
            await drain(self, source)
        finally:
            self._waiting = False
            if keeper is not None:
                keeper.cancel()
            if source is not None:
                await abandon(self, source, tasks)
            if lease is not None:
                try:
                    async with asyncio.timeout(max(0.2, min(2.0, self.stop_at - self.loop.time()))):
                        await lease.release()
                except (TransportError, TimeoutError) as error:
                    log.debug("%s: the lease runs out by itself: %s", program.where, said(error))
            self.membership = None
            self.valid_until = float("inf")

    def _topics(self) -> dict[str, Fence | None]:
        """What is read: the topic, and what comes back to this group alone."""
        program = self.program
        names = list(program.physical)
        if self.returning and program.returns is not None:
            names.append(program.returns)
        return dict.fromkeys(names, self._fence)

    async def read_returns(self) -> None:
        """Read the group's return address, too, from now on. Raises TransportError: to be tried again."""
        if self.returning:
            return
        self.returning = True
        if self.source is not None:
            try:
                await self.source.assign(self._topics())
            except BaseException:
                self.returning = False
                raise

    def _subscription(self, member: str) -> Subscription:
        program, settings = self.program, self.settings
        return Subscription(
            topics=self._topics(),
            group=program.physical_group,
            consumer=member,
            start=settings.start,
            order=Order.NONE if program.leased else program.order,
            lease=settings.lease,
            outstanding=max(settings.window, FETCH),
            private=program.private,
            own=self._own(),
            transacts=self.outputs is not None,
        )

    def _own(self) -> Collection[str]:
        program = self.program
        if program.group is None:
            return ()
        if program.private:
            return program.physical
        return () if program.returns is None else (program.returns,)

    def _open(self, source: Source) -> None:
        program, settings, host = self.program, self.settings, self.host
        before = self.settler.done if self.source_opened else []  # handled since the last source was left
        self.source, self.source_opened = source, True
        elsewhere = program.leased is not None or settings.delivery == "at_most_once"  # a lease, or what came is ours
        if isinstance(source, Membership) and not elsewhere:
            self.membership, self.valid_until = source, source.valid_until
        self.reading = program.reading(source, self.failures)
        if program.pull:
            self.reading.engine = self  # type: ignore[attr-defined]
        transaction: Transaction | None = None
        if self.outputs is not None:
            assert isinstance(host.transport, Transactional)
            self.reading.outputs = self.outputs
            transaction = Transaction(host.transport, source, self.outputs, self.lanes, self.clock, host.stored)
        if settings.delivery == "at_most_once":
            self.settler = Unsettled(self.lanes, self)
        elif source.capabilities.settling is Settling.INDIVIDUAL:
            self.settler = Individual(self.lanes, transaction or source, host.link, self, self.outputs)
        else:
            self.settler = Cumulative(
                self.lanes, source, self.clock, host.link, self, failures=self.failures, transaction=transaction
            )
        if self.outputs is not None and self.lanes.order:
            self.lanes.free_all(before)
        else:
            self.settler.done += before
        if self.parked is None and settings.dead_letter is not None and settings.dead_letter.after == "park":
            assert isinstance(host.transport, Registry)
            self.parked = Parked(host.transport, host.physical(""), program.topic, program.group or "")

    def _hire(self) -> None:
        if self.slots or self.program.pull:
            return
        job = work_batches if self.program.batch is not None else work
        for _ in range(self.settings.concurrency):
            slot = Slot(self.left, self._outlived)
            slot.task = self.loop.create_task(job(self, slot))
            self.slots.append(slot)

    def _outlived(self, slot: Slot) -> None:
        """A `def` handler goes on over its time."""
        if self.leaving:
            return
        log.warning("%s: a def handler cannot be cancelled: it keeps its message and its thread", self.program.where)
        if slot.overran is None:  # else it is counted already
            slot.overran = slot.current
            self.count("overrun", 1)

    def _stand_by(self, holder: str) -> None:
        log.info("%s: standby, %s is active", self.program.where, holder)
        self._tries = 0
        self.become("standby", f"standby: {holder} is active")
        if not self.ready.done():
            self.ready.set_result(None)

    def _renewed(self, until: float) -> None:
        self.valid_until = until

    async def _revoked(self, names: Collection[str], lost: bool) -> None:
        """The broker takes lanes away: let what runs finish within its budget, settle, then give the lanes up."""
        gone = set(names)
        self.revoked |= gone
        lanes, source = self.lanes, self.source
        if source is None:
            return
        if not lost:
            # Nobody is to begin them, but they stay held: a watermark takes what is not held for finished.
            self.fate.halted |= gone
            delayed = [lanes.delayed.pop(token) for token, d in list(lanes.delayed.items()) if d.lane in gone]
            lanes.set_aside([*delayed, *(d for d in lanes.waiting() if d.lane in gone)])
            within = source.capabilities.revoke_within
            until = self.loop.time() + within * 0.8
            while any(d.lane in gone for d in self.running()) and self.loop.time() < until:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            try:
                async with asyncio.timeout_at(until + within * 0.15):
                    await self.settler.flush()
            except (TransportError, TimeoutError) as error:
                log.warning("%s: lanes left unsettled: %s", self.program.where, said(error))
        self.settler.lose(list(gone))
        self.lose([token for token, d in lanes.held.items() if d.lane in gone])
        self.wake_room()

    # ---- state ----------------------------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """starting, standby, active, stopped (after a dead letter), reconnecting, draining, closed or failed."""
        return "stopped" if self._phase == "active" and self.fate.stuck else self._phase

    @property
    def detail(self) -> str:
        """What there is to say of the state, in words; "" if nothing."""
        if self.state in ("active", "stopped"):
            told = [*self.fate.stuck.values(), self.fate.trouble or self.fate.refusal]
            if self.full:
                told.append(f"paused: {', '.join(sorted(self.full)) or 'all of it'}, window={self.settings.window}")
            return "; ".join(one for one in told if one)
        return self._said

    def become(self, phase: str, detail: str = "") -> None:
        """Enter another phase of life; a drain ends only with the end."""
        if self.stopping and phase not in ("draining", "closed", "failed"):
            return
        self._phase, self._said = phase, detail
        self.on_change()

    def busy(self) -> bool:
        """Whether anything goes on without time passing: something ready, running or not yet settled."""
        phase = self._phase
        if phase in ("starting", "draining"):
            return True
        if phase != "active":
            return False
        begun = bool(self.lanes.ready) and not self.program.pull  # pulled, they wait for the program to ask
        return begun or bool(self.running()) or self.settler.due

    def count(self, event: str, n: int) -> None:
        self.host.count(event, self.program.topic, self.program.group, n)

    # ---- what is held ---------------------------------------------------------------------------------------------

    def may_begin(self, now: float) -> bool:
        """Whether a handler may start; where the time is over, the source is asked whether it goes on."""
        if now > self.valid_until and self.membership is not None:
            self.valid_until = self.membership.valid_until
        return now <= self.valid_until

    def running(self) -> list[Delivery]:
        """What handlers are at."""
        return [d for slot in self.slots for d in ((slot.delivery, *slot.batch) if slot.delivery else slot.batch)]

    def lose(self, tokens: Collection[Hashable], *, for_good: bool = False) -> None:
        """These deliveries are no longer ours; `for_good`: nor is their source."""
        busy = {d.token for d in [*self.running(), *self.gathered]} | self.handed.keys() | self.settler.pending()
        followers = self.lanes.lose(tokens, busy)
        if not for_good:
            self.release(followers)
        self.fate.forget(stopped=not for_good)
        self.wake_one()

    def turn_away(self) -> None:
        """Give back what came while something before it in its key is being given back."""
        turned, self.lanes.turned = self.lanes.turned, []
        self.release(turned)

    def release(self, deliveries: Iterable[Delivery]) -> None:
        """Give back what nobody has handled; no attempt."""
        for delivery in deliveries:
            current = self.lanes.current(delivery)
            if current is None:
                self.lanes.free(delivery)
            else:
                self.settler.put(Settlement(current, Verdict.RELEASE))

    def done(self, delivery: Delivery) -> None:
        """Handled: acknowledge it."""
        settler = self.settler
        settler.done.append(delivery)
        settler.kick(len(settler.done))
        self.failures.pop(delivery.token, None)

    def dismiss(self, delivery: Delivery) -> None:
        """Acknowledge what was not handled."""
        self.failures.pop(delivery.token, None)
        current = self.lanes.current(delivery)
        if current is None:
            self.lanes.free(delivery)
        else:
            self.settler.put(Settlement(current, Verdict.ACK))

    # ---- told by the settler --------------------------------------------------------------------------------------

    def handled(self, n: int) -> None:
        self.count("handled", n)

    def lost(self, tokens: Collection[Hashable]) -> None:
        self.count("lease_lost", len(tokens))
        log.warning("%s: %d deliveries were no longer ours and will come again", self.program.where, len(tokens))
        self.lose(tokens)

    def settled(self) -> None:
        if self.lanes.turned:
            self.turn_away()
        self.wake_room()
        if self.lanes.ready and self.idle:
            self.wake_one()

    # ---- waking ---------------------------------------------------------------------------------------------------

    def wake_room(self) -> None:
        if self.room is not None and not self.room.done():
            self.room.set_result(True)

    def wake_idle(self) -> None:
        while self.idle:
            waiter = self.idle.popleft()
            if not waiter.done():
                waiter.set_result(None)

    def wake_one(self) -> None:
        while self.idle:
            waiter = self.idle.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return


def _quickest(loop: asyncio.AbstractEventLoop, clock: Clock) -> Callable[[], float]:
    """The clock's time; the system's own where it is the same, since a worker asks once a message."""
    if abs(clock.monotonic() - time.monotonic()) < 0.05 and abs(loop.time() - time.monotonic()) < 0.05:
        from .clock import LoopClock

        if isinstance(clock, LoopClock):
            return time.monotonic
    return clock.monotonic
