"""Keeping connected: what is tried again, how often, and what is not."""

from __future__ import annotations

import asyncio

import pytest

from switchgear.errors import ConfigurationError, Refused, Unavailable
from switchgear.supervision import Link, again
from tests.support.scripted import ScriptedTransport
from tests.support.virtual import virtual


@virtual
async def test_a_broker_that_is_away_is_tried_until_it_is_there() -> None:
    transport = ScriptedTransport()
    transport.connects = [Unavailable("refused")] * 8
    link = Link(transport, "double://")
    link.start()
    await link.wait()
    assert link.up
    assert link.error is None
    assert transport.connected == 9
    assert 5 < asyncio.get_running_loop().time() - 1000 < 60, "with growing pauses"
    await link.close()


@virtual
async def test_a_connect_that_hangs_is_given_up_and_tried_again() -> None:
    class Hanging(ScriptedTransport):
        async def connect(self, deadline: float) -> None:
            await super().connect(deadline)
            if self.connected == 1:
                await asyncio.get_running_loop().create_future()

    transport = Hanging()
    link = Link(transport, "double://")
    link.start()
    await link.wait()
    assert transport.connected == 2
    await link.close()


@virtual
@pytest.mark.parametrize("error", [Refused("wrong password"), ConfigurationError("wrong option"), KeyError("bug")])
async def test_what_is_pointless_is_not_tried_again_and_everyone_is_told(error: Exception) -> None:
    transport = ScriptedTransport()
    transport.connects = [error]
    link = Link(transport, "double://")
    told: list[Exception | None] = []
    link.on_change(lambda: told.append(link.terminal))
    link.start()
    outcomes = await asyncio.gather(link.wait(), link.wait(), return_exceptions=True)
    assert [type(o) for o in outcomes] == [type(error)] * 2
    assert outcomes[0] is not outcomes[1]
    assert told == [error]
    link.down(Unavailable("late news"))
    await asyncio.sleep(60)
    assert transport.connected == 1
    assert type(link.unavailable()) is type(error)
    await link.close()


@virtual
async def test_a_good_connection_is_made_anew_at_once_and_one_that_does_not_hold_with_pauses() -> None:
    loop = asyncio.get_running_loop()
    transport = ScriptedTransport()
    link = Link(transport, "double://")
    link.start()
    await link.wait()
    await asyncio.sleep(60)
    began = loop.time()
    link.down(Unavailable("reset"))
    await link.wait()
    assert loop.time() - began < 0.01
    for _ in range(6):
        link.down(Unavailable("reset"))
        await link.wait()
    assert loop.time() - began > 3.0
    await link.close()


@virtual
async def test_a_listener_that_finds_the_connection_broken_starts_a_new_one() -> None:
    transport = ScriptedTransport()
    link = Link(transport, "double://")
    breaks = [Unavailable("reset")]
    link.on_change(lambda: link.down(breaks.pop()) if breaks and link.up else None)
    link.start()
    await asyncio.sleep(60)
    assert link.up
    assert transport.connected == 2
    await link.close()


@virtual
async def test_closing_ends_the_waiting() -> None:
    transport = ScriptedTransport()
    transport.connects = [Unavailable("refused")] * 1000
    link = Link(transport, "double://")
    link.start()
    waiting = asyncio.ensure_future(link.wait())
    await asyncio.sleep(1)
    await link.close()
    await link.close()
    with pytest.raises(Unavailable, match="closed"):
        await waiting


def test_an_error_for_one_more_caller_keeps_its_text_and_cause() -> None:
    error = Unavailable("away")
    error.__cause__ = OSError("refused")
    other = again(error)
    assert other is not error
    assert (str(other), other.__cause__) == ("away", error.__cause__)


def test_an_error_that_cannot_be_copied_is_given_as_it_is() -> None:
    class Odd(Exception):
        def __init__(self, a: int, *, b: int) -> None:
            super().__init__(a)
            self.b = b

    error = Odd(1, b=2)
    assert again(error) is error
