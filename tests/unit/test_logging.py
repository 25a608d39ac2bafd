"""Log records of messages say which in fields of their own, and show no body."""

from __future__ import annotations

import logging

import pytest

from switchgear import Bus, Retry, Topic, testing

orders = Topic("orders", str)


@pytest.mark.parametrize(("dead_letter", "text"), [(True, "failed for good"), (False, "is given up")])
async def test_records_name_topic_group_and_message(
    dead_letter: bool, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    bus = Bus("memory://", name="tests")

    @bus.subscribe(orders, group="billing", retry=Retry(attempts=2), dead_letter=dead_letter)
    async def bill(order: str) -> None:
        raise ValueError("no stock")

    with caplog.at_level(logging.INFO, "switchgear"):
        async with testing.in_memory(bus) as trace:
            id = await bus.publish(orders, "the body")
            await trace.advance(10)
    records = [r for r in caplog.records if id in r.getMessage()]
    assert any("again in" in r.getMessage() for r in records)
    assert any(text in r.getMessage() for r in records)
    for record in records:
        fields = vars(record)
        assert (fields["topic"], fields["group"], fields["message_id"]) == ("orders", "billing", id)
    assert "the body" not in caplog.text
