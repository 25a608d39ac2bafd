"""One active member of a group, by a lease, where the broker keeps no order for several."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace

from switchgear import Bus, Topic
from switchgear.clock import LoopClock
from switchgear.driver import Order
from switchgear.emulate.partitions import Lease, murmur2
from switchgear.errors import NotSent, Unavailable
from switchgear_memory.transport import MemoryTransport
from tests.support.serving import a_bus, consumer_of, fresh, until
from tests.support.virtual import virtual

keyed = Topic("orders", dict[str, Any], key=lambda order: str(order["k"]), partitions=2)


@pytest.fixture(autouse=True)
def unordered(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if memory kept no order for several members."""
    monkeypatch.setattr(MemoryTransport, "capabilities", replace(MemoryTransport.capabilities, order=Order.NONE))


def now() -> float:
    return asyncio.get_running_loop().time()


@pytest.mark.parametrize(
    ("data", "hashed"),
    [(b"21", -973932308), (b"foobar", -790332482), (b"a-little-bit-long-string", -985981536), (b"", 275646681)],
)
def test_murmur2_is_kafkas(data: bytes, hashed: int) -> None:
    """Vectors of Kafka's own UtilsTest, made positive."""
    assert murmur2(data) == hashed & 0x7FFFFFFF


def member(url: str, seen: list[tuple[str, int]], name: str, gate: asyncio.Event | None = None) -> tuple[Bus, Any]:
    bus, events, _ = a_bus(url)

    @bus.subscribe(keyed, group="g", lease=6)
    async def handle(order: dict[str, Any]) -> None:
        seen.append((name, order["n"]))
        if gate is not None:
            await gate.wait()

    return bus, events


async def rows(bus: Bus) -> Any:
    registry: Any = bus.transport
    return await registry.read(consumer_of(bus).program.leased)


@virtual
async def test_a_further_member_stands_by_is_ready_and_takes_over_at_once_after_a_clean_leave() -> None:
    url, seen = fresh(), list[tuple[str, int]]()
    one, _ = member(url, seen, "one")
    two, _ = member(url, seen, "two")
    async with one.serving():
        fence = next(iter((await rows(one)).values())).revision
        async with two.serving():
            assert two.health().ready
            assert "standby" in two.health().detail["orders → g"]
            assert consumer_of(two).state == "standby"
            for n in range(10):
                await one.publish(keyed, {"k": n, "n": n})
            await until(lambda: len(seen) == 10)
            assert {name for name, _ in seen} == {"one"}
            leaving = asyncio.create_task(consumer_of(one).stop(now() + 10))
            began = now()
            await until(lambda: consumer_of(two).state == "active")
            assert now() - began <= 1
            await leaving
            assert next(iter((await rows(two)).values())).revision > fence
            await two.publish(keyed, {"k": 1, "n": 10})
            await until(lambda: len(seen) == 11)
            assert seen[10] == ("two", 10)


@virtual
async def test_a_dead_members_lease_runs_out_and_a_stand_by_takes_over() -> None:
    url, seen = fresh(), list[tuple[str, int]]()
    one, _ = member(url, seen, "one")
    two, _ = member(url, seen, "two")
    async with one.serving(), two.serving():
        registry: Any = one.transport
        died = now()

        async def dead(*args: Any, **more: Any) -> Any:
            await asyncio.get_running_loop().create_future()

        registry.write = dead
        await until(lambda: consumer_of(two).state == "active")
        assert now() - died <= 6 + 2
        assert consumer_of(one).state != "active"
        del registry.write


@virtual
async def test_a_member_whose_lease_ended_starts_no_handler() -> None:
    url, seen = fresh(), list[tuple[str, int]]()
    gate = asyncio.Event()
    one, _ = member(url, seen, "one", gate)
    async with one.serving():
        consumer = consumer_of(one)
        for n in range(20):
            await one.publish(keyed, {"k": 1, "n": n})
        await until(lambda: seen)
        assert consumer.valid_until >= now() + 3
        registry: Any = one.transport
        faults = [0]

        async def away(*args: Any, **more: Any) -> Any:
            faults[0] += 1
            raise Unavailable("gone") if faults[0] % 2 else NotSent("busy")

        registry.write = away
        ended = consumer.valid_until
        await asyncio.sleep(ended - now() + 0.001)
        gate.set()
        await asyncio.sleep(0.01)
        assert len(seen) == 1
        assert faults[0] > 3  # it was tried again and again
        del registry.write
        await until(lambda: consumer.state == "active", 20)
        await until(lambda: {n for _, n in seen} == set(range(20)), 20)


@virtual
async def test_renewals_keep_the_lease_through_a_short_interruption_and_keep_its_fence() -> None:
    url, seen = fresh(), list[tuple[str, int]]()
    one, _ = member(url, seen, "one")
    two, _ = member(url, seen, "two")
    async with one.serving(), two.serving():
        before = await rows(one)
        registry: Any = one.transport
        real, faults = registry.write, 3

        async def write(*args: Any, **more: Any) -> Any:
            nonlocal faults
            if faults:
                faults -= 1
                raise Unavailable("gone")
            return await real(*args, **more)

        registry.write = write
        await asyncio.sleep(60)
        assert await rows(one) == before
        assert consumer_of(one).state == "active"
        assert consumer_of(two).state == "standby"
        del registry.write


@virtual
async def test_who_is_stopped_while_it_takes_the_lease_gives_it_back() -> None:
    class Slow:
        def __init__(self) -> None:
            self.row: bytes | None = None

        async def read(self, prefix: str) -> Any:
            return {}

        async def write(self, name: str, value: bytes | None, *, expect: int | None, ttl: float | None) -> int | None:
            self.row = value
            await asyncio.sleep(0.5)
            return 7

    registry: Any = Slow()
    lease = Lease(registry, "row", "me", 30.0, LoopClock())
    taking = asyncio.create_task(lease.acquire(lambda holder: None))
    await asyncio.sleep(0.1)
    taking.cancel()
    await asyncio.wait([taking])
    assert registry.row == b"me"
    await lease.release()
    assert registry.row is None


@virtual
async def test_stopping_a_stand_by_is_quick_and_leaves_the_active_one_alone() -> None:
    url, seen = fresh(), list[tuple[str, int]]()
    one, _ = member(url, seen, "one")
    two, _ = member(url, seen, "two")
    async with one.serving():
        async with two.serving():
            await asyncio.sleep(3.1)
            began = now()
        assert now() - began < 0.5
        await asyncio.sleep(20)
        assert consumer_of(one).state == "active"
