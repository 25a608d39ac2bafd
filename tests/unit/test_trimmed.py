"""What retention takes unread is counted and logged, never silent. In real time: retention goes by the wall clock."""

from __future__ import annotations

import asyncio
import logging

import pytest

from switchgear import Topic
from tests.support.serving import a_bus, until

orders = Topic("orders", int, retention=0.05)


async def test_trimmed_unread(caplog: pytest.LogCaptureFixture) -> None:
    bus, events, _ = a_bus()
    handled: list[int] = []

    @bus.subscribe(orders, group="slow", concurrency=1)
    async def handle(n: int) -> None:
        await asyncio.sleep(0.02)
        handled.append(n)

    with caplog.at_level(logging.WARNING, "switchgear"):
        async with bus.serving():
            await bus.publish_many(orders, range(40))
            await until(lambda: events["trimmed"] and events["trimmed"] + events["handled"] == 40, 20)
    assert handled == list(range(len(handled))), "what was fetched is not trimmed, what waited unread is"
    assert "were trimmed before they were handled" in caplog.text
