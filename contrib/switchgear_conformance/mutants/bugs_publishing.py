"""Bugs in sending, and in what arrives where."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Collection, Mapping, Sequence

from msgspec.structs import replace

from switchgear.driver import (
    Capabilities,
    Delivery,
    Fence,
    Headers,
    Outgoing,
    Revoked,
    Settlement,
    Source,
    Subscription,
    Transport,
)
from switchgear.errors import NotSent, TransportError

from .bug import Bug
from .bugs_messages import changed


class PrefixMatches(Bug):
    """A subscription matches every topic whose name begins as its own does."""

    fails = {"6.driver", "6.bus"}

    def __init__(self) -> None:
        self.subscribed: set[str] = set()

    async def subscribe(self, t: Transport, subscription: Subscription, revoked: Revoked) -> Source:
        self.subscribed |= subscription.topics.keys()
        return await t.subscribe(subscription, revoked)

    async def send(self, t: Transport, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        outcomes = await t.send(batch, deadline)
        more = [changed(m, topic=name) for m in batch for name in self.subscribed if m.topic.startswith(name + ".")]
        if more:
            await t.send(more, deadline)
        return outcomes


class Late:
    """A source that subscribes when it is first asked for messages, and takes a while."""

    def __init__(self, t: Transport, subscription: Subscription, revoked: Revoked) -> None:
        self._how = t, subscription, revoked
        self._source: Source | None = None
        self.capabilities = t.capabilities

    async def _there(self) -> Source:
        if self._source is None:
            await asyncio.sleep(0.05)
            t, subscription, revoked = self._how
            self._source = await t.subscribe(subscription, revoked)
        return self._source

    async def receive(self, limit: int, held: Collection[str] = ()) -> Sequence[Delivery]:
        return await (await self._there()).receive(limit, held)

    async def settle(self, batch: Sequence[Settlement]) -> Sequence[TransportError | None]:
        return await (await self._there()).settle(batch)

    async def assign(self, topics: Mapping[str, Fence | None]) -> None:
        await (await self._there()).assign(topics)

    def note(self, lane: str) -> str:
        return ""

    def headers(self, delivery: Delivery) -> Headers:
        assert self._source is not None
        return self._source.headers(delivery)

    def position(self, delivery: Delivery) -> str:
        assert self._source is not None
        return self._source.position(delivery)

    def time(self, delivery: Delivery) -> float:
        assert self._source is not None
        return self._source.time(delivery)

    async def close(self) -> None:
        if self._source is not None:
            await self._source.close()


class ReadyUnawaited(Bug):
    """The broker's word that a subscription stands is not awaited; one in 22 loses the race."""

    fails = {"7.driver", "7.bus"}

    def __init__(self) -> None:
        self.count = 0

    async def subscribe(self, t: Transport, subscription: Subscription, revoked: Revoked) -> Source:
        self.count += 1
        if self.count % 22:
            return await t.subscribe(subscription, revoked)
        return Late(t, subscription, revoked)


class DeafWhileWaiting(Bug):
    """A `receive` that found nothing looks again when its second is over, not when something comes."""

    fails = {"7.driver.waiting"}

    async def receive(self, s: Source, limit: int, held: Collection[str]) -> Sequence[Delivery]:
        loop = asyncio.get_running_loop()
        began = loop.time()
        found = await s.receive(limit, held)
        if found and loop.time() - began > 0.1:
            await asyncio.sleep(began + 1.0 - loop.time())
        return found


class PoolRunsDry(Bug):
    """Of more than 40 sends at once, some find no connection and are dropped."""

    fails = {"8.driver", "8.bus", "25.bus"}

    def __init__(self) -> None:
        self.running = 0

    async def send(self, t: Transport, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        self.running += 1
        try:
            dropped = self.running > 40
            await asyncio.sleep(0)
            return [None] * len(batch) if dropped else await t.send(batch, deadline)
        finally:
            self.running -= 1


class ManyTopicsInABatch(Bug):
    """A batch holds 16 topics; messages of further ones are stored under the last."""

    fails = {"9.driver", "9.bus"}

    def capabilities(self, c: Capabilities) -> Capabilities:
        return replace(c, immediate=False, sends=1)

    async def send(self, t: Transport, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        known = list(dict.fromkeys(m.topic for m in batch))[:16]
        return await t.send([m if m.topic in known else changed(m, topic=known[-1]) for m in batch], deadline)


class FirstTopicFirst(Bug):
    """A source of several topics goes through a thousand messages of the first before it looks at the next."""

    fails = {"9.driver.fair"}

    def __init__(self) -> None:
        self.fetched: dict[Source, deque[Delivery]] = {}

    async def subscribe(self, t: Transport, subscription: Subscription, revoked: Revoked) -> Source:
        source = await t.subscribe(subscription, revoked)
        if len(subscription.topics) == 2:
            self.fetched[source] = deque()
        return source

    async def receive(self, s: Source, limit: int, held: Collection[str]) -> Sequence[Delivery]:
        if s not in self.fetched or limit == 0:
            return await s.receive(limit, held)
        fetched = self.fetched[s]
        if not fetched:
            fetched.extend(sorted(await s.receive(1000, held), key=lambda d: d.topic))
        return [fetched.popleft() for _ in range(min(limit, len(fetched)))]


class SendReturnsEarly(Bug):
    """Every fifth message that has no key and goes alone waits for company, and `send` does not wait for it."""

    fails = {"10.driver", "10.bus", "77.driver", "77.bus"}

    def __init__(self) -> None:
        self.later: set[asyncio.Task[object]] = set()
        self.connected = False
        self.alone = Counter[str]()

    async def connect(self, t: Transport, deadline: float) -> None:
        await t.connect(deadline)
        self.connected = True

    async def send(self, t: Transport, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        alone = len(batch) == 1 and batch[0].key is None and batch[0].due is None and not batch[0].private
        self.alone[batch[0].topic] += alone
        if not alone or self.alone[batch[0].topic] % 5 or not self.connected or not batch[0].body:
            return await t.send(batch, deadline)

        async def send() -> None:
            await asyncio.sleep(0.005)
            await t.send(batch, deadline)

        task = asyncio.create_task(send())
        self.later.add(task)
        task.add_done_callback(self.later.discard)
        return [None] * len(batch)

    async def close(self, t: Transport) -> None:
        self.connected = False
        if self.later:
            await asyncio.wait(self.later)
        await t.close()


class LateIsStored(Bug):
    """What comes after its deadline is called NotSent, and sent."""

    fails = {"10.driver", "10.bus"}

    async def send(self, t: Transport, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        outcomes = await t.send(batch, deadline)
        if deadline <= asyncio.get_running_loop().time():
            return [NotSent("the deadline has passed")] * len(batch)
        return outcomes


class OutcomesTurned(Bug):
    """Outcomes come in the order in which the broker answered, not in that of the batch."""

    fails = {"10.driver"}

    async def send(self, t: Transport, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        outcomes = await t.send(batch, deadline)
        return sorted(outcomes, key=lambda outcome: outcome is None) if len(batch) == 4 else outcomes
