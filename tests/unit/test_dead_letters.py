"""Where dead letters go, and what becomes of their keys."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from switchgear import Batch, DeadLetter, Message, Reject, Retry, Topic
from switchgear.driver import Outgoing
from switchgear.errors import NotSent, Refused, Unavailable
from tests.support.serving import a_bus, consumer_of, fresh, loose, orders, until
from tests.support.virtual import virtual

ONCE = Retry(attempts=1)


def to_graves(after: Any = "continue") -> DeadLetter:
    return DeadLetter(topic="graves", after=after)


def numbers(found: list[Outgoing]) -> list[int]:
    import msgspec

    return [msgspec.json.decode(m.body or b"")["n"] for m in found]


@virtual
async def test_a_dead_letter_says_where_it_is_from() -> None:
    bus, _, letters = a_bus()

    @bus.subscribe(orders, group="g", retry=ONCE, dead_letter=to_graves())
    async def handle(order: dict[str, Any]) -> None:
        raise ValueError("line\nbreak")

    async with bus.serving():
        id_ = await bus.publish(orders, {"k": "a"}, headers={"x": "y"})
        await until(lambda: letters.found)
    (letter,) = letters.found
    headers = {name.removeprefix("ce-"): value for name, value in letter.headers}
    assert headers["sgreason"] == b"ValueError: line break"
    assert headers["sgtopic"] == b"orders"
    assert headers["sggroup"] == b"g"
    assert headers["sgkey"] == letter.key == b"a"
    assert headers["id"] == id_.encode()
    assert headers["x"] == b"y"
    assert letter.dedup == f"{id_}/g/dlq/1"
    assert letter.private


@virtual
async def test_by_default_it_goes_to_the_groups_own_topic() -> None:
    bus, events, _ = a_bus()

    @bus.subscribe(orders, group="g", retry=ONCE)
    async def handle(order: dict[str, Any]) -> None:
        raise ValueError("no")

    async with bus.serving():
        assert consumer_of(bus).program.dead_letters == "sg.dlq.orders.g"
        await bus.publish(orders, {"k": "a"})
        await until(lambda: events["dead_lettered"] == 1)


@virtual
async def test_continue_goes_on_with_the_key() -> None:
    bus, events, letters = a_bus()
    seen: list[int] = []

    @bus.subscribe(orders, group="g", retry=ONCE, dead_letter=to_graves())
    async def handle(order: dict[str, Any]) -> None:
        if order["n"] == 0:
            raise ValueError("no")
        seen.append(order["n"])

    async with bus.serving():
        for n in range(3):
            await bus.publish(orders, {"k": "a", "n": n})
        await until(lambda: events["handled"] == 2)
    assert seen == [1, 2]
    assert numbers(letters.found) == [0]


@pytest.mark.parametrize("batch", [False, True])
@virtual
async def test_parked_keys_follow_in_order_and_on_other_members_and_after_a_restart(batch: bool) -> None:
    url = fresh()
    seen: list[tuple[str, int]] = []
    keeper, _, _ = a_bus(url)  # the broker lives as long as somebody is connected

    def member() -> Any:
        bus, events, letters = a_bus(url)

        def fate(order: dict[str, Any]) -> Exception | None:
            if order["n"] == 0 and order["k"] == "bad":
                return Reject("poison")
            seen.append((order["k"], order["n"]))
            return None

        if batch:

            @bus.subscribe(orders, group="g", dead_letter=to_graves("park"), batch=Batch(10))
            async def handle_all(found: list[dict[str, Any]]) -> list[Exception | None]:
                return [fate(order) for order in found]
        else:

            @bus.subscribe(orders, group="g", dead_letter=to_graves("park"))
            async def handle(order: dict[str, Any]) -> None:
                error = fate(order)
                if error is not None:
                    raise error

        return bus, events, letters

    first, events, letters = member()
    second, more_events, more_letters = member()
    async with keeper:
        async with first.serving(), second.serving():
            await first.publish(orders, {"k": "bad", "n": 0})
            await until(lambda: events["dead_lettered"] + more_events["dead_lettered"] == 1)
            for n in range(1, 40):
                await first.publish(orders, {"k": "bad", "n": n})
                await first.publish(orders, {"k": "good", "n": n})
            await until(lambda: events["dead_lettered"] + more_events["dead_lettered"] == 40)
            await until(lambda: len(seen) == 39)
        assert all(k == "good" for k, _ in seen)
        reasons = letters.reasons() + more_letters.reasons()
        assert sorted(reasons) == sorted(["poison", *["parked"] * 39])
        for found in (letters.found, more_letters.found):
            assert numbers(found) == sorted(numbers(found))
        assert events["rejected"] + more_events["rejected"] == 1
        third, _, last_letters = member()
        async with third.serving():
            await third.publish(orders, {"k": "bad", "n": 99})
            await until(lambda: last_letters.found)
        assert last_letters.reasons() == ["parked"]
        assert last_letters.attempts() == [0]
        assert ("bad", 99) not in seen


@virtual
async def test_a_key_parked_by_another_member_is_known_before_its_next_message_is_handled() -> None:
    bus, _, letters = a_bus()
    seen: list[int] = []

    @bus.subscribe(orders, group="g", dead_letter=to_graves("park"))
    async def handle(order: dict[str, Any]) -> None:
        seen.append(order["n"])

    async with bus.serving():
        transport: Any = bus.transport
        real = transport.read

        async def slow(prefix: str) -> Any:
            await asyncio.sleep(3)
            return await real(prefix)

        transport.read = slow
        parked: Any = consumer_of(bus).parked
        from switchgear.names import parked_row

        await transport.write(parked_row("orders", "g", b"bad"), b"bad", expect=None, ttl=None)
        await bus.publish(orders, {"k": "bad", "n": 1})
        await until(lambda: letters.found)
        assert b"bad" in parked
    assert not seen


@virtual
async def test_stop_stands_still_until_a_restart() -> None:
    url = fresh()
    keeper, _, _ = a_bus(url)
    seen: list[tuple[str, int]] = []

    def member() -> Any:
        bus, events, letters = a_bus(url)

        @bus.subscribe(orders, group="g", retry=Retry(attempts=2, base=0.1), dead_letter=to_graves("stop"))
        async def handle(order: dict[str, Any]) -> None:
            if order["n"] == 3 and order["k"] == "a":
                raise ValueError("poison")
            seen.append((order["k"], order["n"]))

        return bus, events, letters

    async with keeper:
        bus, events, letters = member()
        async with bus.serving():
            for n in range(6):
                await bus.publish(orders, {"k": "a", "n": n})
            await until(lambda: letters.found)
            health = bus.health()
            detail = health.detail["orders → g"]
            assert not health.ready
            assert health.live
            assert "topic orders" in detail
            assert "'a'" in detail
            assert "position" in detail
            await bus.publish(orders, {"k": "b", "n": 0})
            link: Any = bus._open.link  # an interruption does not make it go on, nor look well
            link.down(Unavailable("gone"))
            await asyncio.sleep(100)
            assert not bus.health().ready
            assert seen == [("a", 0), ("a", 1), ("a", 2)]
            assert numbers(letters.found) == [3]
        assert events["dead_lettered"] == 1
        bus, events, letters = member()
        async with bus.serving():
            await until(lambda: len(seen) == 6)
            assert bus.health().ready
        assert sorted(seen[3:]) == [("a", 4), ("a", 5), ("b", 0)]
        assert not letters.found


@virtual
async def test_stop_holds_over_a_lost_source() -> None:
    from switchgear.errors import Lost

    bus, events, letters = a_bus()
    calls = 0

    @bus.subscribe(orders, group="g", retry=ONCE, dead_letter=to_graves("stop"))
    async def handle(order: dict[str, Any]) -> None:
        nonlocal calls
        calls += 1
        raise ValueError("poison")

    async with bus.serving():
        for n in range(3):
            await bus.publish(orders, {"k": "a", "n": n})
        await until(lambda: letters.found)
        consumer = consumer_of(bus)
        before: Any = consumer.source

        async def lost(*args: Any) -> Any:
            raise Lost("gone")

        before.receive = lost
        await until(lambda: consumer.source not in (None, before) and len(consumer.lanes.held) == 3)
        await asyncio.sleep(20)
        assert consumer.state == "stopped"
        assert "topic orders" in consumer.detail
    assert calls == 1
    assert events["dead_lettered"] == 1


@pytest.mark.parametrize("topic", [orders, loose])
@virtual
async def test_while_dead_letters_cannot_be_written_nothing_is_acknowledged_and_the_rest_goes_on(
    topic: Topic[Any],
) -> None:
    bus, events, letters = a_bus()

    @bus.subscribe(topic, group="g", concurrency=2, retry=ONCE, dead_letter=to_graves())
    async def handle(order: dict[str, Any]) -> None:
        if order["k"].startswith("bad"):
            raise ValueError("poison")

    async with bus.serving():
        transport: Any = bus.transport
        real, broken = transport.send, True

        async def send(batch: Any, deadline: float) -> Any:
            return [NotSent("full")] if broken and batch[0].topic == "graves" else await real(batch, deadline)

        transport.send = send
        for n in range(5):
            await bus.publish(topic, {"k": f"bad{n}", "n": n})
        await until(lambda: consumer_of(bus, topic.name).detail)
        assert "graves" in bus.health().detail[f"{topic.name} → g"]
        for n in range(50):
            await bus.publish(topic, {"k": f"good{n}", "n": n})
        await until(lambda: events["handled"] == 50)
        consumer = consumer_of(bus, topic.name)
        assert len(consumer.lanes.held) == 5
        source: Any = consumer.source
        assert len(source.leased) == 5
        await asyncio.sleep(300)  # longer than leases last
        assert len(source.leased) == 5
        broken = False
        await until(lambda: len(letters.found) == 5)
        await until(lambda: not consumer.lanes.held)
        assert consumer.detail == ""
        assert not source.leased
    assert events.seen == {"handled": 50, "dead_lettered": 5}


@virtual
async def test_a_refused_dead_letter_does_not_stop_the_others() -> None:
    bus, _events, letters = a_bus()

    @bus.subscribe(loose, group="g", retry=ONCE, concurrency=1, dead_letter=to_graves())
    async def handle(order: dict[str, Any]) -> None:
        raise ValueError("poison")

    async with bus.serving():
        transport: Any = bus.transport
        real = transport.send

        async def send(batch: Any, deadline: float) -> Any:
            if batch[0].topic == "graves" and b'"n":0' in batch[0].body:
                return [Refused("too long")]
            return await real(batch, deadline)

        transport.send = send
        for n in range(3):
            await bus.publish(loose, {"k": "a", "n": n})
        await until(lambda: len(letters.found) == 2 and len(consumer_of(bus, "loose").lanes.held) == 1)
        assert "graves refuses dead letters: too long" in bus.health().detail["loose → g"]


@virtual
async def test_where_all_dead_letters_are_refused_only_some_are_tried_again_and_health_tells() -> None:
    bus, events, letters = a_bus()

    @bus.subscribe(loose, group="g", retry=ONCE, dead_letter=to_graves())
    async def handle(order: dict[str, Any]) -> None:
        raise ValueError("poison")

    async with bus.serving():
        transport: Any = bus.transport
        real, refusing, tries = transport.send, True, 0

        async def send(batch: Any, deadline: float) -> Any:
            nonlocal tries
            if refusing and batch[0].topic == "graves":
                tries += len(batch)
                return [Refused("no right to write")] * len(batch)
            return await real(batch, deadline)

        transport.send = send
        for n in range(100):
            await bus.publish(loose, {"k": "a", "n": n})
        await until(lambda: len(consumer_of(bus, "loose").fate.graves) == 100)
        await asyncio.sleep(60)
        assert "no right to write" in bus.health().detail["loose → g"]
        before = tries
        await asyncio.sleep(100)
        assert 0 < tries - before <= 500
        assert events["dead_lettered"] == 0
        refusing = False
        await until(lambda: events["dead_lettered"] == 100)
        await until(lambda: not consumer_of(bus, "loose").lanes.held)
        assert bus.health().detail["loose → g"] == "active"
    assert sorted(numbers(letters.found)) == list(range(100))


@virtual
async def test_a_drain_ends_in_time_although_dead_letters_cannot_be_written() -> None:
    url = fresh()
    keeper, _, _ = a_bus(url)
    attempts: list[int] = []

    def member() -> Any:
        bus, events, letters = a_bus(url)

        @bus.subscribe(orders, group="g", retry=Retry(attempts=2, base=0.1), dead_letter=to_graves())
        async def handle(order: dict[str, Any], message: Message[Any]) -> None:
            attempts.append(message.attempt)
            raise ValueError("poison")

        return bus, events, letters

    async with keeper:
        bus, events, _ = member()
        async with bus.serving():
            transport: Any = bus.transport
            real = transport.send

            async def send(batch: Any, deadline: float) -> Any:
                return [NotSent("full")] if batch[0].topic == "graves" else await real(batch, deadline)

            transport.send = send
            await bus.publish(orders, {"k": "a", "n": 0})
            await until(lambda: consumer_of(bus).fate.graves)
            began = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - began < 3
        assert events["dead_lettered"] == 0
        bus, events, letters = member()
        async with bus.serving():
            await until(lambda: letters.found)  # it came again
    assert attempts[:2] == [1, 2]


@virtual
async def test_total_order_parks_everything() -> None:
    bus, _events, letters = a_bus()
    total = Topic("total", dict[str, Any], order="total")
    seen: list[int] = []

    @bus.subscribe(total, group="g", retry=ONCE, dead_letter=to_graves("park"))
    async def handle(order: dict[str, Any]) -> None:
        seen.append(order["n"])
        if order["n"] == 1:
            raise ValueError("poison")

    async with bus.serving():
        for n in range(5):
            await bus.publish(total, {"n": n})
        await until(lambda: len(letters.found) == 4)
    assert seen == [0, 1]
    assert numbers(letters.found) == [1, 2, 3, 4]


@virtual
async def test_a_parked_key_that_is_let_go_is_handled_again() -> None:
    bus, _events, letters = a_bus()
    seen: list[int] = []

    @bus.subscribe(orders, group="g", dead_letter=to_graves("park"))
    async def handle(order: dict[str, Any]) -> None:
        if order["n"] == 0:
            raise Reject("poison")
        seen.append(order["n"])

    async with bus.serving():
        await bus.publish(orders, {"k": "a", "n": 0})
        await bus.publish(orders, {"k": "a", "n": 1})
        await until(lambda: len(letters.found) == 2)
        transport: Any = bus.transport
        for name in await transport.read("sg.parked."):
            await transport.write(name, None, expect=None, ttl=None)
        await bus.publish(orders, {"k": "a", "n": 2})
        await until(lambda: seen)
    assert seen == [2]


@virtual
async def test_where_the_broker_counts_nothing_attempts_are_counted_here(monkeypatch: pytest.MonkeyPatch) -> None:
    from msgspec.structs import replace

    from switchgear_memory.source import CAPABILITIES, MemorySource

    monkeypatch.setattr(MemorySource, "capabilities", replace(CAPABILITIES, counting="none"))
    bus, events, letters = a_bus()
    attempts: list[int] = []

    @bus.subscribe(loose, group="g", retry=Retry(attempts=3, base=0.1), dead_letter=to_graves())
    async def handle(order: dict[str, Any], message: Message[Any]) -> None:
        attempts.append(message.attempt)
        raise ValueError("poison")

    async with bus.serving():
        await bus.publish(loose, {"k": "a", "n": 0})
        await until(lambda: letters.found)
    assert attempts == [1, 2, 3]
    assert letters.attempts() == [3]
    assert events.seen == {"retried": 2, "dead_lettered": 1}
