"""What is asked and cannot be given is refused at the start, by name, and never ignored."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest

from switchgear import Breaker, Bus, ConfigurationError, DeadLetter, Rate, Topic, Unavailable, Unsupported
from switchgear import core as core_module
from switchgear.driver import Capabilities, Order
from switchgear.guarantees import explain, negotiate
from switchgear.plans import Plan
from switchgear.settings import Settings
from switchgear.testing import Faults, in_memory
from switchgear_kafka import KafkaTuning
from switchgear_memory import MemoryTuning
from tests.support.scripted import RowsTransport, ScriptedTransport
from tests.support.virtual import virtual

orders = Topic("orders", dict)


class Marks:
    """An inbox."""

    async def claim(self, id: str, lease: float) -> bool:
        return True

    async def complete(self, id: str) -> None: ...

    async def release(self, id: str) -> None: ...


def bus_with(topic: Any = orders, group: str | None = "billing", config: Any = None, **knobs: Any) -> Bus:
    bus = Bus("memory://", name="tests", config=config or {})

    @bus.subscribe(topic, group=group, **knobs)
    async def handle(order: dict[str, int]) -> None: ...

    return bus


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"breaker": Breaker()}, "breaker"),
        ({"rate": Rate(10)}, "rate"),
        ({"inbox": Marks()}, "inbox"),
        ({"delivery": "exactly_once", "dead_letter": DeadLetter(after="stop")}, "after='stop'"),
        ({"tuning": [MemoryTuning()]}, "tuning"),
    ],
)
@virtual
async def test_a_knob_without_machinery_is_refused_by_name(knobs: dict[str, Any], says: str) -> None:
    with pytest.raises(Unsupported) as caught:
        async with bus_with(**knobs).serving():
            pytest.fail("it serves")
    assert "orders → billing" in str(caught.value)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"rate": {"limit": 10}}, "rate"),
        ({"breaker": {"ratio": 0.1}}, "breaker"),
        ({"delivery": "exactly_once", "dead_letter": {"after": "stop"}}, "exactly_once"),
    ],
)
@virtual
async def test_so_it_is_from_the_configuration_file(section: dict[str, Any], says: str) -> None:
    bus = bus_with(config={"subscriptions": {"orders.billing": section}})
    with pytest.raises(Unsupported, match=says):
        async with bus.serving():
            pytest.fail("it serves")


@virtual
async def test_priorities_are_refused_for_who_reads_and_who_writes() -> None:
    topic = Topic("orders", dict, priorities=("high", "low"))
    with pytest.raises(Unsupported, match="priorities="):
        async with bus_with(topic).serving():
            pytest.fail("it serves")
    async with Bus("memory://", config={}) as bus:
        with pytest.raises(Unsupported, match="priorities="):
            await bus.publish(topic, {})
        with pytest.raises(Unsupported, match="priority="):
            await bus.publish(orders, {}, priority="high")


def test_faults_are_refused() -> None:
    with pytest.raises(Unsupported, match="faults"):
        in_memory(Bus("memory://", config={}), faults=Faults(drop=0.1))


@virtual
async def test_all_that_is_refused_is_said_at_once() -> None:
    with pytest.raises(Unsupported) as caught:
        async with bus_with(rate=Rate(1), breaker=Breaker(), inbox=Marks()).serving():
            pytest.fail("it serves")
    assert all(knob in str(caught.value) for knob in ("rate", "breaker", "inbox"))


@virtual
async def test_tuning_of_another_transport_is_ignored() -> None:
    async with bus_with(tuning=[KafkaTuning(linger=0.1)]).serving():
        pass


@pytest.mark.parametrize(
    "knobs", [{"dead_letter": True}, {"dead_letter": DeadLetter()}, {"inbox": Marks()}, {"order": "key"}]
)
@virtual
async def test_broadcast_refuses_what_members_would_have_to_share(knobs: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="group=None"):
        async with bus_with(Topic("orders", dict, order="key"), group=None, **knobs).serving():
            pytest.fail("it serves")


@virtual
async def test_after_needs_order() -> None:
    with pytest.raises(Unsupported, match="after="):
        async with bus_with(dead_letter=DeadLetter(after="park")).serving():
            pytest.fail("it serves")


def refusals(transport: ScriptedTransport, order: Order = Order.NONE, group: str | None = "g", **knobs: Any) -> str:
    plan = Plan("orders", order, 4, ("orders",))
    needs = negotiate(orders, group, Settings(**knobs), {}, plan, transport, "double", order)
    return "; ".join(f"{n.need}: {n.detail}" for n in needs if n.how == "refused")


def test_what_a_transport_cannot_do_is_refused_naming_it_and_what_to_change() -> None:
    weak = ScriptedTransport(groups=False, broadcast=False, lease_cap=10.0)
    assert refusals(weak) == (
        "group: double:// has no groups; use group=None; lease: double:// leases up to 10 s; lower lease="
    )
    assert "double:// has no broadcast; give a group" in refusals(weak, group=None)
    assert "double:// keeps no order and no leases" in refusals(ScriptedTransport(), order=Order.KEY)
    assert "can start at: new" in refusals(ScriptedTransport(), start="earliest")
    assert "can start at: new" in refusals(ScriptedTransport(), start=datetime(2030, 1, 1, tzinfo=UTC).timestamp())
    assert "keeps no registry rows" in refusals(
        ScriptedTransport(order=Order.KEY), order=Order.KEY, dead_letter=DeadLetter(after="park")
    )


def test_what_is_given_is_native_or_emulated() -> None:
    assert refusals(ScriptedTransport(order=Order.KEY), order=Order.KEY) == ""
    assert refusals(RowsTransport(), order=Order.KEY) == ""
    assert refusals(ScriptedTransport(starts=frozenset({"new", "earliest", "time"})), start="earliest") == ""
    with ThreadPoolExecutor() as pool:
        assert refusals(ScriptedTransport(), executor=pool) == ""


@virtual
async def test_explain_shows_needs_names_and_origins_and_touches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    transport = RowsTransport()
    monkeypatch.setattr(core_module, "open_transport", lambda url, tuning: transport)
    bus = Bus(
        "double://user:hunter2@host", name="tests", namespace="t.", config={
            "topics": {"orders": {"retention": 60}},
            "subscriptions": {"orders.billing": {"concurrency": 3}},
        },
    )  # fmt: skip

    @bus.subscribe(Topic("orders", dict, key=str, partitions=2), group="billing", lease=5, rate=Rate(1))
    async def handle(order: dict[str, int]) -> None: ...

    found = await explain(bus)
    assert {n.need: n.how for n in found.needs}["order"] == "emulated"
    assert {n.need: n.how for n in found.needs}["rate"] == "refused"
    assert ("orders", "t.orders__1", "topic") in found.names
    assert ("billing", "t.billing", "group") in found.names
    assert ("orders.billing", "t.sg.dlq.orders.billing", "dead letters") in found.names
    settings = {path: (value, origin) for path, value, origin in found.settings}
    assert settings["url"] == ("double://user:***@host", "code")
    assert settings['topics."orders".partitions'] == (2, "code")
    assert settings['topics."orders".retention'] == (60.0, "config= [topics.orders]")
    assert settings['subscriptions."orders.billing".concurrency'][0] == 3
    assert "config" in settings['subscriptions."orders.billing".concurrency'][1]
    assert settings['subscriptions."orders.billing".lease'] == (5.0, "code")
    assert settings['subscriptions."orders.billing".window'] == (5000, "default")
    assert transport.rows == {}
    assert transport.stored == []
    assert transport.closed == 1


@virtual
async def test_explain_tells_the_stored_plan_from_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    transport = RowsTransport()
    monkeypatch.setattr(core_module, "open_transport", lambda url, tuning: transport)
    publisher = Bus("double://host", config={})
    async with publisher:
        await publisher.publish(Topic("orders", dict, key=str, partitions=2), {})
    bus = Bus("double://host", config={})
    for topic in ("orders", "returns"):
        bus.subscribe(topic, group="billing")(ignore)
    settings = {path: (value, origin) for path, value, origin in (await explain(bus)).settings}
    assert settings['topics."orders".order'] == ("key", "stored plan")
    assert settings['topics."orders".partitions'] == (2, "stored plan")
    assert settings['topics."returns".order'] == ("none", "default")
    assert settings['topics."returns".partitions'] == (16, "default")


async def ignore(order: dict[str, int]) -> None: ...


@virtual
async def test_explain_of_a_broker_that_is_away_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    transport = RowsTransport()
    transport.connects = [Unavailable("refused")] * 100
    monkeypatch.setattr(core_module, "open_transport", lambda url, tuning: transport)
    with pytest.raises(Unavailable, match="cannot reach double://host: refused"):
        await explain(Bus("double://host", config={}))


def test_capabilities_begin_with_the_weakest() -> None:
    weakest = Capabilities()
    assert (weakest.order, weakest.groups, weakest.persistent, weakest.dedup) == (Order.NONE, False, False, None)
