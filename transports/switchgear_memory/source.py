"""One subscription of `memory://`: receiving and settling under leases."""

# ruff: noqa: ARG002  (the signatures are the contract's)

from __future__ import annotations

import asyncio
from collections.abc import Collection, Hashable, Mapping, Sequence

from switchgear.driver import (
    Capabilities,
    Delivery,
    Fence,
    Headers,
    Order,
    Settlement,
    Subscription,
    Verdict,
)
from switchgear.errors import Lost, Refused, TransportError

from .broker import Broker
from .group import Group, Stored

ACK, RETRY, EXTEND = Verdict.ACK, Verdict.RETRY, Verdict.EXTEND
BODY = 1_000_000  # bytes; what real brokers take
WAIT = 1.0  # seconds that `receive` waits
FOREVER = float("inf")

CAPABILITIES = Capabilities(
    order=Order.TOTAL,
    sends=1000,
    send_order=True,
    immediate=True,
    body=BODY,
    groups=True,
    broadcast=True,
    starts=frozenset({"new", "earliest", "time"}),
    retry_delay=FOREVER,
    delay=FOREVER,
    counting="exact",
    lease_cap=FOREVER,
    fencing=True,
    transactions=True,
)


class MemorySource:
    """One subscription. `Delivery.native` is the `Stored` message."""

    capabilities = CAPABILITIES

    def __init__(self, broker: Broker, subscription: Subscription, siblings: set[MemorySource]) -> None:
        self.number = broker.number()
        self.leased: dict[Hashable, Delivery] = {}
        self._broker, self._subscription, self._siblings = broker, subscription, siblings
        self._groups: dict[str, Group] = {}
        self._turns: list[Group] = []  # the next receive begins with the first
        self._trimmed: dict[str, int] = {}
        self._pending: asyncio.Future[None] | None = None
        self._closed = False

    async def assign(self, topics: Mapping[str, Fence | None]) -> None:
        """Read these topics from now on. Raises Refused where others of the group read in another order."""
        sub, broker = self._subscription, self._broker
        for name in [name for name in self._groups if name not in topics]:
            self._leave(self._groups.pop(name))
        for name in topics:
            if name in self._groups:
                continue
            if sub.group is None:
                group = broker.broadcast(name, sub.order, sub.start)
            else:
                group = broker.group(name, sub.group, sub.order, sub.start)
                if group.order is not sub.order:
                    if group.members:
                        raise Refused(
                            f"group {sub.group!r} of topic {name!r} is being read with order "
                            f"{group.order.name.lower()}, not {sub.order.name.lower()}: one group, one order"
                        )
                    group.reorder(sub.order)
            group.members[self.number] = self
            self._groups[name] = group
        self._turns = list(self._groups.values())
        self.wake()

    async def receive(self, limit: int, held: Collection[str] = ()) -> Sequence[Delivery]:
        """Take what waits, or wait about a second for something."""
        out = self._take(limit)
        if out or limit <= 0:
            return out
        clock = self._broker.clock
        deadline = clock.monotonic() + WAIT
        while not out and not self._closed and (now := clock.monotonic()) < deadline:
            self._pending = self._broker.loop.create_future()
            for group in self._turns:
                group.idle[self] = None
            expiry = min((group.reap_at for group in self._turns), default=FOREVER)
            timer = clock.call_at(min(deadline, max(expiry, now)), self.wake)
            try:
                await self._pending
            finally:
                self._pending = None
                timer.cancel()
                for group in self._turns:
                    group.idle.pop(self, None)
            out = self._take(limit)
        return out

    def _take(self, limit: int) -> list[Delivery]:
        out: list[Delivery] = []
        if self._closed:
            return out
        now = self._broker.clock.monotonic()
        until = now + self._subscription.lease
        turns = self._turns
        for group in turns:
            if group.reap_at <= now:
                group.reap(now)
            if group.retention is not None:
                group.trim(self._broker.clock.now() - group.retention)
                self._trimmed[group.topic] = self._trimmed.get(group.topic, 0) + group.trimmed
                group.trimmed = 0
            if limit > len(out):
                group.take(self, limit - len(out), until, out)
            if group.idle and group.ready:  # more than this source has room for
                group.wake()
        if len(turns) > 1:
            turns.append(turns.pop(0))
        return out

    async def settle(self, batch: Sequence[Settlement]) -> Sequence[TransportError | None]:
        """Carry out verdicts; Lost for what is no longer leased to this source."""
        outcomes: list[TransportError | None] = []
        pop, append, groups = self.leased.pop, outcomes.append, self._groups
        released: dict[str, list[Delivery]] = {}
        strict = any(group.strict for group in groups.values())
        for item in batch:
            token = item.delivery.token
            d = pop(token, None)
            if d is not None and not strict and item.verdict is ACK:
                append(None)
                continue
            if d is None:
                append(Lost(f"topic {item.delivery.topic!r}: delivery {token} is no longer leased to this member"))
                continue
            group = groups[d.topic]
            verdict = item.verdict
            if verdict is ACK:
                if group.strict:
                    group.settled(d)
            elif verdict is EXTEND:
                d.until = self._broker.clock.monotonic() + item.seconds
                self.leased[d.token] = d
                group.reap_at = min(group.reap_at, d.until)
            elif verdict is RETRY:
                group.retried(d, self._broker.clock.monotonic() + item.seconds if item.seconds > 0 else None)
            else:
                released.setdefault(d.topic, []).append(d)
            append(None)
        for topic, deliveries in released.items():
            groups[topic].returned(deliveries)
        return outcomes

    @property
    def trimmed(self) -> Mapping[str, int]:
        """By topic, what a declared retention took unread; each message is reported by one source of the group."""
        return dict(self._trimmed)

    def wake(self) -> None:
        """Let a pending `receive` look again."""
        if self._pending is not None and not self._pending.done():
            self._pending.set_result(None)

    def note(self, lane: str) -> str:
        """Nothing is settled cumulatively here."""
        return ""

    def headers(self, delivery: Delivery) -> Headers:
        """As they were sent."""
        return self._stored(delivery).message.headers

    def position(self, delivery: Delivery) -> str:
        """A number that rises over all topics of the broker."""
        return str(self._stored(delivery).position)

    def time(self, delivery: Delivery) -> float:
        """When it was stored, unix seconds."""
        return self._stored(delivery).time

    async def close(self) -> None:
        """Leave; what is unsettled returns to the group at once."""
        if self._closed:
            return
        self._closed = True
        self._siblings.discard(self)
        for group in self._groups.values():
            self._leave(group)
        self.wake()

    def _leave(self, group: Group) -> None:
        mine = [d for d in self.leased.values() if d.topic == group.topic]
        for d in mine:
            del self.leased[d.token]
        del group.members[self.number]
        group.idle.pop(self, None)
        if self._subscription.group is None:
            self._broker.topic(group.topic).remove(group)
        else:
            group.returned(mine)

    def _stored(self, delivery: Delivery) -> Stored:
        assert isinstance(delivery.native, Stored)
        return delivery.native
