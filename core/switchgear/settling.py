"""Telling the broker what became of deliveries, in batches and message by message; `watermark` does it by position."""

# ruff: noqa: ARG002  (the signatures are the protocol's)

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Hashable, Sequence
from typing import Protocol

from .driver import Delivery, Settlement, Verdict
from .errors import MaybeSent, NotSent, TransportError, Unavailable
from .lanes import Lanes
from .transacting import Outputs

EVERY = 0.02  # seconds that a settlement waits for others: a crash repeats so much at the most
AT = 500  # settlements that wait for nobody
ACK = Verdict.ACK


class Report(Protocol):
    """Who is told what the broker confirmed."""

    def handled(self, n: int) -> None:
        """So many handled messages are acknowledged."""
        ...

    def lost(self, tokens: Sequence[Hashable]) -> None:
        """These were no longer ours; their verdicts had no effect."""
        ...

    def settled(self) -> None:
        """There is room again."""
        ...


class Connection(Protocol):
    """The way to the broker; see `supervision.Link`."""

    def down(self, error: BaseException) -> None: ...
    def wait(self) -> Awaitable[None]: ...


class Settler(Protocol):
    """How a subscription settles; `done` and `kick` are the hot path of a worker."""

    done: list[Delivery]
    """Handled and to be acknowledged."""

    async def enter(self, batch: Sequence[Delivery]) -> None:
        """Take possession of the lanes that a received batch is the first of, before any of it may be handled.

        Raises Unavailable: to be tried again.
        """
        ...

    def admit(self, batch: Sequence[Delivery]) -> Sequence[Delivery]:
        """Take note of a received batch; returns what of it is to be handled."""
        ...

    def kick(self, n: int) -> None:
        """`n` deliveries are in `done`: leave now if it is many, else soon."""
        ...

    def put(self, settlement: Settlement) -> None:
        """Any other verdict; an ACK here is of a message that was not handled."""
        ...

    def failed(self, delivery: Delivery) -> None:
        """An attempt failed and the delivery stays here for another."""
        ...

    def full(self, window: int) -> frozenset[str]:
        """Lanes that hold as many messages as they may; "" where there are none."""
        ...

    def pending(self) -> set[Hashable]:
        """Tokens of what is on its way."""
        ...

    @property
    def due(self) -> bool:
        """Whether something leaves without time passing."""
        ...

    async def run(self) -> None: ...
    async def flush(self) -> None:
        """Settle all that waits. Raises Unavailable, and then keeps it."""
        ...

    def lose(self, lanes: Sequence[str]) -> None:
        """These lanes are no longer ours."""
        ...

    def forget(self) -> None:
        """The source is gone: what was not settled will come again."""
        ...

    def stop(self) -> None: ...


class Settles(Protocol):
    """Whom an `Individual` gives its verdicts: a source, or a transaction with one."""

    async def settle(self, batch: Sequence[Settlement]) -> Sequence[TransportError | None]: ...


class Unsettled:
    """At most once: all was acknowledged before it was handled, so that afterwards it is only let go."""

    def __init__(self, lanes: Lanes, report: Report) -> None:
        self._lanes, self._report = lanes, report
        self.done: list[Delivery] = []
        self._wake = asyncio.Event()
        self._running = True

    async def enter(self, batch: Sequence[Delivery]) -> None:
        pass  # no lanes, or none that are kept

    def admit(self, batch: Sequence[Delivery]) -> Sequence[Delivery]:
        return batch

    def kick(self, n: int) -> None:
        self._wake.set()

    def put(self, settlement: Settlement) -> None:
        self._lanes.free(settlement.delivery)
        self._report.settled()

    def failed(self, delivery: Delivery) -> None:
        pass

    def full(self, window: int) -> frozenset[str]:
        return most_held(self._lanes, window)

    def pending(self) -> set[Hashable]:
        return {d.token for d in self.done}

    @property
    def due(self) -> bool:
        return bool(self.done)

    async def run(self) -> None:
        while self._running:
            await self._wake.wait()
            self._wake.clear()
            await self.flush()

    async def flush(self) -> None:
        done, self.done = self.done, []
        if done:
            self._lanes.free_all(done)
            self._report.handled(len(done))
            self._report.settled()

    def lose(self, lanes: Sequence[str]) -> None:
        pass

    def forget(self) -> None:
        self._lanes.free_all(self.done)
        self.done = []

    def stop(self) -> None:
        self._running = False
        self._wake.set()


class Individual:
    """Message by message: handled deliveries gather in `done`, other verdicts in `other`; both leave in one call."""

    def __init__(
        self, lanes: Lanes, source: Settles, link: Connection, report: Report, outputs: Outputs | None = None
    ) -> None:
        """`outputs`: what is stored with the acknowledgements."""
        self._outputs = outputs
        self._lanes, self._source, self._link, self._report = lanes, source, link, report
        self.done: list[Delivery] = []
        self.other: list[Settlement] = []
        self._leaving: Sequence[Settlement] = ()
        self._wake: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._running = True
        self._lock = asyncio.Lock()

    async def enter(self, batch: Sequence[Delivery]) -> None:
        pass  # no lanes, or none that are kept

    def admit(self, batch: Sequence[Delivery]) -> Sequence[Delivery]:
        if self._outputs is not None:
            self._outputs.arrived(batch, self._lanes.held)
        return batch

    def kick(self, n: int) -> None:
        if n >= AT:
            self._now()
        elif self._timer is None:
            self._timer = self._loop.call_later(EVERY, self._now)

    def put(self, settlement: Settlement) -> None:
        self.other.append(settlement)
        self.kick(len(self.other))

    def failed(self, delivery: Delivery) -> None:
        pass

    def full(self, window: int) -> frozenset[str]:
        return most_held(self._lanes, window)

    def pending(self) -> set[Hashable]:
        waiting = [d.token for d in self.done]
        return {*waiting, *(s.delivery.token for s in self.other), *(s.delivery.token for s in self._leaving)}

    @property
    def due(self) -> bool:
        return bool(self.done or self.other or self._leaving)

    def _now(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def run(self) -> None:
        """Settle until `stop`; waits for the link while the broker is away."""
        while self._running:
            self._wake = self._loop.create_future()
            if self.done or self.other:
                self.kick(len(self.done) + len(self.other))
            await self._wake
            while self.done or self.other:
                try:
                    await self.flush()
                except Unavailable as error:
                    self._link.down(error)
                    await self._link.wait()

    async def flush(self) -> None:
        async with self._lock:
            lanes = self._lanes
            if lanes.moved:
                self._look_again()
            done, other = self.done, self.other
            if not done and not other:
                return
            ack = ACK
            self.done, self.other = [], []
            self._leaving = batch = [Settlement(d, ack) for d in done]
            batch += other
            try:
                errors = await self._source.settle(batch)
            except BaseException:
                self.done, self.other = done + self.done, other + self.other
                raise
            finally:
                self._leaving = ()
            if lanes.moved or errors.count(None) != len(batch):
                self._one_by_one(batch, errors, len(done))
                return
            lanes.free_all(done)
            for settlement in other:
                lanes.free(settlement.delivery)
            if done:
                self._report.handled(len(done))
            self._report.settled()

    def _look_again(self) -> None:
        """Some deliveries came again: settle what took their place, and nothing of what is no longer ours."""
        lanes = self._lanes
        done, other = self.done, self.other
        self.done, self.other = [], []
        for delivery in done:
            current = lanes.current(delivery)
            if current is None:
                lanes.free(delivery)
            else:
                self.done.append(current)
        for settlement in other:
            current = lanes.current(settlement.delivery)
            if current is None:
                lanes.free(settlement.delivery)
            else:
                settlement.delivery = current
                self.other.append(settlement)

    def _one_by_one(self, batch: Sequence[Settlement], errors: Sequence[TransportError | None], done: int) -> None:
        """Carry out mixed outcomes. Raises Unavailable where some are to be tried again, which are kept."""
        lanes = self._lanes
        handled = 0
        lost: list[Hashable] = []
        again: TransportError | None = None
        kept: tuple[list[Delivery], list[Settlement]] = [], []
        for i, (settlement, error) in enumerate(zip(batch, errors, strict=True)):
            delivery = settlement.delivery
            if isinstance(error, (Unavailable, NotSent, MaybeSent)):
                again = error
                if i < done:
                    kept[0].append(delivery)
                else:
                    kept[1].append(settlement)
                continue
            newer = lanes.moved.get(delivery.token) if lanes.moved else None
            lanes.free(delivery)
            if error is not None:
                lost.append(delivery.token)
            elif i < done:
                handled += 1
            if newer is None or newer is delivery:
                continue
            if settlement.verdict is ACK:  # handed out again meanwhile: only the new receipt can settle it
                lanes.hold_again(newer)
                self.other.append(Settlement(newer, ACK))
            else:
                lanes.admit((newer,))
        if handled:
            self._report.handled(handled)
        if lost:
            self._report.lost(lost)
        self._report.settled()
        if again is not None:  # in front: they are older
            self.done, self.other = kept[0] + self.done, kept[1] + self.other
            raise Unavailable(f"{again}; the settlement is tried again") from again

    def lose(self, lanes: Sequence[str]) -> None:
        pass  # `Lanes.moved` knows

    def forget(self) -> None:
        for delivery in [*self.done, *(s.delivery for s in self.other)]:
            self._lanes.free(delivery)
        self.done, self.other = [], []

    def stop(self) -> None:
        self._running = False
        self._now()


def most_held(lanes: Lanes, window: int) -> frozenset[str]:
    """Lanes of which `window` deliveries or more are held."""
    if len(lanes.held) < window:
        return frozenset()
    counts = Counter(d.lane for d in lanes.held.values())
    return frozenset(lane for lane, n in counts.items() if n >= window)
