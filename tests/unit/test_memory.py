"""The memory transport beyond the driver contract: URLs, named buses, bounds, retention, its clock."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator

import pytest

from switchgear.clock import LoopClock
from switchgear.driver import Delivery, Order, Outgoing, Resource, Settlement, Source, Subscription, Verdict
from switchgear.errors import ConfigurationError, NotSent, Unavailable
from switchgear.plugins import open_transport
from switchgear_memory import MemoryTuning
from switchgear_memory.agenda import Agenda
from switchgear_memory.broker import BROKERS
from switchgear_memory.transport import MemoryTransport

ACK, RETRY, RELEASE = Verdict.ACK, Verdict.RETRY, Verdict.RELEASE


class ManualClock:
    """Time that a test moves; timers run when it does."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.timers: list[tuple[float, object]] = []
        self.real = LoopClock()

    def now(self) -> float:
        return 1_700_000_000.0 + self.time

    def monotonic(self) -> float:
        return self.time

    def call_at(self, when: float, callback: object) -> ManualTimer:
        timer = ManualTimer(self, (when, callback))
        self.timers.append(timer.entry)
        return timer

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("nothing here sleeps")

    async def advance(self, seconds: float) -> None:
        target = self.time + seconds
        while due := sorted((t for t in self.timers if t[0] <= target), key=lambda t: t[0]):
            self.timers.remove(due[0])
            self.time = max(self.time, due[0][0])
            due[0][1]()  # type: ignore[operator]
            await asyncio.sleep(0)
        self.time = target
        await asyncio.sleep(0)


class ManualTimer:
    def __init__(self, clock: ManualClock, entry: tuple[float, object]) -> None:
        self.clock, self.entry = clock, entry

    def cancel(self) -> None:
        if self.entry in self.clock.timers:
            self.clock.timers.remove(self.entry)


async def revoked(lanes: object, lost: bool) -> None:
    raise AssertionError("memory revokes nothing")


def out(body: str, key: str | None = None, topic: str = "orders", **fields: object) -> Outgoing:
    encoded = None if key is None else key.encode()
    return Outgoing(topic=topic, body=body.encode(), key=encoded, **fields)  # type: ignore[arg-type]


async def join(
    transport: MemoryTransport, group: str | None = "g", order: Order = Order.NONE, **fields: object
) -> Source:
    topics = {"orders": None}
    subscription = Subscription(topics=topics, group=group, consumer="c", order=order, **fields)  # type: ignore[arg-type]
    return await transport.subscribe(subscription, revoked)


def bodies(deliveries: object) -> list[bytes | None]:
    return [d.body for d in deliveries]  # type: ignore[attr-defined]


async def settle(source: Source, deliveries: list[Delivery], verdict: Verdict = ACK, seconds: float = 0.0) -> None:
    assert await source.settle([Settlement(d, verdict, seconds) for d in deliveries]) == [None] * len(deliveries)


@pytest.fixture
async def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def transport(clock: ManualClock) -> AsyncIterator[MemoryTransport]:
    transport = MemoryTransport(f"unit-{secrets.token_hex(4)}", capacity=10)
    transport.set_clock(clock)
    await transport.connect(0.0)
    yield transport
    await transport.close()


# ---- URLs


@pytest.mark.parametrize(
    ("url", "wrong"),
    [
        ("memory://a/b", "no path"),
        ("memory://user:secret@host", "a name alone"),
        ("memory://?capacity=many", "not a whole number"),
        ("memory://?capacity=0", "1 message or more"),
        ("memory://?capacty=5", "did you mean 'capacity'"),
        ("memory://?zzz=5", "known: capacity"),
    ],
)
def test_wrong_urls_say_what_is_wrong(url: str, wrong: str) -> None:
    with pytest.raises(ConfigurationError, match=wrong) as raised:
        open_transport(url)
    assert "secret" not in str(raised.value)


async def test_tuning_wins_over_the_url() -> None:
    transport = open_transport("memory://tuned?capacity=5", [MemoryTuning(capacity=1)])
    await transport.connect(0.0)
    await transport.subscribe(Subscription(topics={"orders": None}, group="g", consumer="c"), revoked)
    now = asyncio.get_running_loop().time()
    assert await transport.send([out("1")], now) == (None,)
    assert isinstance((await transport.send([out("2")], now))[0], NotSent)
    await transport.close()


# ---- named buses


async def test_names_are_brokers_and_the_last_user_takes_the_messages_along() -> None:
    one, two, other = MemoryTransport("unit-x"), MemoryTransport("unit-x"), MemoryTransport("unit-y")
    for transport in (one, two, other):
        await transport.connect(0.0)
        await transport.connect(0.0)
    here, there = await join(one), await join(other)
    await two.send([out("a")], 0.0)
    assert bodies(await here.receive(10)) == [b"a"]
    await two.send([out("b")], 0.0)
    await one.close()
    again = await join(two)
    assert bodies(await again.receive(10)) == [b"a", b"b"]
    await two.close()
    assert "unit-x" not in BROKERS._open
    await one.connect(0.0)
    fresh = await join(one, start="earliest")
    await one.send([out("c")], 0.0)
    assert bodies(await fresh.receive(10)) == [b"c"]
    await one.close()
    assert await there.receive(0) == []
    await other.close()


def test_a_second_event_loop_is_refused() -> None:
    async def connect(transport: MemoryTransport) -> None:
        await transport.connect(0.0)

    first, second = MemoryTransport("unit-loops"), MemoryTransport("unit-loops")
    loop = asyncio.new_event_loop()
    loop.run_until_complete(connect(first))
    with pytest.raises(ConfigurationError, match="another event loop"):
        asyncio.run(connect(second))
    loop.run_until_complete(first.close())
    loop.close()


def test_what_an_ended_loop_left_open_is_in_nobodys_way() -> None:
    async def leave_open() -> None:
        await MemoryTransport("unit-stale").connect(0.0)

    async def use() -> None:
        transport = MemoryTransport("unit-stale")
        await transport.connect(0.0)
        source = await join(transport)
        await transport.send([out("a")], 0.0)
        assert bodies(await source.receive(1)) == [b"a"]
        await transport.close()

    asyncio.run(leave_open())
    asyncio.run(use())
    assert "unit-stale" not in BROKERS._open


# ---- bounds


async def test_send_waits_for_room_in_line(transport: MemoryTransport, clock: ManualClock) -> None:
    source = await join(transport)
    for i in range(10):
        await transport.send([out(str(i))], clock.time + 5)
    waiting = [asyncio.create_task(transport.send([out(str(i))], clock.time + 5)) for i in range(10, 14)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    got = await source.receive(2)
    assert [list(outcome) for outcome in await asyncio.gather(*waiting[:2])] == [[None], [None]]
    assert not waiting[2].done()
    got = [*got, *await source.receive(20)]
    await asyncio.gather(*waiting)
    got += await source.receive(20)
    assert bodies(got) == [str(i).encode() for i in range(14)]


async def test_without_room_send_says_which_group_is_full(transport: MemoryTransport, clock: ManualClock) -> None:
    await join(transport, "slow")
    fast = await join(transport, "fast")
    for i in range(10):
        await transport.send([out(str(i))], clock.time + 5)
    assert len(await fast.receive(20)) == 10
    waiting = asyncio.create_task(transport.send([out("late"), out("too", "k")], clock.time + 5))
    await asyncio.sleep(0)
    await clock.advance(5.0)
    first, second = await waiting
    assert isinstance(first, NotSent)
    assert isinstance(second, NotSent)
    assert "'slow'" in str(first)
    pending = asyncio.create_task(fast.receive(1))
    await asyncio.sleep(0)
    await clock.advance(2.0)
    assert await pending == []  # stored for no group when one has no room


async def test_private_and_delayed_messages_are_not_bounded(transport: MemoryTransport, clock: ManualClock) -> None:
    source = await join(transport)
    outcomes = await transport.send([out(str(i), private=True) for i in range(30)], clock.time)
    assert list(outcomes) == [None] * 30
    outcomes = await transport.send([out(str(i), due=clock.now() + 1) for i in range(30)], clock.time)
    assert list(outcomes) == [None] * 30
    await clock.advance(1.0)
    assert len(await source.receive(100)) == 60


async def test_close_frees_who_waits_for_room(transport: MemoryTransport, clock: ManualClock) -> None:
    await join(transport)
    for i in range(10):
        await transport.send([out(str(i))], clock.time + 5)
    waiting = asyncio.create_task(transport.send([out("late")], clock.time + 5))
    await asyncio.sleep(0)
    await transport.close()
    (outcome,) = await waiting
    assert isinstance(outcome, NotSent)
    with pytest.raises(Unavailable):
        await transport.send([out("later")], clock.time)


async def test_a_cancelled_sender_lets_the_next_in(transport: MemoryTransport, clock: ManualClock) -> None:
    source = await join(transport)
    for i in range(10):
        await transport.send([out(str(i))], clock.time + 5)
    first = asyncio.create_task(transport.send([out("first")], clock.time + 5))
    second = asyncio.create_task(transport.send([out("second")], clock.time + 5))
    await asyncio.sleep(0)
    got = list(await source.receive(1))
    first.cancel()
    assert list(await second) == [None]
    got += await source.receive(20)
    assert bodies(got) == [*(str(i).encode() for i in range(10)), b"second"]


async def test_parked_messages_count(transport: MemoryTransport, clock: ManualClock) -> None:
    one = await join(transport, order=Order.KEY)
    two = await join(transport, order=Order.KEY)
    await transport.send([out("0", "k")], clock.time)
    (held,) = await one.receive(1)
    for i in range(1, 11):
        await transport.send([out(str(i), "k")], clock.time)
    pending = asyncio.create_task(two.receive(10))
    await asyncio.sleep(0)
    assert isinstance((await transport.send([out("11", "k")], clock.time))[0], NotSent)
    await settle(one, [held])
    assert bodies(await pending) == [str(i).encode() for i in range(1, 11)]


# ---- what is kept


async def test_keeps_nothing_that_no_group_reads_or_every_group_settled(
    transport: MemoryTransport, clock: ManualClock
) -> None:
    await transport.send([out("nobody")], clock.time)
    first = await join(transport, "first")
    await transport.send([out("a")], clock.time)
    await transport.send([out("b")], clock.time)
    a, b = await first.receive(10)
    await settle(first, [a])
    second = await join(transport, "second", start="earliest")
    assert bodies(await second.receive(10)) == [b"b"]
    await settle(first, [b])
    (info,) = await transport.topics("orders")
    assert info.messages == 1  # the second group has it still


async def test_declared_retention_drops_what_waits(transport: MemoryTransport, clock: ManualClock) -> None:
    source = await join(transport, order=Order.KEY, lease=300.0)
    other = await join(transport, order=Order.KEY, lease=300.0)
    await transport.provision([Resource(kind="topic", name="orders", retention=60.0)], True)
    await transport.send([out("held", "k")], clock.time)
    (held,) = await source.receive(1)
    for i in range(9):
        await transport.send([out(str(i), "k" if i % 2 else None)], clock.time)
    assert len(await other.receive(2)) == 2  # what is in flight stays, the others of the key are parked
    await clock.advance(61.0)
    for i in range(10):  # a full group makes room by dropping what is too old
        assert list(await transport.send([out(f"new{i}", "k")], clock.time)) == [None]
    await settle(source, [held])
    assert bodies(await source.receive(50)) == [f"new{i}".encode() for i in range(10)]
    assert source.trimmed == {"orders": 7}  # type: ignore[attr-defined]


# ---- time


async def test_all_time_is_the_clocks(transport: MemoryTransport, clock: ManualClock) -> None:
    one = await join(transport, lease=30.0)
    two = await join(transport, lease=30.0)
    await transport.send([out("a")], clock.time)
    (a,) = await one.receive(1)
    assert a.until == clock.time + 30
    assert one.time(a) == clock.now()
    pending = asyncio.create_task(two.receive(1))
    await asyncio.sleep(0)
    await clock.advance(0.9)
    assert not pending.done()
    await clock.advance(0.2)
    assert await pending == []
    await clock.advance(29.0)
    (again,) = await two.receive(1)
    assert again.body == b"a"
    await settle(two, [again], RETRY, 3600.0)
    await clock.advance(3599.0)
    assert await two.receive(0) == []
    pending = asyncio.create_task(two.receive(1))
    await asyncio.sleep(0)
    await clock.advance(1.0)
    (third,) = await pending
    assert third.deliveries == 2


async def test_given_up_appointments_do_not_pile_up(clock: ManualClock) -> None:
    agenda = Agenda(clock, clock.monotonic)
    called: list[int] = []
    handles = [agenda.at(clock.time + 1000 + i, lambda i=i: called.append(i)) for i in range(10_000)]  # type: ignore[misc]
    for handle in handles[:9_990]:
        assert agenda.cancel(handle)
    assert not agenda.cancel(handles[0])
    assert len(agenda._heap) < 200
    assert len(clock.timers) == 1
    await clock.advance(20_000)
    assert called == list(range(9_990, 10_000))
