"""What a message tells of itself."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from switchgear import Message
from switchgear.driver import Outgoing
from switchgear.errors import Misuse
from tests.support.serving import a_bus, loose, orders, until
from tests.support.virtual import virtual


@virtual
async def test_its_attributes() -> None:
    bus, _, _ = a_bus()
    found: list[Message[Any]] = []

    @bus.subscribe(orders, group="g")
    async def handle(message: Message[dict[str, Any]]) -> None:
        found.append(message)

    async with bus.serving():
        id_ = await bus.publish(orders, {"k": "ä"}, headers={"colour": "grün"}, expires=60)
        await until(lambda: found)
        (m,) = found
        assert (m.id, m.topic, m.key, m.type, m.source) == (id_, "orders", "ä", "orders", "/app")
        assert m.body == {"k": "ä"}
        assert m.data == '{"k":"ä"}'.encode()
        assert m.headers == {"colour": "grün"}
        assert m.correlation_id == id_
        assert m.attempt == 1
        assert m.priority is None
        assert m.fence > 0
        assert abs((datetime.now(UTC) - m.time).total_seconds()) < 60
        assert m.expires is not None
        assert 50 < (m.expires - datetime.now(UTC)).total_seconds() < 70
        assert "ä" not in repr(m)  # no bodies in logs
        for settle in (m.ack(), m.retry(), m.reject("no")):
            with pytest.raises(Misuse, match="outcome"):
                await settle


@virtual
async def test_a_plain_message_and_one_with_malformed_attributes_can_be_read() -> None:
    bus, _, _ = a_bus()
    found: list[Message[Any]] = []

    @bus.subscribe(loose, group="g")
    async def handle(message: Message[Any]) -> None:
        found.append(message)

    async with bus.serving():
        await bus.transport.send([Outgoing(topic="loose", body=b"{}", key=b"\xff")], 1e9)
        await until(lambda: found)
        (m,) = found
        assert m.id.startswith("loose/")
        assert m.key == "\udcff"
        assert m.type == "loose"
        assert m.source == ""
        assert m.time.tzinfo is not None


def test_one_made_by_hand_has_a_body_alone() -> None:
    message: Message[int] = Message(_body=3)
    assert message.body == 3
    assert repr(message) == "Message()"
    with pytest.raises(Misuse):
        _ = message.id
