"""Publishing through a bus: options, order, time, errors, what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from switchgear import (
    Bus,
    CodecError,
    ConfigurationError,
    MaybeSent,
    Misuse,
    NotSent,
    Refused,
    Topic,
    Unavailable,
    Unsupported,
)
from switchgear import core as module
from switchgear.driver import Order
from tests.support.scripted import RowsTransport, ScriptedTransport, after, broken, fail, hang
from tests.support.virtual import virtual


class Item(msgspec.Struct):
    n: int
    key: str = "k"


items = Topic("items", Item, key=lambda item: item.key)
plain = Topic("plain", Item)

Use = Callable[[ScriptedTransport], Bus]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Use:
    """A bus on a scripted transport."""

    def make(transport: ScriptedTransport) -> Bus:
        monkeypatch.setattr(module, "open_transport", lambda url, tuning: transport)
        return Bus("double://host", name="tests", config={})

    return make


def now() -> float:
    return asyncio.get_running_loop().time()


def header(out: Any, name: str) -> bytes | None:
    return next((value for found, value in out.headers if found == f"ce-{name}"), None)


@virtual
async def test_publish_returns_the_id_of_what_is_stored(use: Use) -> None:
    transport = ScriptedTransport(order=Order.KEY)
    async with use(transport) as bus:
        first = await bus.publish(items, Item(1))
        second = await bus.publish(items, Item(2), id="mine", key="other", headers={"tenant": "a"})
    assert transport.ids == [first, second] == [first, "mine"]
    out, other = transport.stored
    assert (out.topic, out.body, out.key, out.media) == ("items", b'{"n":1,"key":"k"}', b"k", b"application/json")
    assert header(out, "id") == first.encode()
    assert header(out, "source") == b"/tests"
    assert header(out, "type") == b"items"
    assert header(out, "partitionkey") == b"k"
    assert (other.key, header(other, "id"), ("tenant", b"a") in other.headers) == (b"other", b"mine", True)


@virtual
async def test_ids_are_unique_and_are_the_dedup_tokens(use: Use) -> None:
    transport = ScriptedTransport()
    async with use(transport) as bus:
        ids = await asyncio.gather(*(bus.publish(plain, Item(n)) for n in range(1000)))
    assert len(set(ids)) == 1000
    assert transport.ids == ids


@virtual
async def test_the_first_publishes_of_a_topic_arrive_in_call_order(use: Use) -> None:
    """The plan of the topic is asked for meanwhile; whoever comes later must not go past those who wait for it."""
    transport = RowsTransport(order=Order.KEY, send_order=True)
    bus = use(transport)
    async with bus:
        begun = [asyncio.create_task(bus.publish(items, Item(n))) for n in range(50)]
        for n in range(50, 400):
            await asyncio.sleep(0.0001)
            begun.append(asyncio.create_task(bus.publish(items, Item(n))))
        await asyncio.gather(*begun)
    assert [msgspec.json.decode(m.body or b"")["n"] for m in transport.stored] == list(range(400))


@virtual
async def test_publishes_arrive_in_call_order_over_an_outage(use: Use) -> None:
    transport = RowsTransport(order=Order.KEY, send_order=True, batch=7)
    bus = use(transport)
    async with bus:
        await bus.publish(items, Item(-1))
        transport.script = [broken(Unavailable("reset"))] * 3
        transport.connects = [Unavailable("refused")] * 3
        begun = []
        for n in range(300):
            begun.append(asyncio.create_task(bus.publish(items, Item(n))))
            await asyncio.sleep(0.01)
        await asyncio.gather(*begun)
    assert [msgspec.json.decode(m.body or b"")["n"] for m in transport.stored] == list(range(-1, 300))


@virtual
async def test_a_broker_away_at_the_start_is_unavailable_within_the_timeout(use: Use) -> None:
    transport = RowsTransport()
    transport.connects = [Unavailable("connection refused")] * 1000
    async with use(transport) as bus:
        began = now()
        with pytest.raises(Unavailable, match="cannot reach double://host: connection refused") as raised:
            await bus.publish(items, Item(1), timeout=2)
        assert isinstance(raised.value.__cause__, Unavailable)  # the transport's, and behind it the client's
        assert now() - began == pytest.approx(2.0, abs=0.1)
        assert not bus.health().ready
        assert "connection refused" in bus.health().detail["broker"]


@virtual
async def test_a_broker_that_appears_gets_what_waits(use: Use) -> None:
    transport = RowsTransport()
    transport.connects = [Unavailable("connection refused")] * 8
    async with use(transport) as bus:
        ids = await asyncio.gather(*(bus.publish(items, Item(n)) for n in range(5)))
        assert bus.health().ready
    assert transport.ids == ids


@virtual
async def test_an_outage_while_the_plan_is_asked_for_is_survived(use: Use) -> None:
    transport = RowsTransport()
    transport.errors = [Unavailable("reset"), NotSent("busy"), MaybeSent("no answer")]
    async with use(transport) as bus:
        await bus.publish(items, Item(1))
    assert len(transport.stored) == 1


@virtual
async def test_a_plan_that_is_not_told_in_time_is_not_sent(use: Use) -> None:
    class Silent(RowsTransport):
        async def read(self, prefix: str) -> Any:
            await asyncio.get_running_loop().create_future()

    async with use(Silent()) as bus:
        with pytest.raises(NotSent, match="topic 'items'"):
            await bus.publish(items, Item(1), timeout=1)


@virtual
async def test_who_declares_a_topic_wrongly_fails_alone(use: Use) -> None:
    transport = RowsTransport()
    async with use(transport) as bus:
        wrong, right = await asyncio.gather(
            bus.publish(Topic("items", order="none"), 1), bus.publish(items, Item(1)), return_exceptions=True
        )
        assert isinstance(wrong, str)
        assert isinstance(right, ConfigurationError)
        assert "order='key'" in str(right)
        assert "order='none'" in str(right)
        with pytest.raises(ConfigurationError, match="order='key'"):
            await bus.publish(items, Item(1))
        await bus.publish("items", 2)


@virtual
async def test_a_wrong_value_fails_alone_among_the_first(use: Use) -> None:
    transport = RowsTransport()
    async with use(transport) as bus:
        outcomes = await asyncio.gather(
            bus.publish(plain, object()), bus.publish(plain, Item(1)), return_exceptions=True  # type: ignore[arg-type]
        )  # fmt: skip
    assert isinstance(outcomes[0], CodecError)
    assert transport.ids == [outcomes[1]]


@virtual
async def test_a_publish_cancelled_before_the_topic_is_known_is_not_sent(use: Use) -> None:
    transport = RowsTransport()
    async with use(transport) as bus:
        first = asyncio.create_task(bus.publish(items, Item(1)))
        second = asyncio.create_task(bus.publish(items, Item(2)))
        await asyncio.sleep(0)
        first.cancel()
        await second
    assert [m.body for m in transport.stored] == [b'{"n":2,"key":"k"}']


@virtual
async def test_refused_maybe_sent_and_not_sent_are_raised_as_they_are(use: Use) -> None:
    transport = ScriptedTransport(broken(Refused("no rights")), broken(MaybeSent("reset")))
    async with use(transport) as bus:
        with pytest.raises(Refused, match="no rights"):
            await bus.publish(items, Item(1))
        with pytest.raises(MaybeSent, match="reset"):
            await bus.publish(items, Item(1), retry_indeterminate=False)
        transport.otherwise = broken(NotSent("full"))
        with pytest.raises(NotSent, match="full"):
            await bus.publish(items, Item(1), timeout=timedelta(seconds=1))


@virtual
async def test_a_wrong_password_is_raised_on_entering(use: Use) -> None:
    transport = ScriptedTransport()
    transport.connects = [Refused("wrong password")]
    bus = use(transport)
    with pytest.raises(Refused, match="wrong password"):
        async with bus:
            pytest.fail("the bus opened")
    assert transport.closed == 1
    assert not bus.health().ready


@virtual
async def test_a_password_that_becomes_wrong_shows_at_once_and_is_raised_at_the_exit(use: Use) -> None:
    transport = ScriptedTransport(broken(Unavailable("reset")))
    transport.connects = [None, Refused("wrong password")]
    bus = use(transport)
    with pytest.raises(Refused, match="wrong password"):
        async with bus:
            with pytest.raises(Refused, match="wrong password"):
                await bus.publish(items, Item(1))
            health = bus.health()
            assert not health.live
            assert not health.ready
            assert "wrong password" in health.detail["broker"]


@virtual
async def test_the_error_of_the_body_goes_before_that_of_the_connection(use: Use) -> None:
    transport = ScriptedTransport(broken(Unavailable("reset")))
    transport.connects = [None, Refused("wrong password")]
    with pytest.raises(ZeroDivisionError):
        async with use(transport) as bus:
            with pytest.raises(Refused):
                await bus.publish(items, Item(1))
            _ = 1 / 0


@virtual
async def test_publish_many_returns_ids_in_order_and_keeps_the_order_of_keys(use: Use) -> None:
    transport = ScriptedTransport(order=Order.KEY, send_order=True)
    async with use(transport) as bus:
        ids = await bus.publish_many(items, [Item(n) for n in range(2500)], id=lambda item: f"id{item.n}")
    assert ids == [f"id{n}" for n in range(2500)] == transport.ids


@virtual
async def test_publish_many_tries_all_and_then_says_what_failed(use: Use) -> None:
    transport = ScriptedTransport(fail(None, Refused("too large"), None))
    bus = use(transport)
    async with bus:
        with pytest.raises(ExceptionGroup, match="1 of 3 messages were not published") as caught:
            await bus.publish_many(plain, [Item(n) for n in range(3)])
        assert [str(error) for error in caught.value.exceptions] == ["too large"]
        transport.script = [fail(None, Refused("too large"), None)]
        found = await bus.publish_many(plain, [Item(n) for n in range(3)], return_exceptions=True)
        assert [type(one) for one in found] == [str, Refused, str]
    assert len(transport.stored) == 4


@virtual
async def test_publish_many_raises_what_is_no_transport_error_after_trying_all(use: Use) -> None:
    transport = ScriptedTransport()
    async with use(transport) as bus:
        values: list[Any] = [Item(0), object(), Item(2)]
        with pytest.raises(ExceptionGroup) as caught:
            await bus.publish_many(plain, values, return_exceptions=True)
        assert [type(error) for error in caught.value.exceptions] == [CodecError]
    assert len(transport.stored) == 2


@virtual
async def test_publish_many_of_a_failing_iterator_leaves_nothing_behind(use: Use) -> None:
    def values() -> Iterator[Item]:
        yield Item(0)
        raise RuntimeError("the source broke")

    transport = ScriptedTransport(otherwise=broken(Refused("no")))
    async with use(transport) as bus:
        with pytest.raises(RuntimeError, match="the source broke"):
            await bus.publish_many(plain, values())


@virtual
async def test_publish_many_cancelled_sends_no_more(use: Use) -> None:
    transport = ScriptedTransport(after(1.0), batch=10)
    async with use(transport) as bus:
        task = asyncio.create_task(bus.publish_many(plain, [Item(n) for n in range(100)]))
        await asyncio.sleep(0.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(5)
    assert len(transport.stored) == 10


@virtual
async def test_publish_many_of_nothing(use: Use) -> None:
    async with use(ScriptedTransport()) as bus:
        assert await bus.publish_many(items, []) == []


@virtual
async def test_observers_are_told_of_what_is_stored_alone(use: Use) -> None:
    class Counter:
        def __init__(self) -> None:
            self.seen: list[tuple[str, str, str | None, int]] = []

        def count(self, event: str, topic: str, group: str | None, n: int) -> None:
            self.seen.append((event, topic, group, n))

    counter = Counter()
    transport = ScriptedTransport(broken(Refused("no")), fail(None, Refused("no")))
    bus = use(transport)
    bus._observers = (counter,)
    async with bus:
        with pytest.raises(Refused):
            await bus.publish(plain, Item(1))
        await bus.publish_many(plain, [Item(1), Item(2)], return_exceptions=True)
        await bus.publish(plain, Item(3), key="k")
    assert counter.seen == [("published", "plain", None, 1)] * 2


# ---- closed, elsewhere, cut short -----------------------------------------------------------------------------------


@virtual
async def test_a_bus_that_is_not_open_or_closed_says_so(use: Use) -> None:
    bus = use(ScriptedTransport())
    for call in (
        lambda: bus.publish(items, Item(1)),
        lambda: bus.publish_many(items, [Item(1)]),
        lambda: bus.request(items, Item(1), dict),
        lambda: bus.cancel(items, "id"),
    ):
        with pytest.raises(Misuse, match="not open"):
            await call()  # type: ignore[no-untyped-call]
    async with bus:
        await bus.publish(items, Item(1))
    with pytest.raises(Misuse, match="closed"):
        await bus.publish(items, Item(1))
    await bus.close()
    await bus.close()
    assert not bus.health().live


@virtual
async def test_a_publish_while_the_bus_closes_ends_one_way_or_the_other(use: Use) -> None:
    transport = ScriptedTransport(otherwise=after(1.0))
    bus = use(transport)
    async with bus:
        await bus.publish(items, Item(0))
        first = asyncio.create_task(bus.publish(items, Item(1)))
        await asyncio.sleep(0)
        closing = asyncio.create_task(bus.close())
        await asyncio.sleep(0.5)
        with pytest.raises(Misuse, match="closed"):
            await bus.publish(items, Item(2))
        with pytest.raises(Misuse, match="closed"):
            await bus.publish(Topic("another"), 2)
        await closing
        assert await first
    assert len(transport.stored) == 2


@virtual
async def test_closing_flushes_what_waits_for_its_topic_too(use: Use) -> None:
    transport = RowsTransport(otherwise=after(1.0))
    transport.connects = [Unavailable("refused")] * 7
    async with use(transport) as bus:
        publishing = [asyncio.create_task(bus.publish(items, Item(n))) for n in range(3)]
        given_up = asyncio.create_task(bus.publish(Topic("another"), 1))
        await asyncio.sleep(0)
        given_up.cancel()
    assert transport.ids == [task.result() for task in publishing]


@virtual
async def test_closing_while_a_topic_is_asked_for_tells_who_waits(use: Use) -> None:
    transport = RowsTransport()
    transport.connects = [Unavailable("refused")] * 1000
    bus = use(transport)
    async with bus:
        publishing = asyncio.create_task(bus.publish(items, Item(1)))
        await asyncio.sleep(1)
        await bus.close()
        with pytest.raises((Misuse, Unavailable), match="closed"):
            await publishing


@virtual
async def test_who_opens_while_another_closes_waits_and_opens_anew(use: Use) -> None:
    transport = ScriptedTransport(otherwise=after(5.0))
    bus = use(transport)
    await bus.__aenter__()
    publishing = asyncio.create_task(bus.publish(plain, Item(1)))
    await asyncio.sleep(0.1)
    closing = asyncio.create_task(bus.close())
    await asyncio.sleep(0.1)
    async with bus:
        assert (publishing.done(), transport.closed) == (True, 1)
        await bus.publish(plain, Item(2))
    await closing
    assert (len(transport.stored), transport.closed) == (2, 2)


@virtual
async def test_the_grace_bounds_the_flush_and_then_the_truth_is_told(use: Use) -> None:
    transport = ScriptedTransport(otherwise=hang)
    bus = use(transport)
    bus._code["grace"] = 3.0
    async with bus:
        publishing = asyncio.create_task(bus.publish(items, Item(1)))
        await asyncio.sleep(0.1)
        began = now()
    assert now() - began == pytest.approx(3.0, abs=0.5)
    with pytest.raises(MaybeSent):
        await publishing
    assert transport.closed == 1


def test_another_event_loop_is_misuse() -> None:
    bus = Bus("memory://", config={})
    loops = [asyncio.new_event_loop() for _ in range(2)]
    loops[0].run_until_complete(bus.__aenter__())
    for call in (
        lambda: bus.publish(items, Item(1)),
        lambda: bus.publish_many(items, [Item(1)]),
        bus.__aenter__,
        lambda: bus.serving().__aenter__(),
        bus.close,
    ):
        with pytest.raises(Misuse, match="another event loop"):
            loops[1].run_until_complete(call())
    loops[0].run_until_complete(bus.publish(items, Item(1)))
    loops[0].run_until_complete(bus.close())
    for loop in loops:
        loop.close()


@virtual
async def test_closing_cut_short_still_closes_the_transport(use: Use) -> None:
    transport = ScriptedTransport(otherwise=hang)
    bus = use(transport)
    await bus.__aenter__()
    publishing = asyncio.create_task(bus.publish(items, Item(1)))
    await asyncio.sleep(0.1)
    closing = asyncio.create_task(bus.close())
    await asyncio.sleep(0.1)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    with pytest.raises(MaybeSent):
        await publishing
    await bus.close()
    assert transport.closed == 1


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"headres": {}}, ConfigurationError, "did you mean 'headers'"),
        ({"key": 5}, CodecError, "key is int, expected str"),
        ({"key": "a\r\nb"}, Refused, "control character"),
        ({"id": "a\nb"}, Refused, "control character"),
        ({"id": 7}, ConfigurationError, "id is 7, expected a text"),
        ({"id": ""}, ConfigurationError, "id is .., expected a text that is not empty"),
        ({"headers": {"x": "a\r\nb"}}, Refused, "control character"),
        ({"headers": {"x": 5}}, Refused, "int, not str"),
        ({"headers": {"": "x"}}, Refused, "no token"),
        ({"headers": {"ce-id": "x"}}, Refused, "reserved"),
        ({"headers": "tenant=a"}, ConfigurationError, "headers= expects a mapping"),
        ({"timeout": "5"}, ConfigurationError, "expected seconds"),
        ({"timeout": float("nan")}, ConfigurationError, "expected seconds"),
        ({"delay": datetime(2030, 1, 1)}, ConfigurationError, "time zone"),  # noqa: DTZ001
        ({"delay": 60}, Unsupported, "delays messages by up to 0 s"),
        ({"expires": "soon"}, ConfigurationError, "expected seconds"),
        ({"priority": "high"}, Unsupported, "priority="),
    ],
)
@virtual
async def test_wrong_options(use: Use, options: dict[str, Any], error: type[Exception], says: str) -> None:
    transport = ScriptedTransport(groups=False)
    async with use(transport) as bus:
        with pytest.raises(error, match=says):
            await bus.publish(items, Item(1), **options)
    assert transport.stored == []


@pytest.mark.parametrize(
    ("topic", "value", "error", "says"),
    [
        (items, Item(1, "a\r\nb"), Refused, "control character"),
        (Topic("items", dict, key=lambda d: d["missing"]), {}, CodecError, "key= failed for the value: KeyError"),
        (Topic("items", dict, key=lambda d: 5), {}, CodecError, "key= returned int"),
        (plain, object(), CodecError, "object"),
        (Topic("items", str), "x" * 1_000_001, Refused, "1000003 bytes"),
        (Topic("items", Item | None, key=lambda item: item.key), None, Unsupported, "tombstone"),  # type: ignore[union-attr]
        (Topic("items", priorities=("high", "low")), 1, Unsupported, "priorities="),
        ("x", 1, ConfigurationError, "outside the grammar"),
        ("sg.dlq.orders.g", 1, ConfigurationError, "reserved"),
        (5, 1, ConfigurationError, "expected a Topic"),
    ],
)
@virtual
async def test_wrong_values_and_topics(use: Use, topic: Any, value: Any, error: type[Exception], says: str) -> None:
    transport = ScriptedTransport()
    async with use(transport) as bus:
        with pytest.raises(error, match=says):
            await bus.publish(topic, value)
    assert transport.stored == []


@virtual
async def test_expiry_travels_and_is_marked(use: Use) -> None:
    transport = ScriptedTransport()
    until = datetime(2100, 1, 1, tzinfo=UTC)
    async with use(transport) as bus:
        await bus.publish(items, Item(1), expires=until)
    (out,) = transport.stored
    assert out.marked
    assert out.expires == until.timestamp()
    assert (header(out, "expirytime") or b"").startswith(b"2100-01-01T00:00:00")


@virtual
async def test_a_plain_topic_carries_nothing_of_ours(use: Use) -> None:
    transport = ScriptedTransport()
    async with use(transport) as bus:
        topic = Topic("items", Item, envelope="none")
        await bus.publish(topic, Item(1))
        await bus.publish(topic, Item(1), headers={"x": "y"}, id="mine")
        with pytest.raises(ConfigurationError, match="envelope='cloudevents'"):
            await bus.request(topic, Item(1), dict)
    assert [m.headers for m in transport.stored] == [[], [("x", b"y")]]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"name": "two words"}, "name is 'two words'"),
        ({"name": ""}, "name is ''"),
        ({"provision": "maybe"}, "provision is 'maybe'"),
        ({"grace": "long"}, "expected seconds"),
        ({"url": 5}, "the URL is int"),
        ({"tuning": ["fast"]}, "tuning holds 'fast'"),
    ],
)
def test_wrong_arguments_of_a_bus(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        Bus(**{"url": "memory://", **arguments})


@virtual
async def test_cancelling_a_delayed_message_where_the_broker_cannot(use: Use) -> None:
    async with use(ScriptedTransport()) as bus:
        with pytest.raises(Unsupported, match="double:// cannot take back"):
            await bus.cancel(items, "id")
