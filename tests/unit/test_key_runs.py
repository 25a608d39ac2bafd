"""A key in flight belongs to its owner, who gets a run of it: not one message at a time, and not all there is."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from pathlib import Path

import pytest

from switchgear.driver import Order, Outgoing, Subscription
from switchgear.plugins import open_transport


async def ignore(lanes: Collection[str], lost: bool) -> None:
    """Nothing is kept that could be revoked."""


@pytest.mark.parametrize("scheme", ["memory", "sqlite"])
async def test_a_key_that_stands_still_occupies_a_run(scheme: str, tmp_path: Path) -> None:
    transport = open_transport("memory://runs" if scheme == "memory" else f"sqlite:///{tmp_path}/runs.db")
    deadline = asyncio.get_running_loop().time() + 10
    await transport.connect(deadline)
    source = await transport.subscribe(
        Subscription(topics={"orders": None}, group="g", consumer="c", order=Order.KEY), ignore
    )
    hot = [Outgoing("orders", str(i).encode(), key=b"hot") for i in range(100)]
    await transport.send([*hot, Outgoing("orders", b"other", key=b"cold")], deadline)
    taken = [*await source.receive(500), *await source.receive(500)]
    assert [d.body for d in taken if d.key == b"hot"] == [str(i).encode() for i in range(16)]
    assert b"other" in [d.body for d in taken]
    await transport.close()
