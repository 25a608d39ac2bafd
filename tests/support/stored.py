"""What a SQLite file holds, by its own word: nobody has to wait and see whether more comes."""

from __future__ import annotations

import asyncio

from switchgear.driver import Browsable, Delivery, Lagged
from switchgear.plugins import open_transport


async def stored(url: str, topic: str) -> list[Delivery]:
    """The messages of a topic (its physical name), in stored order."""
    transport = open_transport(url)
    await transport.connect(asyncio.get_running_loop().time() + 60)
    try:
        assert isinstance(transport, Browsable)
        return [delivery async for delivery, _ in transport.browse(topic, "earliest", None)]
    finally:
        await transport.close()


async def unsettled(url: str, topic: str, group: str) -> int:
    """How many of its messages a group has not settled."""
    transport = open_transport(url)
    await transport.connect(asyncio.get_running_loop().time() + 60)
    try:
        assert isinstance(transport, Lagged)
        return sum((await transport.lag([topic], group)).values())
    finally:
        await transport.close()
