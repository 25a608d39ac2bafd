"""Serving on memory in the virtual time of `virtual`: what happened, and a way to wait for it."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from switchgear import Bus, DeadLetter, Topic
from switchgear.consumer import Consumer
from switchgear.core import Core
from switchgear.driver import Outgoing
from switchgear.knobs import Middleware

numbers = itertools.count()
orders = Topic("orders", dict[str, Any], key=lambda order: str(order["k"]))
loose = Topic("loose", dict[str, Any])


class Events:
    """An observer."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()

    def count(self, event: str, topic: str, group: str | None, n: int) -> None:
        if event != "published":
            assert n > 0
            self.seen[event] += n

    def __getitem__(self, event: str) -> int:
        return self.seen[event]


class Letters:
    """The dead letters that were stored in the topic `graves`, in order."""

    def __init__(self) -> None:
        self.found: list[Outgoing] = []

    def _attribute(self, name: str) -> list[str]:
        return [dict(m.headers)[f"ce-{name}"].decode() for m in self.found]

    def reasons(self) -> list[str]:
        return self._attribute("sgreason")

    def attempts(self) -> list[int]:
        return [int(n) for n in self._attribute("sgattempt")]

    def bodies(self) -> list[bytes | None]:
        return [m.body for m in self.found]


class WatchedBus(Bus):
    """Keeps the dead letters that go to `graves`."""

    letters: Letters

    async def _start(self) -> Core:
        core = await super()._start()
        transport: Any = core.transport
        send = transport.send

        async def watched(batch: Sequence[Outgoing], deadline: float) -> Any:
            outcomes = await send(batch, deadline)
            self.letters.found += [
                m for m, error in zip(batch, outcomes, strict=True) if error is None and m.topic == "graves"
            ]
            return outcomes

        transport.send = watched
        return core


def a_bus(url: str | None = None, *, middleware: Sequence[Middleware] = ()) -> tuple[Bus, Events, Letters]:
    """A bus on a broker of its own, or on that of `url`."""
    events = Events()
    bus = WatchedBus(url or fresh(), name="app", observers=[events], middleware=middleware)
    bus.letters = Letters()
    return bus, events, bus.letters


def fresh() -> str:
    return f"memory://unit-{next(numbers)}"


BURIED = DeadLetter(topic="graves")


def consumer_of(bus: Bus, topic: str = "orders") -> Consumer:
    assert bus._open is not None
    return next(c for c in bus._open.consumers if c.program.topic == topic)


async def until(condition: Callable[[], object], seconds: float = 120.0) -> None:
    """Let (virtual) time pass until it holds."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while not condition():
        assert loop.time() < end, "it did not come to pass"
        await asyncio.sleep(0.01)


async def turns() -> None:
    """Let the loop do what follows from what was done; nobody waits for handlers, threads or time."""
    for _ in range(50):
        await asyncio.sleep(0)
