"""One group's view of one topic: what waits, who holds which key, and who may be handed what.

The claim rule: a key with deliveries in flight belongs to the source that has them. No other source is handed anything
of it, and the owner at most a run of further messages, so that a key that stands still occupies few slots. What comes
back goes to its place at the front of its key. A total order is the claim rule with one key for all.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from functools import partial
from typing import Protocol

import msgspec

from switchgear.driver import Delivery, Order, Outgoing

from .agenda import Agenda

KEY_RUN, TOTAL_RUN = 16, 256
NONE, TOTAL = Order.NONE, Order.TOTAL


class Stored(msgspec.Struct, frozen=True, gc=False):
    """A message as it is kept; `Delivery.native` of this transport."""

    position: int
    """Rises over all topics of the broker."""
    message: Outgoing
    time: float
    """When it was stored, unix seconds."""


class Hold(msgspec.Struct, gc=False):
    """A key that somebody owns or that somebody waits for."""

    owner: int
    held: int
    fence: int
    paused: int = 0
    """Messages that wait for their RETRY time; until then nothing of the key is handed out."""
    waiting: deque[Stored] | None = None


class Member(Protocol):
    """What a group knows of a source."""

    number: int
    leased: dict[Hashable, Delivery]

    def wake(self) -> None: ...


class Group:
    """The messages that a group has not settled."""

    def __init__(self, topic: str, name: str, order: Order, agenda: Agenda) -> None:
        self.topic, self.name, self.order = topic, name, order
        self._run = TOTAL_RUN if order is TOTAL else KEY_RUN
        self.ready: deque[Stored] = deque()
        self.parked = 0  # messages in `Hold.waiting`
        self.members: dict[int, Member] = {}
        self.idle: dict[Member, None] = {}  # who waits for something to arrive
        self.room: Callable[[int], None] = lambda _: None  # told how many places have become free
        self.retention: float | None = None
        self.trimmed = 0  # unread messages that retention took, until a source reports them
        self.reap_at = math.inf
        self._agenda = agenda
        self._sleeping: dict[int, tuple[Stored, int]] = {}  # waits for its RETRY time, by position: with its handle
        self._counts: dict[int, int] = {}  # failed deliveries, only of messages that have any
        self._holds: dict[bytes, Hold] = {}
        self._free: dict[bytes, None] = {}  # keys with something to hand out and no owner
        self._more: dict[int, dict[bytes, None]] = {}  # keys of which their owner may have more
        self._last = 0
        self._fence = 0

    # ---- handing out

    def take(self, member: Member, limit: int, until: float, out: list[Delivery]) -> None:
        """Append up to `limit` deliveries to `out`, leased to `member`."""
        before = len(out)
        if self.order is NONE:
            self._take_any(member, limit, until, out)
        else:
            self._take_ordered(member, limit, until, out)
        if len(out) > before:
            if until < self.reap_at:
                self.reap_at = until
            self.room(len(out) - before)

    def _take_any(self, member: Member, limit: int, until: float, out: list[Delivery]) -> None:
        ready, leased, counts = self.ready, member.leased, self._counts
        popleft, append = ready.popleft, out.append
        for _ in range(min(limit, len(ready))):
            stored = popleft()
            n, m = stored.position, stored.message
            leased[n] = d = Delivery(
                m.topic, m.body, m.media, m.key, "", n, counts.get(n, 1) if counts else 1, until, 0, stored, m.marked
            )
            append(d)

    def _take_ordered(self, member: Member, limit: int, until: float, out: list[Delivery]) -> None:
        me, leased, counts, holds, ready = member.number, member.leased, self._counts, self._holds, self.ready
        if self._last != me:  # somebody else took something in between: every key taken from now on may change hands
            self._last = me
            self._fence += 1
        fence = self._fence
        if self.parked:
            limit -= self._take_parked(member, limit, until, out)
        total = self.order is TOTAL
        run = self._run
        popleft, append, get = ready.popleft, out.append, holds.get
        while limit > 0 and ready:
            stored = popleft()
            n, m = stored.position, stored.message
            key = b"" if total else m.key
            kept = 0
            if key is not None:
                hold = get(key)
                if hold is None:
                    holds[key] = Hold(me, 1, fence)
                    kept = fence
                elif hold.owner == me and 0 < hold.held < run and hold.waiting is None and not hold.paused:
                    hold.held += 1
                    kept = hold.fence
                else:
                    self._park(key, hold, stored)
                    continue
            limit -= 1
            leased[n] = d = Delivery(
                m.topic, m.body, m.media, m.key, "", n, counts.get(n, 1) if counts else 1, until, kept, stored, m.marked
            )
            append(d)

    def _take_parked(self, member: Member, limit: int, until: float, out: list[Delivery]) -> int:
        taken, me, run = 0, member.number, self._run
        for keys in (self._free, self._more.get(me, {})):
            while keys and taken < limit:
                key = next(iter(keys))
                hold = self._holds.get(key)
                if hold is None or hold.waiting is None or hold.paused or (hold.held and hold.owner != me):
                    del keys[key]  # out of date: whoever changed that has offered it again
                    continue
                if not hold.held:
                    if hold.owner != me:
                        hold.fence = self._fence
                    hold.owner = me
                waiting = hold.waiting
                while waiting and hold.held < run and taken < limit:
                    stored = waiting.popleft()
                    hold.held += 1
                    taken += 1
                    n, m = stored.position, stored.message
                    count = self._counts.get(n, 1)
                    member.leased[n] = d = Delivery(
                        m.topic, m.body, m.media, m.key, "", n, count, until, hold.fence, stored, m.marked
                    )
                    out.append(d)
                if not waiting:
                    hold.waiting = None
                if taken < limit:
                    keys.pop(key, None)
        self.parked -= taken
        return taken

    def _park(self, key: bytes, hold: Hold, stored: Stored) -> None:
        """Put a message where it belongs in its key, and offer the key."""
        waiting = hold.waiting
        self.parked += 1
        if waiting is None:
            hold.waiting = deque((stored,))
        elif stored.position > waiting[-1].position:
            waiting.append(stored)
            return  # has been offered, or will be
        elif stored.position < waiting[0].position:
            waiting.appendleft(stored)
        else:
            waiting.insert(bisect_left(waiting, stored.position, key=lambda s: s.position), stored)
        self._offer(key, hold)

    def _offer(self, key: bytes, hold: Hold) -> None:
        if hold.paused or hold.waiting is None:
            return
        if not hold.held:
            self._free[key] = None
            self.wake_all()
        elif hold.held <= self._run // 2:
            self._more.setdefault(hold.owner, {})[key] = None
            if hold.owner in self.members:
                self.members[hold.owner].wake()

    @property
    def strict(self) -> bool:
        """Whether `settled` must be told of what is done: there are keys to let go or attempts to forget."""
        return self.order is not NONE or bool(self._counts)

    # ---- settling; whoever calls has taken the delivery out of `Member.leased`

    def settled(self, delivery: Delivery) -> None:
        """It is done: never again to this group."""
        if self._counts:
            self._counts.pop(_stored(delivery).position, None)
        if self.order is not NONE:
            self._let_go(delivery)

    def returned(self, deliveries: Iterable[Delivery]) -> None:
        """Give them back at once, to their places, no attempt counted."""
        back = sorted((_stored(d) for d in deliveries), key=lambda s: s.position, reverse=True)
        self._put_back(back)

    def retried(self, delivery: Delivery, when: float | None) -> None:
        """Give it back, its attempt counted, not before `when` on the clock (None: at once)."""
        stored = _stored(delivery)
        n = stored.position
        self._counts[n] = self._counts.get(n, 1) + 1
        if when is None:
            self._put_back([stored])
            return
        self._sleeping[n] = stored, self._agenda.at(when, partial(self._wake_up, n))
        hold = self._hold_of(stored)
        if hold is not None:
            hold.paused += 1
            self._let_go(delivery)

    def _wake_up(self, n: int) -> None:
        stored, _ = self._sleeping.pop(n)
        key = self._key(stored)
        hold = None if key is None else self._holds.get(key)
        if hold is None or key is None:
            self.ready.append(stored)
            self.wake()
        else:
            hold.paused -= 1
            self._park(key, hold, stored)

    def _put_back(self, newest_first: list[Stored]) -> None:
        for stored in newest_first:
            key = self._key(stored)
            hold = None if key is None else self._holds.get(key)
            if key is None or hold is None:
                self.ready.appendleft(stored)
            else:
                hold.held -= 1
                self._park(key, hold, stored)
                self._offer(key, hold)
        self.wake_all()

    def _let_go(self, delivery: Delivery) -> None:
        key = b"" if self.order is TOTAL else delivery.key
        if key is None:
            return
        hold = self._holds[key]
        held = hold.held = hold.held - 1
        if hold.waiting is not None:
            self._offer(key, hold)
        elif not held and not hold.paused:
            del self._holds[key]
        if self.ready and self.idle:  # what arrived behind it, and woke nobody
            self.wake_all()

    def _key(self, stored: Stored) -> bytes | None:
        if self.order is NONE:
            return None
        return b"" if self.order is TOTAL else stored.message.key

    def _hold_of(self, stored: Stored) -> Hold | None:
        key = self._key(stored)
        return None if key is None else self._holds[key]

    def reap(self, now: float) -> None:
        """Take back what members have kept beyond their leases."""
        self.reap_at = math.inf
        for member in self.members.values():
            mine = [d for d in member.leased.values() if d.topic == self.topic]
            late = [d for d in mine if d.until <= now]
            for d in late:
                del member.leased[_stored(d).position]
            if late:
                self.returned(late)
            self.reap_at = min([self.reap_at, *(d.until for d in mine if d.until > now)])

    # ---- waking

    def arrived(self, key: bytes | None) -> None:
        """Something new is in `ready` and somebody is idle: wake whoever may take it."""
        key = b"" if self.order is TOTAL else key
        hold = None if key is None else self._holds.get(key)
        if hold is None:
            self.wake()
        elif hold.owner in self.members and hold.waiting is None and 0 < hold.held < self._run:
            self.members[hold.owner].wake()

    def wake(self) -> None:
        """Wake one member; it wakes the next if it leaves something."""
        if self.idle:
            member = next(iter(self.idle))
            del self.idle[member]
            member.wake()

    def wake_all(self) -> None:
        """Wake every member that waits."""
        while self.idle:
            self.idle.popitem()[0].wake()

    # ---- administration

    def unsettled(self) -> Iterator[Stored]:
        """Everything that the group has not settled, in no order."""
        yield from self.ready
        for hold in self._holds.values():
            yield from hold.waiting or ()
        yield from (stored for stored, _ in self._sleeping.values())
        for member in self.members.values():
            yield from (_stored(d) for d in member.leased.values() if d.topic == self.topic)

    def __len__(self) -> int:
        leased = sum(d.topic == self.topic for m in self.members.values() for d in m.leased.values())
        return len(self.ready) + self.parked + len(self._sleeping) + leased

    def replace(self, messages: Iterable[Stored]) -> None:
        """Start again with exactly these; only while nobody reads."""
        for _, handle in self._sleeping.values():
            self._agenda.cancel(handle)
        for container in (self._sleeping, self._counts, self._holds, self._free, self._more):
            container.clear()
        self.parked = 0
        self.ready = deque(messages)

    def reorder(self, order: Order) -> None:
        """Keep another order from now on; only while nobody reads, so nothing is in flight."""
        waiting = [*self.ready, *(s for hold in self._holds.values() for s in hold.waiting or ())]
        self.order, self.parked = order, 0
        self._run = TOTAL_RUN if order is TOTAL else KEY_RUN
        for container in (self._holds, self._free, self._more):
            container.clear()
        self.ready = deque(sorted(waiting, key=lambda s: s.position))
        for stored, _ in self._sleeping.values():
            key = self._key(stored)
            if key is not None:
                self._holds.setdefault(key, Hold(0, 0, 0)).paused += 1

    def trim(self, before: float) -> None:
        """Drop what was stored before this unix time and waits unread."""
        waits = [self.ready, *(hold.waiting for hold in self._holds.values() if hold.waiting)]
        for queue in waits:
            while queue and queue[0].time < before:
                self._counts.pop(queue.popleft().position, None)
                self.trimmed += 1
                if queue is not self.ready:
                    self.parked -= 1
        for key, hold in list(self._holds.items()):
            if not hold.waiting:
                hold.waiting = None
                if not hold.held and not hold.paused:
                    del self._holds[key]


def _stored(delivery: Delivery) -> Stored:
    stored = delivery.native
    assert isinstance(stored, Stored)
    return stored
