"""The broker: topics with their groups, what is due later, registry rows; shared by the transports of one name."""

from __future__ import annotations

import asyncio
from functools import partial
from itertools import count

from switchgear.clock import Clock, LoopClock
from switchgear.driver import Order, Outgoing, Row, Start
from switchgear.errors import ConfigurationError

from .agenda import Agenda
from .group import Group, Stored


class Topic:
    """The groups that read a topic, and the senders that wait until all of them have room."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.retention: float | None = None
        self.groups: dict[str, Group] = {}
        self.broadcasts: list[Group] = []
        self.readers: tuple[Group, ...] = ()
        self.senders: dict[object, asyncio.Future[None]] = {}  # by ticket, in line

    def add(self, group: Group, *, shared: bool) -> Group:
        """Let a group read from now on."""
        group.retention = self.retention
        group.room = self.let_in
        if shared:
            self.groups[group.name] = group
        else:
            self.broadcasts.append(group)
        self.readers = (*self.groups.values(), *self.broadcasts)
        return group

    def remove(self, group: Group) -> None:
        """Forget a broadcast subscriber and what it has not read."""
        self.broadcasts.remove(group)
        self.readers = (*self.groups.values(), *self.broadcasts)
        self.let_in(len(self.senders))

    def full(self, capacity: int) -> Group | None:
        """A group for which as many messages wait as may."""
        return next((group for group in self.readers if len(group.ready) + group.parked >= capacity), None)

    def let_in(self, count: int) -> None:
        """Wake the first `count` senders that wait for room."""
        for turn in self.senders.values():
            if count <= 0:
                return
            if not turn.done():
                turn.set_result(None)
                count -= 1

    def advance(self) -> None:
        """Somebody left the line: let the first look for itself, unless it is about to."""
        for turn in self.senders.values():
            if not turn.done():
                turn.set_result(None)
            return

    def kept(self, start: Start | int) -> list[Stored]:
        """What some group has not settled, in order, from an instant (float) or a position (int) on."""
        if start == "new":
            return []
        found = {stored.position: stored for group in self.readers for stored in group.unsettled()}
        stored = [found[position] for position in sorted(found)]
        if isinstance(start, int):
            return [s for s in stored if s.position >= start]
        return stored if isinstance(start, str) else [s for s in stored if s.time >= start]


class Broker:
    """All that transports of one name share."""

    def __init__(self, name: str, clock: Clock) -> None:
        self.name, self.clock, self.now = name, clock, clock.now
        self.loop = asyncio.get_running_loop()
        self.users = 0
        self.topics: dict[str, Topic] = {}
        self.retries = Agenda(clock, clock.monotonic)
        self.delayed = Agenda(clock, clock.now)
        self.position = count(1).__next__
        self.number = count(1).__next__
        self.rows: dict[str, tuple[Row, float]] = {}
        self.revision = count(1).__next__
        self._handles: dict[tuple[str, str], list[int]] = {}

    def topic(self, name: str) -> Topic:
        """The topic of this name, made if need be."""
        topic = self.topics.get(name)
        if topic is None:
            topic = self.topics[name] = Topic(name)
        return topic

    def store(self, message: Outgoing) -> None:
        """Hand a message to every group of its topic, whatever room they have."""
        topic = self.topics.get(message.topic)
        if topic is None or not topic.readers:
            return
        stored = Stored(self.position(), message, self.now())
        for group in topic.readers:
            group.ready.append(stored)
            if group.idle:
                group.arrived(message.key)

    def delay(self, message: Outgoing, due: float) -> None:
        """Store a message at a unix time; until then `cancel` can take it back."""
        if message.dedup is None:
            self.delayed.at(due, partial(self.store, message))
            return
        name = message.topic, message.dedup
        self._handles.setdefault(name, []).append(self.delayed.at(due, partial(self._fall_due, name, message)))

    def cancel(self, topic: str, dedup: str) -> bool:
        """Take back what was delayed under this token."""
        handles = self._handles.pop((topic, dedup), ())
        return sum(self.delayed.cancel(handle) for handle in handles) > 0

    def _fall_due(self, name: tuple[str, str], message: Outgoing) -> None:
        handles = self._handles.get(name, [])
        if len(handles) > 1:
            handles.pop(0)
        else:
            self._handles.pop(name, None)
        self.store(message)

    def group(self, topic: str, name: str, order: Order, start: Start) -> Group:
        """The group of this name, made if need be with what is kept from `start` on."""
        place = self.topic(topic)
        group = place.groups.get(name)
        if group is None:
            kept = place.kept(start)
            group = place.add(Group(topic, name, order, self.retries), shared=True)
            group.replace(kept)
        return group

    def broadcast(self, topic: str, order: Order, start: Start) -> Group:
        """A reader that shares with nobody."""
        place = self.topic(topic)
        kept = place.kept(start)
        group = place.add(Group(topic, "", order, self.retries), shared=False)
        group.replace(kept)
        return group

    def trim(self) -> None:
        """Drop what is older than its topic's declared retention, read or not."""
        for topic in self.topics.values():
            if topic.retention is not None:
                for group in topic.readers:
                    group.trim(self.clock.now() - topic.retention)
                topic.let_in(len(topic.senders))


class Brokers:
    """The brokers of this process by name, each as long as somebody uses it."""

    def __init__(self) -> None:
        self._open: dict[str, Broker] = {}

    def acquire(self, name: str, clock: Clock | None) -> Broker:
        """The broker of this name; a new one takes its time from `clock`.

        Raises ConfigurationError where another event loop has it.
        """
        broker = self._open.get(name)
        if broker is not None and broker.loop.is_closed():  # its users were never closed, and can't be any more
            broker = None
        if broker is None:
            broker = self._open[name] = Broker(name, clock or LoopClock())
        if broker.loop is not asyncio.get_running_loop():
            raise ConfigurationError(
                f"memory://{name} is in use by another event loop of this process: close it there, choose another "
                "name, or use sqlite:// between threads"
            )
        broker.users += 1
        return broker

    def release(self, broker: Broker) -> None:
        """One user less; the last one takes the broker and its messages along."""
        broker.users -= 1
        if not broker.users:
            broker.retries.clear()
            broker.delayed.clear()
            if self._open.get(broker.name) is broker:
                del self._open[broker.name]


BROKERS = Brokers()
"""One for the process: transports of one name meet here."""
