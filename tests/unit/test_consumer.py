"""Outcomes of handlers: what is retried, buried, dropped, counted, and how often."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from itertools import pairwise
from typing import Any

import msgspec
import pytest

from switchgear import Batch, Bus, DeadLetter, Drop, Message, Reject, Retry, RetryAfter, Topic
from switchgear.driver import Outgoing, Settlement, Verdict
from switchgear.errors import Lost, NotSent, Unavailable
from switchgear.fetching import FETCH
from tests.support.serving import BURIED, a_bus, consumer_of, loose, orders, until
from tests.support.virtual import virtual

QUICK = Retry(attempts=3, base=0.1, cap=0.1)


@pytest.mark.parametrize("topic", [orders, loose])
@virtual
async def test_a_returning_handler_acknowledges(topic: Topic[Any]) -> None:
    bus, events, _ = a_bus()
    seen: list[int] = []

    @bus.subscribe(topic, group="g")
    async def handle(order: dict[str, Any]) -> None:
        seen.append(order["n"])

    async with bus.serving():
        for n in range(5):
            await bus.publish(topic, {"k": "a", "n": n})
        await until(lambda: events["handled"] == 5)
        assert not consumer_of(bus, topic.name).lanes.held
        assert consumer_of(bus, topic.name).lanes.bytes == 0
    assert seen == [0, 1, 2, 3, 4]
    assert events.seen == {"handled": 5}


@pytest.mark.parametrize("topic", [orders, loose])
@virtual
async def test_a_failing_handler_is_tried_as_often_as_said_and_then_buried(topic: Topic[Any]) -> None:
    bus, events, letters = a_bus()
    attempts: list[int] = []

    @bus.subscribe(topic, group="g", retry=QUICK, dead_letter=BURIED)
    async def handle(order: dict[str, Any], message: Message[Any]) -> None:
        attempts.append(message.attempt)
        raise ValueError("no")

    async with bus.serving():
        await bus.publish(topic, {"k": "a"})
        await until(lambda: letters.found)
        assert not consumer_of(bus, topic.name).failures
    assert attempts == [1, 2, 3]
    assert letters.reasons() == ["ValueError: no"]
    assert letters.attempts() == [3]
    assert letters.bodies() == [b'{"k":"a"}']
    assert events.seen == {"retried": 2, "dead_lettered": 1}


@pytest.mark.parametrize("topic", [orders, loose])
@pytest.mark.parametrize(
    ("outcome", "counted", "reasons"),
    [
        (Reject("worthless"), {"rejected": 1, "dead_lettered": 1}, ["worthless"]),
        (Drop("old"), {"dropped": 1}, []),
        (KeyError("k"), {"dead_lettered": 1}, ["KeyError: 'k'"]),
    ],
)
@virtual
async def test_outcomes_at_once(
    topic: Topic[Any], outcome: Exception, counted: dict[str, int], reasons: list[str]
) -> None:
    bus, events, letters = a_bus()
    calls = 0

    @bus.subscribe(topic, group="g", retry=Retry(on=(ValueError,)), dead_letter=BURIED)
    async def handle(order: dict[str, Any]) -> None:
        nonlocal calls
        calls += 1
        if order["k"] == "bad":
            raise outcome

    async with bus.serving():
        await bus.publish(topic, {"k": "bad"})
        await bus.publish(topic, {"k": "good"})
        await until(lambda: events["handled"] == 1)
        await asyncio.sleep(5)
        assert letters.reasons() == reasons
        assert not consumer_of(bus, topic.name).lanes.held
    assert calls == 2
    assert events.seen == {**counted, "handled": 1}


@pytest.mark.parametrize("topic", [orders, loose])
@virtual
async def test_retry_after_waits_and_counts(topic: Topic[Any]) -> None:
    bus, _events, letters = a_bus()
    at: list[float] = []

    @bus.subscribe(topic, group="g", retry=Retry(attempts=2), dead_letter=BURIED)
    async def handle(order: dict[str, Any]) -> None:
        at.append(asyncio.get_running_loop().time())
        raise RetryAfter(40.0, "later")

    async with bus.serving():
        await bus.publish(topic, {"k": "a"})
        await until(lambda: letters.found)
    assert at[1] - at[0] == pytest.approx(40, abs=0.1)
    assert len(at) == 2
    assert letters.reasons() == ["RetryAfter: later"]


@virtual
async def test_without_dead_letters_what_fails_for_good_is_logged_and_dropped(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bus, events, _ = a_bus()

    @bus.subscribe(orders, group="g", retry=QUICK, dead_letter=False)
    async def handle(order: dict[str, Any]) -> None:
        raise ValueError("no")

    async with bus.serving():
        await bus.publish(orders, {"k": "a", "secret": "s3cret"})
        await until(lambda: events["dropped"])
        await asyncio.sleep(1)
        assert not consumer_of(bus).lanes.held
    assert events.seen == {"retried": 2, "dropped": 1}
    assert any(r.levelname == "ERROR" and "given up" in r.message for r in caplog.records)
    assert "s3cret" not in caplog.text


@virtual
async def test_broadcast_is_retried_in_place_then_dropped() -> None:
    bus, events, _ = a_bus()
    attempts: list[int] = []

    @bus.subscribe(loose, group=None, retry=QUICK)
    async def handle(order: dict[str, Any], message: Message[Any]) -> None:
        attempts.append(message.attempt)
        raise ValueError("no")

    async with bus.serving():
        await bus.publish(loose, {"k": "a"})
        await until(lambda: events["dropped"])
    assert attempts == [1, 2, 3]
    assert events.seen == {"retried": 2, "dropped": 1}


@virtual
async def test_no_limit_of_attempts() -> None:
    bus, events, _ = a_bus()
    calls = 0

    @bus.subscribe(loose, group="g", retry=Retry(attempts=None, base=0.01, cap=0.01))
    async def handle(order: dict[str, Any]) -> None:
        nonlocal calls
        calls += 1
        if calls < 50:
            raise ValueError("no")

    async with bus.serving():
        await bus.publish(loose, {"k": "a"})
        await until(lambda: events["handled"])
    assert calls == 50


@virtual
async def test_attempts_count_over_holds_in_the_process_and_returns_by_the_broker() -> None:
    bus, _events, letters = a_bus()
    attempts: list[int] = []

    @bus.subscribe(loose, group="g", retry=Retry(attempts=4, base=0.01, cap=0.01), dead_letter=BURIED)
    async def handle(order: dict[str, Any], message: Message[Any]) -> None:
        attempts.append(message.attempt)
        if message.attempt == 2:
            raise RetryAfter(500.0)  # longer than this broker waits: held here
        raise ValueError("no")

    async with bus.serving():
        source = consumer_of(bus, "loose").source
        assert source is not None
        source.capabilities = _limited(source.capabilities)  # type: ignore[misc]
        await bus.publish(loose, {"k": "a"})
        await until(lambda: letters.found, 1000)
    assert attempts == [1, 2, 3, 4]


def _limited(capabilities: Any) -> Any:
    from msgspec.structs import replace

    return replace(capabilities, retry_delay=100.0)


# ---- what cannot be handled -----------------------------------------------------------------------------------------


class Paid(msgspec.Struct):
    id: str


class Shipped(msgspec.Struct):
    id: str


async def send(bus: Bus, topic: str, body: bytes, **more: Any) -> None:
    assert list(await bus.transport.send([Outgoing(topic=topic, body=body, marked=True, **more)], 1e9)) == [None]


@pytest.mark.parametrize(
    ("body", "media", "headers"),
    [
        (b"{", b"application/json", []),
        (b'{"id": 7}', b"application/json", []),
        (b"{", b"application/cloudevents+json", []),
        (b'{"specversion":"1.0","id":"1","source":"/x","type":"t","data":7}', b"application/cloudevents+json", []),
        (b'{"id":"1"}', b"application/json", [("ce-id", b"1"), ("ce-expirytime", b"soon")]),
        (b'{"id":"1"}', b"application/json", [("ce-specversion", b"9")]),
        (b'{"id":"1"}', b"text/x-unknown", []),
        (b"\xff\xfe", b"application/json", [("ce-id", b"\xff")]),
    ],
)
@pytest.mark.parametrize("batch", [False, True])
@virtual
async def test_what_cannot_be_read_is_buried_untouched_and_the_rest_goes_on(
    body: bytes, media: bytes, headers: Any, batch: bool
) -> None:

    bus, events, letters = a_bus()
    topic = Topic("paid", Paid, key=lambda p: p.id)

    if batch:

        @bus.subscribe(topic, group="g", dead_letter=BURIED, batch=Batch(10))
        async def handle_all(paid: list[Paid]) -> None:
            pass
    else:

        @bus.subscribe(topic, group="g", dead_letter=BURIED)
        async def handle(paid: Paid) -> None:
            pass

    async with bus.serving():
        await send(bus, "paid", body, media=media, headers=headers, key=b"k")
        await bus.publish(topic, Paid("k"))
        await until(lambda: letters.found and events["handled"] == 1)
        assert bus.health().ready
    assert letters.bodies() == [body]
    assert letters.attempts() == [0]
    assert letters.found[0].media == media
    assert events.seen == {"rejected": 1, "dead_lettered": 1, "handled": 1}


@virtual
async def test_structured_plain_and_other_codecs_are_read() -> None:
    bus, events, letters = a_bus()
    topic = Topic("paid", Paid)
    seen: list[tuple[str, str]] = []

    @bus.subscribe(topic, group="g", dead_letter=BURIED)
    async def handle(paid: Paid, message: Message[Any]) -> None:
        seen.append((paid.id, message.id))

    async with bus.serving():
        document = b'{"specversion":"1.0","id":"e1","source":"/x","type":"t","data":{"id":"structured"}}'
        await send(bus, "paid", document, media=b"application/cloudevents+json")
        await send(bus, "paid", b'{"id":"plain"}')
        await send(bus, "paid", msgspec.msgpack.encode(Paid("packed")), media=b"application/msgpack")
        await until(lambda: events["handled"] == 3)
    assert [body for body, _ in seen] == ["structured", "plain", "packed"]
    assert seen[0][1] == "e1"
    assert seen[1][1].startswith("paid/")
    assert not letters.found


@virtual
async def test_expired_is_counted_and_never_handled() -> None:
    bus, events, _ = a_bus()
    seen: list[int] = []
    gate = asyncio.Event()

    @bus.subscribe(loose, group="g", concurrency=1)
    async def handle(order: dict[str, Any]) -> None:
        seen.append(order["n"])
        await gate.wait()

    async with bus.serving():
        await bus.publish(loose, {"k": "a", "n": 0})
        await bus.publish(loose, {"k": "a", "n": 1}, expires=5)
        await bus.publish(loose, {"k": "a", "n": 2}, expires=50)
        import time

        before = time.time
        gate.set()
        assert bus._open is not None
        bus._open.clock.now = lambda: before() + 10  # type: ignore[method-assign]
        await until(lambda: events["handled"] == 2)
    assert seen == [0, 2]
    assert events.seen == {"handled": 2, "expired": 1}


@pytest.mark.parametrize("unhandled", ["drop", "dead_letter"])
@virtual
async def test_several_types_on_one_topic(unhandled: Any) -> None:
    bus, events, letters = a_bus()
    paid, shipped = Topic("events", Paid, type="paid.v1"), Topic("events", Shipped, type="shipped.v1")
    other = Topic("events", Paid, type="other.v1")
    seen: list[object] = []

    @bus.subscribe(paid, group="g", unhandled=unhandled, dead_letter=BURIED)
    async def handle_paid(event: Paid) -> None:
        seen.append(event)

    @bus.subscribe(shipped, group="g", unhandled=unhandled, dead_letter=BURIED)
    async def handle_shipped(event: Shipped) -> None:
        seen.append(event)

    async with bus.serving():
        await bus.publish(paid, Paid("1"))
        await bus.publish(other, Paid("2"))
        await bus.publish(shipped, Shipped("3"))
        await until(lambda: events["handled"] == 2 and events["unhandled"] == 1)
        await asyncio.sleep(1)
    assert seen == [Paid("1"), Shipped("3")]
    if unhandled == "drop":
        assert events.seen == {"handled": 2, "unhandled": 1}
        assert not letters.found
    else:
        assert events.seen == {"handled": 2, "unhandled": 1, "dead_lettered": 1}
        assert letters.attempts() == [0]


# ---- to= ------------------------------------------------------------------------------------------------------------


@virtual
async def test_the_output_is_stored_before_the_ack_and_an_outage_is_no_attempt() -> None:
    bus, events, letters = a_bus()
    out = Topic("outputs", dict[str, Any])
    attempts: list[int] = []
    ids: list[str] = []

    @bus.subscribe(orders, group="g", to=out, retry=Retry(attempts=1), dead_letter=BURIED)
    async def handle(order: dict[str, Any], message: Message[Any]) -> dict[str, Any]:
        attempts.append(message.attempt)
        ids.append(message.id)
        return order

    received: list[Message[Any]] = []

    @bus.subscribe(out, group="h")
    async def take(message: Message[Any]) -> None:
        _ = message.id
        received.append(message)

    async with bus.serving():
        transport: Any = bus.transport
        real, failures = transport.send, 4

        async def send(batch: Any, deadline: float) -> Any:
            nonlocal failures
            if batch[0].topic == "outputs" and failures:
                failures -= 1
                return [NotSent("full")] * len(batch)
            assert batch[0].topic != "outputs" or not events["handled"]
            return await real(batch, deadline)

        transport.send = send
        await bus.publish(orders, {"k": "a"})
        await until(lambda: received, 400)
        await until(lambda: events["handled"] == 2)
        del transport.send
    assert set(attempts) == {1}
    assert [m.id for m in received] == [f"{ids[0]}>outputs"]
    assert not letters.found
    assert events["retried"] == 0


# ---- order ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@virtual
async def test_key_order_holds_under_concurrency_and_retries(seed: int) -> None:
    bus, events, _letters = a_bus()
    draw = random.Random(seed)
    running: dict[str, int] = defaultdict(int)
    first: dict[str, list[int]] = defaultdict(list)
    done: dict[str, list[int]] = defaultdict(list)

    @bus.subscribe(orders, group="g", concurrency=8, retry=Retry(attempts=3, base=0.05, cap=0.2), dead_letter=BURIED)
    async def handle(order: dict[str, Any], message: Message[Any]) -> None:
        key = order["k"]
        running[key] += 1
        assert running[key] == 1, "two of a key at once"
        if message.attempt == 1:
            first[key].append(order["n"])
        try:
            await asyncio.sleep(draw.choice([0, 0, 0.01, 0.1]))
            if draw.random() < 0.2:
                raise ValueError("no")
            done[key].append(order["n"])
        finally:
            running[key] -= 1

    async with bus.serving():
        for n in range(300):
            await bus.publish(orders, {"k": f"k{n % 7}", "n": n})
        await until(lambda: events["handled"] + events["dead_lettered"] == 300)
    for key, found in first.items():
        assert found == sorted(found) == list(range(int(key[1]), 300, 7))
        assert done[key] == sorted(done[key])


@virtual
async def test_a_retry_holds_its_key_and_no_other() -> None:
    bus, events, _ = a_bus()
    seen: list[tuple[str, int]] = []

    @bus.subscribe(orders, group="g", concurrency=2, retry=Retry(attempts=2))
    async def handle(order: dict[str, Any], message: Message[Any]) -> None:
        if order["k"] == "a" and order["n"] == 0 and message.attempt == 1:
            raise RetryAfter(60)
        seen.append((order["k"], order["n"]))

    async with bus.serving():
        for n in range(3):
            await bus.publish(orders, {"k": "a", "n": n})
            await bus.publish(orders, {"k": "b", "n": n})
        await asyncio.sleep(50)
        assert seen == [("b", 0), ("b", 1), ("b", 2)]
        await until(lambda: events["handled"] == 6)
    assert seen[3:] == [("a", 0), ("a", 1), ("a", 2)]


@virtual
async def test_total_order_is_one_handler_at_a_time() -> None:
    bus, events, _ = a_bus()
    total = Topic("total", dict[str, Any], order="total")
    running, seen = 0, []

    @bus.subscribe(total, group="g", concurrency=8, retry=Retry(attempts=2, base=0.1))
    async def handle(order: dict[str, Any], message: Message[Any]) -> None:
        nonlocal running
        running += 1
        assert running == 1
        await asyncio.sleep(0.01)
        running -= 1
        if order["n"] % 5 == 0 and message.attempt == 1:
            raise ValueError("no")
        seen.append(order["n"])

    async with bus.serving():
        for n in range(30):
            await bus.publish(total, {"n": n})
        await until(lambda: events["handled"] == 30)
    assert seen == list(range(30))


@virtual
async def test_messages_without_a_key_have_no_order() -> None:
    bus, events, _ = a_bus()
    topic = Topic("mixed", dict[str, Any], order="key")
    seen: list[int] = []

    @bus.subscribe(topic, group="g", concurrency=4)
    async def handle(order: dict[str, Any]) -> None:
        if order["n"] == 0:
            await asyncio.sleep(30)
        seen.append(order["n"])

    async with bus.serving():
        for n in range(4):
            await bus.publish(topic, {"n": n})
        await until(lambda: events["handled"] == 4)
    assert seen == [1, 2, 3, 0]


# ---- bounds ---------------------------------------------------------------------------------------------------------


@virtual
async def test_the_window_pauses_visibly_and_calls_the_source_all_the_same() -> None:
    bus, events, _ = a_bus()
    gate = asyncio.Event()

    @bus.subscribe(orders, group="g", window=10, concurrency=2)
    async def handle(order: dict[str, Any]) -> None:
        if order["k"] == "stuck":
            await gate.wait()

    async with bus.serving():
        consumer = consumer_of(bus)
        source: Any = consumer.source
        calls: list[tuple[float, int]] = []
        real = source.receive

        async def receive(limit: int, held: Any = ()) -> Any:
            calls.append((asyncio.get_running_loop().time(), limit))
            return await real(limit, held)

        source.receive = receive
        for n in range(100):
            await bus.publish(orders, {"k": "stuck", "n": n})
        await until(lambda: "paused" in consumer.detail)
        assert len(consumer.lanes.held) == 10
        assert "window=10" in bus.health().detail["orders → g"]
        calls.clear()
        await asyncio.sleep(10)
        times = [at for at, _ in calls]
        assert {limit for _, limit in calls} == {0}
        assert max(b - a for a, b in pairwise(times)) <= 1.0
        gate.set()
        await until(lambda: events["handled"] == 100 and consumer.detail == "")


@virtual
async def test_bytes_held_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("switchgear.fetching.PREFETCH_BYTES", 100_000)
    bus, events, _ = a_bus()
    gate = asyncio.Event()
    most = 0

    @bus.subscribe(loose, group="g", concurrency=4)
    async def handle(order: dict[str, Any]) -> None:
        nonlocal most
        most = max(most, consumer_of(bus, "loose").lanes.bytes)
        if order["n"] > 20:
            await gate.wait()

    async with bus.serving():
        for n in range(200):
            await bus.publish(loose, {"n": n, "pad": "x" * 10_000})
        await asyncio.sleep(20)
        consumer = consumer_of(bus, "loose")
        assert consumer.lanes.bytes < 130_000
        gate.set()
        await until(lambda: events["handled"] == 200)
        assert consumer.lanes.bytes == 0
    assert most < 16 * 11_000 + 130_000  # what a first receive brings before the size of a message is known


@virtual
async def test_prefetch_adapts_and_never_falls_below_a_batch() -> None:

    bus, events, _ = a_bus()
    sizes: list[int] = []

    @bus.subscribe(loose, group="g", concurrency=1, batch=Batch(50, wait=0.5))
    async def handle(batch: list[dict[str, Any]]) -> None:
        sizes.append(len(batch))
        await asyncio.sleep(5)

    async with bus.serving():
        for n in range(600):
            await bus.publish(loose, {"n": n})
        await until(lambda: events["handled"] == 600, 600)
    assert sizes == [50] * 12


# ---- settling -------------------------------------------------------------------------------------------------------


@virtual
async def test_a_lost_connection_keeps_the_acknowledgements() -> None:
    bus, events, _ = a_bus()
    calls: list[int] = []

    @bus.subscribe(loose, group="g")
    async def handle(order: dict[str, Any]) -> None:
        calls.append(order["n"])

    async with bus.serving():
        source: Any = consumer_of(bus, "loose").source
        real, failures = source.settle, 5

        async def settle(batch: list[Settlement]) -> Any:
            nonlocal failures
            if failures:
                failures -= 1
                raise Unavailable("gone")
            return await real(batch)

        source.settle = settle
        for n in range(10):
            await bus.publish(loose, {"n": n})
        await until(lambda: events["handled"] == 10)
    assert sorted(calls) == list(range(10))
    assert events.seen == {"handled": 10}


@virtual
async def test_a_settlement_that_fails_for_a_while_is_tried_again_and_a_lost_one_counted() -> None:
    bus, events, _ = a_bus()

    @bus.subscribe(loose, group="g")
    async def handle(order: dict[str, Any]) -> None:
        pass

    async with bus.serving():
        source: Any = consumer_of(bus, "loose").source
        real, calls = source.settle, 0

        async def settle(batch: list[Settlement]) -> Any:
            nonlocal calls
            calls += 1
            outcomes = list(await real(batch[1:])) if calls == 1 else list(await real(batch))
            return [NotSent("busy"), *outcomes] if calls == 1 else outcomes

        source.settle = settle
        for n in range(4):
            await bus.publish(loose, {"n": n})
        await until(lambda: events["handled"] == 4)
        stored = source.leased
        assert not stored
    assert events.seen == {"handled": 4}


def expire(source: Any, *, returns: bool = True) -> None:
    """End the leases of all that a memory source has handed out."""
    for group in source._groups.values():
        late = list(source.leased.values())
        source.leased.clear()
        if returns:
            group.returned(late)


@pytest.mark.parametrize("topic", [orders, loose])
@virtual
async def test_a_message_that_comes_again_while_handled_takes_the_place_of_the_first(topic: Topic[Any]) -> None:
    bus, events, _ = a_bus()
    calls = 0
    gate = asyncio.Event()

    @bus.subscribe(topic, group="g", concurrency=4)
    async def handle(order: dict[str, Any]) -> None:
        nonlocal calls
        calls += 1
        await gate.wait()

    async with bus.serving():
        await bus.publish(topic, {"k": "a", "n": 0})
        await until(lambda: calls == 1)
        source: Any = consumer_of(bus, topic.name).source
        expire(source)
        source.wake()
        await until(lambda: source.leased)
        assert calls == 1
        gate.set()
        await until(lambda: events["handled"] == 1)
        await asyncio.sleep(60)
        assert not source.leased
        assert not consumer_of(bus, topic.name).lanes.moved
    assert calls == 1
    assert events.seen == {"handled": 1, "duplicate": 1}


@virtual
async def test_a_lost_lease_is_counted_once_and_its_outcome_settles_nothing() -> None:
    bus, events, _ = a_bus()
    gate = asyncio.Event()
    calls = 0

    @bus.subscribe(orders, group="g", lease=4)
    async def handle(order: dict[str, Any]) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            await gate.wait()

    async with bus.serving():
        await bus.publish(orders, {"k": "a", "n": 0})
        await until(lambda: calls == 1)
        source: Any = consumer_of(bus).source
        expire(source, returns=False)  # another member has it
        await until(lambda: events["lease_lost"] == 1)
        gate.set()
        await asyncio.sleep(20)
        assert events.seen == {"lease_lost": 1}
        assert not consumer_of(bus).lanes.held
        assert not consumer_of(bus).lanes.chains


@virtual
async def test_what_follows_a_lost_message_is_not_handled_before_it() -> None:
    bus, events, _ = a_bus()
    seen: list[int] = []
    gate = asyncio.Event()

    @bus.subscribe(orders, group="g", lease=4, concurrency=1)
    async def handle(order: dict[str, Any]) -> None:
        if order["k"] == "other":
            await gate.wait()
        else:
            seen.append(order["n"])

    async with bus.serving():
        await bus.publish(orders, {"k": "other", "n": -1})
        await until(lambda: bus._open and consumer_of(bus).running())
        for n in range(4):
            await bus.publish(orders, {"k": "a", "n": n})
        consumer = consumer_of(bus)
        await until(lambda: len(consumer.lanes.held) == 5)
        source: Any = consumer.source
        real, released = source.settle, []

        async def settle(batch: list[Settlement]) -> Any:
            released.extend(s.delivery.token for s in batch if s.verdict is Verdict.RELEASE)
            return [None if s.verdict is Verdict.RELEASE else (await real([s]))[0] for s in batch]

        source.settle = settle
        head, *followers = [d for d in source.leased.values() if d.key == b"a"]
        del source.leased[head.token]  # somebody else has the head of the key
        await until(lambda: len(released) == 3)
        assert released == [d.token for d in followers]
        assert events.seen == {"lease_lost": 1}
        source.settle = real
        (group,) = source._groups.values()
        for d in followers:
            del source.leased[d.token]
        group.returned([head, *followers])
        gate.set()
        await until(lambda: len(seen) == 4)
    assert seen == [0, 1, 2, 3]


# ---- faults of the source -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [Unavailable("gone"), Lost("gone")])
@virtual
async def test_a_source_that_fails_to_receive_is_used_again_or_made_anew(error: Exception) -> None:
    bus, events, _ = a_bus()

    @bus.subscribe(orders, group="g")
    async def handle(order: dict[str, Any]) -> None:
        pass

    async with bus.serving():
        source: Any = consumer_of(bus).source
        real, failures = source.receive, 3

        async def receive(limit: int, held: Any = ()) -> Any:
            nonlocal failures
            if failures:
                failures -= 1
                raise error
            return await real(limit, held)

        source.receive = receive
        await bus.publish(orders, {"k": "a"})
        await until(lambda: events["handled"] == 1)
        assert (consumer_of(bus).source is source) is isinstance(error, Unavailable)
        await bus.publish(orders, {"k": "a"})
        await until(lambda: events["handled"] == 2)
        assert bus.health().ready


@pytest.mark.parametrize("where", ["receive", "settle", "subscribe"])
@virtual
async def test_a_bug_of_the_transport_ends_the_subscription_and_shows(where: str) -> None:
    bus, events, _ = a_bus()

    @bus.subscribe(orders, group="g")
    async def handle(order: dict[str, Any]) -> None:
        pass

    async def broken(*args: Any, **more: Any) -> Any:
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError):
        async with bus.serving():
            consumer = consumer_of(bus)
            if where == "subscribe":
                transport: Any = bus.transport
                transport.subscribe = broken
                await _lose_source(consumer)
            else:
                setattr(consumer.source, where, broken)
            await bus.publish(orders, {"k": "a"})
            await until(lambda: consumer.failure)
            health = bus.health()
            assert not health.live
            assert consumer.state == "failed"
    assert events["handled"] == 0


async def _lose_source(consumer: Any) -> None:
    async def lost(*args: Any) -> Any:
        raise Lost("gone")

    consumer.source.receive = lost


@virtual
async def test_handlers_run_on_over_a_lost_source_and_no_second_one_starts() -> None:
    bus, events, _ = a_bus()
    gate = asyncio.Event()
    calls: list[int] = []

    @bus.subscribe(orders, group="g", concurrency=4)
    async def handle(order: dict[str, Any]) -> None:
        calls.append(order["n"])
        if order["n"] == 0:
            await gate.wait()

    async with bus.serving():
        for n in range(3):
            await bus.publish(orders, {"k": "a", "n": n})
        await until(lambda: calls == [0])
        consumer = consumer_of(bus)
        before = consumer.source
        await _lose_source(consumer)
        await until(lambda: consumer.source not in (None, before) and len(consumer.lanes.held) == 3)
        assert calls == [0]
        gate.set()
        await until(lambda: events["handled"] == 3)
    assert calls == [0, 1, 2]
    assert events["duplicate"] == 1


@virtual
@pytest.mark.parametrize("batch", [None, Batch(2)], ids=["one by one", "in batches"])
@pytest.mark.parametrize("how", ["raised", "cancelled", "swallowed"])
async def test_a_handler_that_is_cancelled_has_failed_and_its_subscription_goes_on(
    how: str, batch: Batch | None
) -> None:
    bus, _events, letters = a_bus()
    counts: list[int] = []

    async def fail() -> None:
        task = asyncio.current_task()
        assert task is not None
        counts.append(task.cancelling())
        if how == "raised":
            raise asyncio.CancelledError
        task.cancel()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            if how == "swallowed":
                raise RuntimeError("the handler was cancelled") from None
            raise

    if batch is None:

        @bus.subscribe(orders, group="g", retry=QUICK, dead_letter=BURIED)
        async def handle(order: dict[str, Any]) -> None:
            await fail()

    else:

        @bus.subscribe(orders, group="g", retry=QUICK, dead_letter=BURIED, batch=batch)
        async def handle_batch(batch: list[dict[str, Any]]) -> None:
            await fail()

    async with bus.serving():
        await bus.publish(orders, {"k": "a"})
        await until(lambda: letters.found)
        assert bus.health().ready
    assert letters.reasons() == ["RuntimeError: the handler was cancelled"]
    assert not any(counts), "the next handler finds itself cancelled"


@virtual
async def test_at_most_once_calls_a_handler_once_whatever_happens() -> None:
    bus, events, letters = a_bus()
    calls: list[int] = []

    @bus.subscribe(loose, group="g", delivery="at_most_once", dead_letter=BURIED, concurrency=2)
    async def handle(order: dict[str, Any]) -> None:
        calls.append(order["n"])
        await asyncio.sleep(0.1)
        if order["n"] == 1:
            raise ValueError("no")
        if order["n"] == 2:
            raise RetryAfter(1)

    async with bus.serving():
        for n in range(12):
            await bus.publish(loose, {"n": n})
        await until(lambda: len(calls) >= 4)
        source: Any = consumer_of(bus, "loose").source
        assert not source.leased  # acknowledged before
        await until(lambda: len(letters.found) == 2)
    assert sorted(calls) == list(range(12))  # what was fetched is handled before the end
    assert events.seen == {"handled": 10, "dead_lettered": 2}


@virtual
async def test_at_most_once_does_not_run_again_for_its_output() -> None:
    bus, events, _ = a_bus()
    out = Topic("outputs", dict[str, Any])
    calls = 0

    @bus.subscribe(loose, group="g", delivery="at_most_once", to=out)
    async def handle(order: dict[str, Any]) -> dict[str, Any]:
        nonlocal calls
        calls += 1
        return order

    async with bus.serving():
        transport: Any = bus.transport
        real = transport.send

        async def send(batch: Any, deadline: float) -> Any:
            return [NotSent("full")] if batch[0].topic == "outputs" else await real(batch, deadline)

        transport.send = send
        await bus.publish(loose, {"n": 0})
        await until(lambda: events["dropped"] == 1)
        await asyncio.sleep(60)
        del transport.send
    assert calls == 1


@pytest.mark.parametrize("seed", range(12))
@virtual
async def test_whatever_happens_nothing_is_lost_or_overtaken(seed: int) -> None:
    draw = random.Random(seed)
    bus, events, _letters = a_bus()
    topic = draw.choice([orders, orders, loose])
    first: dict[str, list[int]] = defaultdict(list)
    done: set[int] = set()
    running: set[str] = set()
    wrong: list[int] = []

    async def one(order: dict[str, Any]) -> None:
        if order["n"] not in first[order["k"]]:
            first[order["k"]].append(order["n"])
        await asyncio.sleep(draw.choice([0, 0, 0.01, 0.3, 5.0]))
        if draw.random() < 0.15:
            raise ValueError("no")
        done.add(order["n"])

    @bus.subscribe(topic, group="g", concurrency=4, lease=3, window=60, retry=Retry(attempts=None, base=0.1, cap=2))
    async def handle(order: dict[str, Any]) -> None:
        key = order["k"]
        if topic is orders and key in running:
            wrong.append(order["n"])
        running.add(key)
        try:
            await one(order)
        finally:
            running.discard(key)

    async with bus.serving():
        consumer = consumer_of(bus, topic.name)
        faults: list[Exception] = []

        def unsteady(source: Any) -> None:
            real_receive, real_settle = source.receive, source.settle

            async def receive(limit: int, held: Any = ()) -> Any:
                if faults and draw.random() < 0.3:
                    raise faults.pop()
                return await real_receive(limit, held)

            async def settle(batch: list[Settlement]) -> Any:
                if faults and draw.random() < 0.5:
                    error = faults.pop()
                    if isinstance(error, NotSent):
                        return [error, *(await real_settle(batch[1:]))]
                    raise error
                return await real_settle(batch)

            source.receive, source.settle = receive, settle

        total, watched = 0, None
        for _ in range(60):
            source: Any = consumer.source
            if source is not None and source is not watched:
                unsteady(source)
                watched = source
            match draw.choice(["publish", "publish", "fault", "expire", "expire one"]):
                case "publish":
                    for _ in range(draw.randrange(20)):
                        await bus.publish(topic, {"k": draw.choice("abcdef"), "n": total})
                        total += 1
                case "fault":
                    faults.append(draw.choice([Unavailable("gone"), Lost("gone"), NotSent("busy")]))
                case "expire" if source is not None:
                    expire(source)
                case "expire one" if source is not None and source.leased:
                    token = draw.choice(list(source.leased))
                    next(iter(source._groups.values())).returned([source.leased.pop(token)])
            await asyncio.sleep(draw.choice([0, 0.1, 2.0]))
        faults.clear()
        await until(lambda: len(done) == total, 2000)
        await until(lambda: not consumer.lanes.held, 2000)
        assert not consumer.lanes.chains
        assert not consumer.lanes.moved
        assert consumer.lanes.bytes == 0
        assert bus.health().ready
    if topic is orders:
        for found in first.values():
            assert found == sorted(found), "overtaken"
    assert not wrong, "two of a key at once"
    assert events["retried"] > 0


@virtual
async def test_in_a_test_nothing_hangs_that_stands_still() -> None:
    from switchgear.testing import in_memory

    bus = Bus("memory://")
    calls = 0

    @bus.subscribe(orders, group="g", retry=Retry(attempts=2, base=60), dead_letter=DeadLetter(after="stop"))
    async def handle(order: dict[str, Any]) -> None:
        nonlocal calls
        calls += 1
        raise ValueError("no")

    async with in_memory(bus) as trace, bus.consumer(loose, group="h") as consumer:
        await bus.publish(orders, {"k": "a"})
        await bus.publish(loose, {"n": 1})
        await trace.idle()
        assert calls == 1
        await trace.advance(60)
        assert calls == 2
        assert len(trace.dead_letters(orders, group="g")) == 1
        assert not bus.health().ready
        await trace.advance(3600)
        assert (await anext(consumer)).body == {"n": 1}


@virtual
async def test_few_keys_and_a_quick_handler_fill_no_window() -> None:
    bus, _, _ = a_bus()
    gate = asyncio.Event()
    held: list[int] = []

    @bus.subscribe(orders, group="g")
    async def handle(order: dict[str, Any]) -> None:
        await gate.wait()
        held.append(len(consumer_of(bus, orders.name).lanes.held))

    async with bus.serving():
        for start in range(0, 9000, 1000):
            await bus.publish_many(orders, [{"k": f"k{n % 300}", "n": n} for n in range(start, start + 1000)])
        gate.set()
        await until(lambda: len(held) == 9000)
    assert max(held) <= 5 * FETCH, "what waits behind its key is enough to go on with: the rest stays on the broker"
