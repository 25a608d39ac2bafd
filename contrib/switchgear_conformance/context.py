"""What a case works with: transports, sources, buses and child processes that end with it, and names of its own."""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from switchgear import Bus, Knobs, Topic
from switchgear.clock import Clock
from switchgear.driver import (
    Capabilities,
    Clocked,
    Order,
    Outgoing,
    Provisioner,
    Resource,
    Revoked,
    Source,
    Start,
    Subscription,
    Transport,
)
from switchgear.errors import SwitchgearError, TransportError
from switchgear.plugins import open_transport

from .case import Case
from .child import ON_TOPICS, Child
from .harness import (
    Broker,
    Fillable,
    Harness,
    HarnessLied,
    Killable,
    Pausable,
    Proxied,
    Restartable,
    nobody,
)
from .member import PATIENCE, Member
from .schemes import installed
from .virtual import LoopTime
from .weakened import weak_url

if TYPE_CHECKING:
    from .proxy import Line


HEARD = 0.2  # seconds between two calls of members that do nothing else
SILENCE = 0.5  # seconds without an answer, after which a broker counts as gone


async def ignore(lanes: Collection[str], lost: bool) -> None:
    """Lanes are taken away; a case that keeps nothing has nothing to do."""


def set_clock(transport: Transport, harness: Harness, clock: Clock) -> None:
    """Let a transport of a harness that says virtual=True take its time from `clock`. Raises HarnessLied."""
    if not isinstance(transport, Clocked):
        raise HarnessLied(
            f"the harness {harness.name!r} says virtual=True, and its transport takes no clock (it has no set_clock): "
            "say virtual=False, or implement switchgear.driver.Clocked"
        )
    transport.set_clock(clock)


async def provide(transport: Transport, topics: Sequence[str], order: Order = Order.NONE) -> None:
    """Make topics that are not there. Raises HarnessLied of a transport that has none made, and can make none."""
    if not isinstance(transport, Provisioner):
        raise HarnessLied(
            f"the transport of {type(transport).__module__} makes no topic at first use, and none at all: implement "
            "switchgear.driver.Provisioner"
        )
    await transport.provision([Resource(kind="topic", name=topic, order=order) for topic in topics], True)


class Log:
    """What handlers have seen, in order, and a way to wait for more of it."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.items: list[Any] = []
        self._more = asyncio.Event()

    def __len__(self) -> int:
        return len(self.items)

    def add(self, item: Any) -> None:
        self.items.append(item)
        self._more.set()

    async def reach(self, count: int, within: float = PATIENCE) -> list[Any]:
        """Wait until there are `count` items; AssertionError when there are not."""
        return await self.until(lambda: len(self.items) >= count, f"{count} items", within)

    async def until(self, true: Callable[[], object], what: str, within: float = PATIENCE) -> list[Any]:
        """Wait until something holds, looking whenever an item came."""
        ends = self._context.time() + within
        while not true():
            self._more.clear()
            try:
                async with asyncio.timeout_at(ends):
                    await self._more.wait()
            except TimeoutError:
                raise AssertionError(f"not within {within:g} s: {what}; there are {len(self.items)} items") from None
        return self.items

    async def quiet(self, window: float | None = None) -> None:
        """Nothing is added for a while: the measured quiet window, if not said otherwise (seconds)."""
        before = len(self.items)
        await asyncio.sleep(self._context.quiet if window is None else window)
        assert len(self.items) == before, f"nothing more should come, and {self.items[before:][:5]!r} did"


class Context:
    """One run of one case. Everything it opens is closed with it."""

    def __init__(
        self, case: Case, harness: Harness, broker: Broker, *, capabilities: Capabilities, namespace: str, seed: int,
        quiet: float, virtual: bool, line: Line | None = None, environment: Mapping[str, str] | None = None,
        makes_topics: bool = True,
    ) -> None:  # fmt: skip
        self.case, self.harness, self.broker = case, harness, broker
        self.capabilities = capabilities
        """As the connected transport declares them."""
        self.namespace, self.seed = namespace, seed
        """A prefix of every name of this case on the broker."""
        self.random = random.Random(f"{seed}/{case.id}")
        self.quiet = quiet
        """Seconds without anything that count as "nothing more comes", from measured round trips."""
        self.virtual = virtual
        self.lease = harness.lease
        """Seconds: the lease to ask for where one has to end."""
        self.clock: Clock = LoopTime()
        self.time = asyncio.get_running_loop().time
        self.remarks: list[str] = []
        self._line = line
        self._environment = dict(environment or {})
        self._makes_topics = makes_topics
        self._provided: set[str] = set()
        """Topics that this case was given."""
        self.shorten = True
        """Whether a model that fails looks for the shortest program that does."""
        self._stack = AsyncExitStack()
        self._members: list[Member] = []
        self._times = 0

    async def close(self) -> None:
        """Close all that is open, the last first."""
        await self._stack.aclose()

    def again(self) -> Context:
        """The same once more, with other names; whoever asks for it closes it."""
        self._times += 1
        return Context(
            self.case, self.harness, self.broker, capabilities=self.capabilities,
            namespace=f"{self.namespace}{self._times}.", seed=self.seed, quiet=self.quiet, virtual=self.virtual,
            line=self._line, environment=self._environment, makes_topics=self._makes_topics,
        )  # fmt: skip

    def now(self) -> float:
        """Unix seconds, of the case's clock."""
        return self.clock.now()

    def deadline(self, seconds: float = PATIENCE) -> float:
        """An instant of the loop's clock, as drivers take it."""
        return self.time() + seconds

    def name(self, word: str = "orders") -> str:
        """A physical name of this case's own."""
        return self.namespace + word

    def remark(self, text: str) -> None:
        """Say something on the report though the case passes: a transport that does more than it declares."""
        self.remarks.append(text)

    def dead_url(self) -> str | None:
        """A URL of this kind at which there is no broker; None where that can't be."""
        dead = self.harness.dead
        if dead is None and self.harness.embedded:
            return None
        return (dead or nobody)(self.broker.url)

    # ---- the bare driver

    async def provide(self, *topics: str, order: Order = Order.NONE) -> None:
        """Make physical topics where the transport makes none by itself; what sends or subscribes to them does so."""
        missing = [topic for topic in topics if topic not in self._provided]
        if self._makes_topics or not missing:
            return
        self._provided.update(missing)
        transport = self.transport()
        try:
            await transport.connect(self.deadline())
            await provide(transport, missing, order)
        finally:
            await transport.close()

    def closed(self, close: Callable[[], Awaitable[object]]) -> None:
        """Await this when the case ends."""
        self._stack.push_async_callback(close)

    def transport(self, url: str | None = None) -> Transport:
        """A transport, not connected and not closed by the context."""
        transport = open_transport(self.broker.url if url is None else url)
        if self.virtual:
            set_clock(transport, self.harness, self.clock)
        return transport

    async def open(self, url: str | None = None) -> Transport:
        """A connected transport, as another process would have; closed with the case."""
        transport = self.transport(url)
        self.closed(transport.close)
        await transport.connect(self.deadline())
        return transport

    async def join(
        self, transport: Transport, *topics: str, group: str | None = "group", consumer: str | None = None,
        start: Start = "new", order: Order = Order.NONE, lease: float | None = None, outstanding: int = 5000,
        revoked: Callable[[Collection[str], bool], Awaitable[None]] = ignore,
    ) -> Member:  # fmt: skip
        """Subscribe to physical topics, in a group of this case's own; None: broadcast."""
        subscription = Subscription(
            topics=dict.fromkeys(topics), group=group and self.namespace + group,
            consumer=consumer or f"c{self.random.getrandbits(48):x}", start=start, order=order,
            lease=30.0 if lease is None else lease, outstanding=outstanding,
        )  # fmt: skip
        await self.provide(*topics, order=order)
        member = Member(self, transport, await self._joined(transport, subscription, revoked))
        self._members.append(member)
        return member

    async def _joined(self, transport: Transport, subscription: Subscription, revoked: Revoked) -> Source:
        """Subscribe, while the members that are there are called as often as a driver may expect: it is in `receive`
        that they may hear of the newcomer, who waits for them."""
        joining = asyncio.ensure_future(transport.subscribe(subscription, revoked))
        try:
            while not (await asyncio.wait([joining], timeout=HEARD))[0]:
                await asyncio.gather(*(one.keep() for one in self._members))
            return joining.result()
        finally:
            joining.cancel()
            await asyncio.wait([joining])

    async def send(
        self, transport: Transport, *batch: Outgoing, within: float = PATIENCE
    ) -> list[TransportError | None]:
        """Send in batches as large as the transport takes; one outcome an item."""
        await self.provide(*dict.fromkeys(m.topic for m in batch if not m.private))
        outcomes: list[TransportError | None] = []
        size = min(transport.capabilities.batch, transport.capabilities.batch_limit)
        for begin in range(0, len(batch), size):
            outcomes += await transport.send(batch[begin : begin + size], self.deadline(within))
        return outcomes

    async def stored(self, transport: Transport, *batch: Outgoing) -> None:
        """Send; every item must be stored."""
        outcomes = await self.send(transport, *batch)
        assert len(outcomes) == len(batch), f"{len(outcomes)} outcomes for {len(batch)} messages"
        failed = [o for o in outcomes if o is not None]
        assert not failed, f"not stored: {failed[0]!r}"

    # ---- through Bus

    def bus(self, url: str | None = None, *, name: str = "conformance", **options: Any) -> Bus:
        """A bus on this broker, in the case's namespace; not opened. Options are those of `Bus`."""
        options.setdefault("namespace", self.namespace)
        options.setdefault("config", {})
        bus = Bus(self.broker.url if url is None else url, name=name, **options)
        if self.virtual:
            bus._test_clock = self.clock  # pyright: ignore[reportPrivateUsage]
        return bus

    def weak_url(self, kind: str = "") -> str:
        """This broker as one that declares no delay, no RETRY and no counting, so that the core has to add them; or
        another kind of `weakened`."""
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="switchgear-"))
        self._stack.enter_context(installed(Path(folder)))
        return weak_url(self.broker.url, kind)

    async def opened(self, bus: Bus) -> Bus:
        """Open a bus for publishing; closed with the case."""
        await self._stack.enter_async_context(bus)
        return bus

    async def serve(self, bus: Bus) -> Bus:
        """Open a bus and its subscriptions; closed with the case."""
        await self._stack.enter_async_context(bus.serving())
        return bus

    def log(self) -> Log:
        return Log(self)

    # ---- other processes

    async def child(self, role: str, *arguments: str, url: str | None = None) -> Child:
        """Another process on the same broker, in a role of `switchgear_conformance.child`; killed with the case."""
        if role in ON_TOPICS:
            await self.provide(arguments[0])
        child = await Child.start(role, self.broker.url if url is None else url, *arguments, given=self._environment)
        self.closed(child.kill)
        return child

    # ---- what is done to the broker

    @property
    def line(self) -> Line:
        """The proxies between the broker and clients that use `proxied_url` (`ctl:proxy`)."""
        assert self._line is not None, "the case has no gate ctl:proxy"
        return self._line

    @property
    def proxied_url(self) -> str:
        """The URL of clients that come through the proxies (`ctl:proxy`)."""
        assert isinstance(self.broker, Proxied)
        return self.broker.through(self.line.addresses)

    async def kill(self) -> None:
        """SIGKILL the broker, and see that it is gone."""
        assert isinstance(self.broker, Killable)
        await asyncio.to_thread(self.broker.kill)
        await self._must_be_silent("kill()", "let it SIGKILL every process of the broker and wait for their end")

    async def start(self) -> None:
        """Start the broker again on the same data and address, and see that it answers."""
        assert isinstance(self.broker, Killable | Restartable)
        await asyncio.to_thread(self.broker.start)
        await self._must_answer("start()", "let it start on the same data and address, and return when it is ready")

    async def stop(self) -> None:
        """Stop the broker in an orderly way."""
        assert isinstance(self.broker, Restartable)
        await asyncio.to_thread(self.broker.stop)
        await self._must_be_silent("stop()", "let it return when the broker's processes are gone")

    async def restart(self) -> None:
        """Stop and start."""
        await self.stop()
        await self.start()

    @asynccontextmanager
    async def paused(self) -> AsyncGenerator[None]:
        """SIGSTOP the broker for a while."""
        assert isinstance(self.broker, Pausable)
        await asyncio.to_thread(self.broker.pause)
        try:
            await self._must_be_silent("pause()", "let it SIGSTOP every process of the broker")
            yield
        finally:
            await asyncio.to_thread(self.broker.resume)
        await self._must_answer("resume()", "let it SIGCONT every process of the broker")

    @asynccontextmanager
    async def full(self) -> AsyncGenerator[None]:
        """Leave the broker no room to store for a while; `broker.url` may be another one meanwhile."""
        assert isinstance(self.broker, Fillable)
        await asyncio.to_thread(self.broker.fill)
        try:
            yield
        finally:
            await asyncio.to_thread(self.broker.free)

    async def answers(self, within: float) -> bool:
        """Whether a new client gets through to the broker within so many seconds."""
        transport = self.transport()
        try:
            async with asyncio.timeout(within):
                await transport.connect(self.deadline(within))
                probe = Outgoing(self.name("probe"), b"probe", private=True)
                return list(await transport.send([probe], self.deadline(within))) == [None]
        except (SwitchgearError, TimeoutError):
            return False
        finally:
            try:
                async with asyncio.timeout(PATIENCE):
                    await transport.close()
            except TimeoutError:
                raise AssertionError(f"close() takes more than {PATIENCE:g} s while the broker is away") from None

    async def _must_be_silent(self, what: str, how: str) -> None:
        if await self.answers(SILENCE):
            raise HarnessLied(f"the harness {self.harness.name!r}: {what} returned and the broker still answers: {how}")

    async def _must_answer(self, what: str, how: str) -> None:
        ends = self.time() + PATIENCE
        while not await self.answers(PATIENCE):
            if self.time() >= ends:
                raise HarnessLied(
                    f"the harness {self.harness.name!r}: {what} returned and the broker does not answer: {how}"
                )
            await asyncio.sleep(0.05)

    async def eventually(self, true: Callable[[], Awaitable[bool] | bool], what: str, within: float = PATIENCE) -> None:
        """Look again and again until it holds; AssertionError after `within` seconds."""
        ends = self.time() + within
        while True:
            found = true()
            if found if isinstance(found, bool) else await found:
                return
            assert self.time() < ends, f"not within {within:g} s: {what}"
            await asyncio.sleep(0.01)


def listen(bus: Bus, topic: Topic[str], log: Log, *, group: str | None = "group", **knobs: Unpack[Knobs]) -> None:
    """Subscribe a handler that adds every body to the log."""

    @bus.subscribe(topic, group=group, **knobs)
    async def handle(body: str) -> None:
        log.add(body)


def numbered(count: int, prefix: str = "") -> Sequence[str]:
    """Bodies that differ."""
    return [f"{prefix}{i}" for i in range(count)]
