"""What retention takes unread is counted and logged, never silent."""

from __future__ import annotations

import asyncio
import logging

import pytest

from switchgear import Topic
from switchgear.testing import in_memory
from tests.support.serving import a_bus, turns

orders = Topic("orders", int, retention=60.0)


async def test_trimmed_unread(caplog: pytest.LogCaptureFixture) -> None:
    bus, events, _ = a_bus()
    handled: list[int] = []
    gate = asyncio.Event()

    @bus.subscribe(orders, group="slow", concurrency=1)
    async def handle(n: int) -> None:
        await gate.wait()
        handled.append(n)

    with caplog.at_level(logging.WARNING, "switchgear"):
        async with in_memory(bus) as trace:
            await bus.publish_many(orders, range(40))
            await turns()  # some are fetched, one is being handled
            await trace._clock.advance(61, turns)
            gate.set()
            await trace.advance(1)
    assert events["trimmed"] + events["handled"] == 40
    assert events["trimmed"]
    assert handled == list(range(len(handled))), "what was fetched is not trimmed, what waited unread is"
    assert "were trimmed before they were handled" in caplog.text
