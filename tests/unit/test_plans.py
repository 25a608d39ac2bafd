"""A topic's plan: who comes first decides, everybody else is held to it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from switchgear.driver import Capabilities, Order, Row
from switchgear.emulate.partitions import murmur2
from switchgear.errors import ConfigurationError
from switchgear.plans import PARTITIONS, layout, resolve
from switchgear.topic import Topic
from tests.support.scripted import RowsTransport, ScriptedTransport
from tests.support.virtual import virtual


def signed(n: int) -> int:
    return n & 0x7FFFFFFF


@pytest.mark.parametrize(
    ("data", "expected"),
    [  # the vectors of Kafka's own tests, org.apache.kafka.common.utils.UtilsTest.testMurmur2
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_the_hash_is_kafkas(data: bytes, expected: int) -> None:
    assert murmur2(data) == signed(expected)


@virtual
async def test_the_first_writes_the_plan_and_a_name_alone_takes_it() -> None:
    transport = RowsTransport(order=Order.NONE)
    first = await resolve(Topic("orders", order="key", partitions=4), {}, transport, "")
    assert first.order is Order.KEY
    assert first.physical == ("orders__0", "orders__1", "orders__2", "orders__3")
    again = await resolve(Topic("orders"), {}, transport, "")
    assert again == first


@virtual
async def test_what_nobody_says_is_the_default() -> None:
    plan = await resolve(Topic("orders"), {}, RowsTransport(), "")
    assert (plan.order, plan.partitions, plan.physical) == (Order.NONE, PARTITIONS, ("orders",))


@virtual
@pytest.mark.parametrize(
    ("other", "says"),
    [
        (Topic("orders", order="none"), "order='none'"),
        (Topic("orders", order="total"), "order='total'"),
        (Topic("orders", partitions=8), "partitions=8"),
    ],
)
async def test_another_declaration_is_refused_showing_both(other: Topic[Any], says: str) -> None:
    transport = RowsTransport()
    await resolve(Topic("orders", key=str, partitions=4), {}, transport, "")
    with pytest.raises(ConfigurationError) as caught:
        await resolve(other, {}, transport, "")
    assert says in str(caught.value)
    assert "order='key', partitions=4" in str(caught.value)


@virtual
async def test_configuration_says_what_the_topic_leaves_out_and_no_more() -> None:
    configured = {"order": "key", "partitions": 2}
    plan = await resolve(Topic("orders"), configured, RowsTransport(), "")
    assert (plan.order, plan.partitions) == (Order.KEY, 2)
    plan = await resolve(Topic("orders", order="none", partitions=3), configured, RowsTransport(), "")
    assert (plan.order, plan.partitions) == (Order.NONE, 3)


@virtual
async def test_of_many_who_come_at_once_one_decides() -> None:
    rows: dict[str, Row] = {}
    transports = [RowsTransport(rows=rows) for _ in range(8)]
    topics = [Topic("orders"), *[Topic("orders", order="key", partitions=n) for n in range(1, 8)]]
    found = await asyncio.gather(
        *(resolve(topic, {}, transport, "") for topic, transport in zip(topics, transports, strict=True)),
        return_exceptions=True,
    )
    plans = [one for one in found if not isinstance(one, BaseException)]
    assert plans
    assert all(plan == plans[0] for plan in plans)
    assert all(isinstance(one, ConfigurationError) for one in found if isinstance(one, BaseException))


@virtual
async def test_looking_alone_writes_nothing() -> None:
    transport = RowsTransport()
    await resolve(Topic("orders"), {}, transport, "", write=False)
    assert transport.rows == {}


@virtual
@pytest.mark.parametrize(
    ("value", "says"),
    [
        (b"{", "unreadable"),
        (b'{"order":"sideways","partitions":4}', "unreadable"),
        (b'{"order":"key","partitions":0}', "unreadable"),
        (b'{"order":"key","partitions":4,"version":2}', "upgrade"),
        (b'{"order":"key","partitions":4,"hash":"crc32"}', "upgrade"),
    ],
)
async def test_a_stored_plan_that_is_not_understood_is_an_error(value: bytes, says: str) -> None:
    transport = RowsTransport(rows={"sg.plan.orders": Row(value, 1)})
    with pytest.raises(ConfigurationError, match=says):
        await resolve(Topic("orders"), {}, transport, "")


@virtual
async def test_without_a_registry_the_declaration_decides() -> None:
    plan = await resolve(Topic("orders", order="key"), {}, ScriptedTransport(order=Order.KEY), "t.")
    assert plan.physical == ("t.orders",)


def test_a_key_has_its_partition_and_what_has_none_goes_round() -> None:
    plan = layout("orders", Order.KEY, 4, Capabilities(), "")
    for key in (b"21", b"foobar", b"abc"):
        assert plan.place(key, 7) == f"orders__{murmur2(key) % 4}"
    assert [plan.place(None, turn) for turn in range(5)] == [
        "orders__0", "orders__1", "orders__2", "orders__3", "orders__0",
    ]  # fmt: skip


def test_total_order_is_one_lane() -> None:
    assert layout("orders", Order.TOTAL, 16, Capabilities(), "").physical == ("orders__0",)
    assert layout("orders", Order.TOTAL, 16, Capabilities(order=Order.TOTAL), "").physical == ("orders",)
