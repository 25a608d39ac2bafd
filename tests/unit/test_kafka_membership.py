"""Until when a member of a Kafka group may rely on its partitions."""

from __future__ import annotations

import asyncio
import math
import time
from types import SimpleNamespace
from typing import Any

import pytest

from switchgear_kafka.membership import Tenure, tenable


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The time, in `now`."""
    there = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(time, "monotonic", lambda: there.now)
    return there


def test_nothing_is_proven_at_the_beginning(clock: SimpleNamespace) -> None:
    tenure = Tenure(3.0)
    tenure.awake()
    assert tenure.over
    assert tenure.until == -math.inf


def test_an_answer_counts_from_when_it_was_asked_for(clock: SimpleNamespace) -> None:
    tenure = Tenure(3.0)
    tenure.proven(clock.now - 1.0)
    assert tenure.until == clock.now + 2.0
    tenure.proven(clock.now - 2.0)  # an older one takes nothing back
    assert tenure.until == clock.now + 2.0
    clock.now += 2.0
    assert not tenure.over
    clock.now += 0.001
    assert tenure.over


def test_who_is_awake_stays_a_member_and_who_stood_still_has_to_prove_it(clock: SimpleNamespace) -> None:
    tenure = Tenure(3.0)
    tenure.proven(clock.now)
    for _ in range(10):
        clock.now += 2.9
        tenure.awake()
        assert tenure.until == clock.now + 3.0
    clock.now += 3.1
    tenure.awake()
    tenure.awake()
    assert tenure.over
    tenure.proven(clock.now)
    assert not tenure.over


def test_a_rebalance_may_end_before_a_session() -> None:
    assert tenable(30.0, 10.0) == 10.0
    assert tenable(3.0, 10.0) == 3.0


# ---- aiokafka -------------------------------------------------------------------------------------------------------


class Coordinator:
    """What answers heartbeats: True, False, by an error, or never."""

    def __init__(self) -> None:
        self.answer: bool | Exception | None = True
        self.beats = 0
        self._rejoin_needed_fut: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def _do_heartbeat(self) -> bool:
        self.beats += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        if self.answer is None:
            await asyncio.Event().wait()
        return bool(self.answer)


def heartbeats() -> tuple[Any, Coordinator, Tenure]:
    pytest.importorskip("aiokafka")
    from switchgear_kafka.heartbeats import Heartbeats

    coordinator, tenure = Coordinator(), Tenure(3.0)
    consumer: Any = SimpleNamespace(_coordinator=coordinator, _client=SimpleNamespace(_conns={}))
    return Heartbeats(consumer, tenure), coordinator, tenure


async def test_answered_heartbeats_prove_it(clock: SimpleNamespace) -> None:
    beats, coordinator, tenure = heartbeats()
    await beats.begin(1.0)
    assert tenure.until == clock.now + 3.0
    clock.now += 5.0
    assert tenure.over
    await coordinator._do_heartbeat()  # one of the client's own
    assert tenure.until == clock.now + 3.0
    await beats.begin(1.0)  # of the next generation: it is listened to once
    assert coordinator.beats == 3


async def test_a_refused_heartbeat_proves_nothing(clock: SimpleNamespace) -> None:
    beats, coordinator, tenure = heartbeats()
    coordinator.answer = False
    await beats.begin(1.0)
    assert tenure.over


async def test_while_the_group_rebalances_an_answer_proves_nothing(clock: SimpleNamespace) -> None:
    """The client takes "a rebalance is under way" for a good answer."""
    beats, coordinator, tenure = heartbeats()
    coordinator._rejoin_needed_fut.set_result(None)
    await beats.begin(1.0)
    assert tenure.over


async def test_an_error_ends_no_heartbeats_but_a_missing_right_does(clock: SimpleNamespace) -> None:
    """The client would send no other, and nobody could tell that from a broker that is away."""
    beats, coordinator, tenure = heartbeats()
    from aiokafka import errors as kafka

    closed: list[int] = []
    conn = SimpleNamespace(close=lambda: closed.append(1))
    beats._consumer._client._conns["coordinator"] = conn
    coordinator.answer = kafka.KafkaError("IllegalSaslState")
    await beats.begin(1.0)
    assert tenure.over
    assert closed == [1], "what was refused on this connection would be refused again"
    coordinator.answer = kafka.GroupAuthorizationFailedError()
    with pytest.raises(kafka.GroupAuthorizationFailedError):
        await beats.begin(1.0)


async def test_no_answer_keeps_nobody_waiting() -> None:
    beats, coordinator, tenure = heartbeats()
    coordinator.answer = None
    async with asyncio.timeout(5):
        await beats.begin(0.01)
    assert tenure.over
