"""A transaction of output and acknowledgement: what it does with each answer of the transport."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from switchgear import Bus, Lost, Topic, Unsupported
from switchgear.clock import LoopClock
from switchgear.driver import Delivery, Order, Outgoing, Settlement, Subscription, Verdict
from switchgear.errors import MaybeSent, NotSent, Refused, TransportError, Unavailable
from switchgear.guarantees import explain, negotiate
from switchgear.lanes import Lanes
from switchgear.plans import Plan
from switchgear.settings import Settings
from switchgear.transacting import Outputs, Transaction
from tests.support.scripted import ScriptedTransport
from tests.support.serving import fresh
from tests.support.virtual import virtual

ACK = Verdict.ACK


class Broker:
    """A source and its transactions."""

    def __init__(self, *answers: TransportError) -> None:
        self.answers = list(answers)
        self.lost: set[int] = set()
        self.calls: list[tuple[list[object], list[str]]] = []
        self.plain: list[tuple[object, Verdict]] = []

    async def commit(self, source: Any, settled: Sequence[Settlement], produced: Sequence[Outgoing], _: float) -> None:
        if self.answers:
            raise self.answers.pop(0)
        tokens: list[object] = [s.delivery.token for s in settled]
        if not self.lost.isdisjoint(tokens):
            raise Lost("somebody else's")
        self.calls.append((tokens, [m.topic for m in produced]))

    async def settle(self, batch: Sequence[Settlement]) -> Sequence[TransportError | None]:
        self.plain += [(s.delivery.token, s.verdict) for s in batch]
        return [None] * len(batch)


def some(broker: Broker, *numbers: int, keys: int = 0) -> tuple[Transaction, list[Settlement], list[Outgoing]]:
    """A transaction; deliveries each of which led to a message; what transactions say that they stored."""
    outputs, lanes, stored = Outputs(), Lanes(Order.KEY if keys else Order.NONE), list[Outgoing]()
    batch: list[Settlement] = []
    for n in numbers:
        key = b"%d" % (n % keys) if keys else None
        d = Delivery(topic="t", body=b"", media=None, key=key, lane="", token=n, deliveries=1)
        outputs.put(d, Outgoing(f"out{n}", b""))
        batch.append(Settlement(d, ACK))
    return Transaction(broker, broker, outputs, lanes, LoopClock(), stored.extend), batch, stored  # type: ignore[arg-type]


@virtual
async def test_output_leaves_with_its_acknowledgement_and_once() -> None:
    broker = Broker()
    transaction, batch, stored = some(broker, 1, 2)
    assert await transaction.settle(batch) == [None, None]
    assert broker.calls == [([1, 2], ["out1", "out2"])]
    assert [m.topic for m in stored] == ["out1", "out2"]
    assert await transaction.settle(batch) == [None, None]
    assert broker.plain == [(1, ACK), (2, ACK)]  # nothing is left to be stored


@virtual
async def test_a_message_that_is_given_back_has_no_output() -> None:
    broker = Broker()
    transaction, batch, _ = some(broker, 1)
    batch[0].verdict = Verdict.RELEASE
    await transaction.settle(batch)
    assert broker.calls == []
    assert broker.plain == [(1, Verdict.RELEASE)]


@virtual
async def test_what_is_lost_keeps_nothing_else_from_being_stored() -> None:
    broker = Broker()
    broker.lost = {3}
    transaction, batch, stored = some(broker, 1, 2, 3, 4, 5)
    outcomes = await transaction.settle(batch)
    assert [type(o).__name__ for o in outcomes] == ["NoneType", "NoneType", "Lost", "NoneType", "NoneType"]
    assert [m.topic for m in stored] == ["out1", "out2", "out4", "out5"]


@virtual
async def test_what_follows_a_lost_message_in_its_key_goes_back() -> None:
    broker = Broker()
    broker.lost = {1}
    transaction, batch, stored = some(broker, 1, 2, 3, 4, keys=2)
    outcomes = await transaction.settle(batch)
    assert [type(o).__name__ for o in outcomes] == ["Lost", "NoneType", "Lost", "NoneType"]
    assert broker.plain == [(3, Verdict.RELEASE)]
    assert [m.topic for m in stored] == ["out2", "out4"]


@pytest.mark.parametrize("error", [MaybeSent("no answer"), Refused("no rights"), ZeroDivisionError()])
@virtual
async def test_after_an_unknown_outcome_nothing_more_is_done(error: Any) -> None:
    broker = Broker(error)
    transaction, batch, stored = some(broker, 1, 2)
    with pytest.raises((Lost, Refused, ZeroDivisionError)):
        await transaction.settle(batch)
    with pytest.raises(Lost, match="not known"):
        await transaction.settle(batch)
    assert (broker.calls, broker.plain, stored) == ([], [], [])


@virtual
async def test_what_was_certainly_not_stored_is_tried_again() -> None:
    broker = Broker(NotSent("full"), NotSent("full"))
    transaction, batch, _ = some(broker, 1)
    assert await transaction.settle(batch) == [None]
    assert len(broker.calls) == 1
    broker = Broker(Unavailable("away"))
    transaction, batch, _ = some(broker, 1)
    with pytest.raises(Unavailable):
        await transaction.settle(batch)
    assert await transaction.settle(batch) == [None]


@virtual
async def test_output_of_a_run_that_was_lost_is_not_that_of_the_next() -> None:
    broker = Broker()
    transaction, batch, _ = some(broker, 1, 2)
    transaction.outputs.arrived([batch[0].delivery, batch[1].delivery], held={2})
    assert transaction.outputs.of(batch[0].delivery) is None
    assert transaction.outputs.of(batch[1].delivery) is not None
    transaction.outputs.keep((), most=0)
    assert transaction.outputs.of(batch[1].delivery) is None


# ---- what is asked


@virtual
async def test_it_is_native_where_there_are_transactions() -> None:
    bus = Bus("memory://", name="tests", config={})

    @bus.subscribe(Topic("orders", str), group="billing", delivery="exactly_once")
    async def bill(order: str) -> None: ...

    found = await explain(bus)
    (need,) = [need for need in found.needs if need.need == "delivery"]
    assert (need.asked, need.how) == ("exactly_once", "native")


@pytest.mark.parametrize(("delivery", "told"), [("exactly_once", True), ("at_least_once", False)])
@virtual
async def test_a_driver_is_told_that_it_will_have_to_commit(delivery: Any, told: bool) -> None:
    bus, seen = Bus(fresh(), name="app", config={}), list[bool]()

    @bus.subscribe(Topic("mails", str), group="sender", delivery=delivery)
    async def handle(mail: str) -> None: ...

    async with bus:
        transport: Any = bus.transport
        subscribe = transport.subscribe

        async def watched(subscription: Subscription, revoked: Any) -> Any:
            seen.append(subscription.transacts)
            return await subscribe(subscription, revoked)

        transport.subscribe = watched
        async with bus.serving():
            assert seen == [told]


@virtual
async def test_broadcast_is_refused() -> None:
    bus = Bus("memory://", name="tests", config={})

    @bus.subscribe(Topic("orders", str), group=None, dead_letter=False, delivery="exactly_once")
    async def bill(order: str) -> None: ...

    with pytest.raises(Unsupported, match="give a group"):
        async with bus.serving():
            pytest.fail("it serves")


class Advised(ScriptedTransport):
    def advice(self, need: str) -> str:
        return "open it with ?client=other" if need == "exactly_once" else ""


@pytest.mark.parametrize(("kind", "says"), [(ScriptedTransport, "use at_least_once"), (Advised, "?client=other")])
@virtual
async def test_without_transactions_it_is_refused_with_what_the_transport_advises(kind: Any, says: str) -> None:
    plan = Plan("orders", Order.NONE, 1, ("orders",))
    settings = Settings(delivery="exactly_once")
    needs = negotiate(Topic("orders", str), "g", settings, {}, plan, kind(), "log", Order.NONE)
    (need,) = [need for need in needs if need.need == "delivery"]
    assert need.how == "refused"
    assert says in need.detail
