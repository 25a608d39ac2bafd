"""What the command line shows of dead letters and of names."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from switchgear import Bus, Message, Reject

from .conftest import Run

URL = "sqlite:///broker.db"


async def bury(namespace: str = "") -> None:
    bus = Bus(URL, namespace=namespace)
    called = asyncio.Event()

    @bus.subscribe("orders", group="billing")
    async def bill(order: dict[str, int], message: Message[dict[str, int]]) -> None:
        called.set()
        raise Reject("no such customer")

    async with bus.serving():
        await bus.publish("orders", {"n": 1}, key="ann")
        await called.wait()


def test_dead_letters_are_shown_with_their_reason(sg: Run, here: Path) -> None:
    asyncio.run(bury())
    result = printed(sg, "tail", "sg.dlq.orders.billing", "--url", URL)
    assert "ann" in result
    assert "[no such customer; attempts: 1]" in result
    [letter] = [json.loads(line) for line in printed(sg, "tail", "sg.dlq.orders.billing", "--json").splitlines()]
    assert (letter["reason"], letter["attempts"], letter["body"]) == ("no such customer", 1, {"n": 1})
    assert (letter["from"]["topic"], letter["from"]["group"]) == ("orders", "billing")
    assert printed(sg, "tail", "sg.dlq.orders.billing", "--where", "n=2") == ""


def test_a_missing_internal_topic_names_those_there(sg: Run, here: Path) -> None:
    asyncio.run(bury())
    result = sg("tail", "sg.dlq.order.billing", "--url", URL)
    assert result.exit_code != 0
    assert "sg.dlq.orders.billing" in result.output


def test_groups_are_shown_without_the_namespace(sg: Run, here: Path) -> None:
    asyncio.run(bury("staging."))
    shown = json.loads(printed(sg, "topics", "--url", f"{URL}?namespace=staging.", "--json"))
    assert shown == [{"name": "orders", "messages": 1, "groups": ["billing"]}]


def test_a_bus_without_a_name_is_named_after_its_module(sg: Run, here: Path) -> None:
    (here / "sg_unnamed.py").write_text("from switchgear import Bus\nbus = Bus()\ndef create(): return Bus()\n")
    for target in ("sg_unnamed:bus", "sg_unnamed:create"):
        assert json.loads(printed(sg, "explain", target, "--json"))["bus"] == "sg_unnamed"


def printed(sg: Run, *arguments: str) -> str:
    """What a command prints that must succeed."""
    result = sg(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout
