"""Nothing is left behind, and the loop is never held up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from switchgear.driver import Transport
from switchgear.plugins import open_transport

from .member import join, out, stored


async def test_close_leaves_nothing(broker: str, topic: str, leftovers: Callable[[], object]) -> None:
    async def life(name: str) -> None:
        transport = open_transport(broker)
        await transport.connect(asyncio.get_running_loop().time() + 10)
        member = await join(transport, name)
        audience = await join(transport, name, group=None, consumer="two")
        await stored(transport, *(out(name, str(i), f"k{i % 3}", due=None) for i in range(50)))
        await stored(transport, out(name, "later", due=time.time() + 60, dedup="x"))
        await member.take(10)
        pending = asyncio.create_task(audience.source.receive(10))
        await asyncio.sleep(0)
        await transport.close()
        await asyncio.wait_for(pending, 5)

    await life(topic)  # what is made once and for all
    await asyncio.sleep(0)
    before = leftovers()
    for i in range(3):
        await life(f"{topic}.{i}")
        await asyncio.sleep(0)
    assert leftovers() == before


async def test_close_while_everything_is_busy(broker: str, topic: str) -> None:
    transport = open_transport(broker)
    await transport.connect(asyncio.get_running_loop().time() + 10)
    member = await join(transport, topic)

    async def publish() -> None:
        for i in range(1000):
            await transport.send([out(topic, str(i))], asyncio.get_running_loop().time() + 5)
            await asyncio.sleep(0)

    async def consume() -> None:
        while True:
            await member.settle(await member.source.receive(50))
            await asyncio.sleep(0)

    tasks = [asyncio.create_task(publish()), asyncio.create_task(consume())]
    await asyncio.sleep(0.05)
    began = time.monotonic()
    await transport.close()
    assert time.monotonic() - began < 5
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_the_loop_is_not_held_up(transport: Transport, topic: str) -> None:
    member = await join(transport, topic)
    worst, stop = 0.0, False

    async def heartbeat() -> None:
        nonlocal worst
        while not stop:
            began = time.perf_counter()
            await asyncio.sleep(0.002)
            worst = max(worst, time.perf_counter() - began - 0.002)

    beat = asyncio.create_task(heartbeat())
    cpu = time.process_time()
    wall = time.perf_counter()
    for _ in range(20):
        await stored(transport, *(out(topic, bytes(2000), f"k{j}") for j in range(100)))
        await asyncio.sleep(0)
    await member.drain(2000)
    busy = (time.process_time() - cpu) / (time.perf_counter() - wall)
    stop = True
    await beat
    assert worst < 0.05 * (1 if busy > 0.5 else 3), f"held up for {worst * 1000:.0f} ms"
