"""Buses on a broker of their own in memory, and a trace of what they did."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from switchgear.bus import Bus
from switchgear.errors import Unsupported
from switchgear.message import Message
from switchgear.topic import Topic
from switchgear.units import Seconds, seconds

from .clock import VirtualClock
from .faults import Faults

if TYPE_CHECKING:
    from typing_extensions import TypeVar as TypeVarDefault

    T = TypeVarDefault("T")
else:
    T = TypeVar("T")

QUIET = 12  # turns of a loop that hides what it has to do, after which nothing will come by itself


class Trace:
    """What happened on the buses under test, and their time."""

    def __init__(self, buses: tuple[Bus, ...], clock: VirtualClock) -> None:
        self._buses, self._clock = buses, clock
        self._published: list[tuple[str, Any]] = []
        self._handled: list[tuple[str, str | None, Message[Any]]] = []
        self._dead: list[tuple[str, str | None, Message[Any]]] = []

    def _tap(self, event: str, topic: str, group: str | None, what: Any) -> None:
        if event == "published":
            self._published.append((topic, what))
        else:
            _ = what.id, what.attempt  # read now: later nothing knows them any more
            (self._handled if event == "handled" else self._dead).append((topic, group, what))

    def published(self, topic: Topic[T]) -> list[T]:
        """The values that were published to the topic, by handlers and `to=` too, in order."""
        return [value for name, value in self._published if name == topic.name]

    def handled(self, topic: Topic[T], *, group: str) -> list[Message[T]]:
        """The messages that the group's handlers returned from, in order."""
        return [m for name, whose, m in self._handled if name == topic.name and whose == group]

    def dead_letters(self, topic: Topic[T], *, group: str) -> list[Message[T]]:
        """The messages that the group gave up."""
        return [m for name, whose, m in self._dead if name == topic.name and whose == group]

    async def idle(self) -> None:
        """Return when nothing more happens without time passing: all that is due is handled and settled."""
        scheduled = getattr(asyncio.get_running_loop(), "_ready", None)  # asyncio's own: what the loop has to do now
        quiet = 0
        while quiet < QUIET:
            busy = any(self._busy(bus) for bus in self._buses)
            if busy and not scheduled:
                quiet = 0
                await asyncio.sleep(0.0005)  # a thread or a socket is at work
                continue
            await asyncio.sleep(0)
            if scheduled is None:
                quiet = 0 if busy else quiet + 1
            elif not scheduled and not any(self._busy(bus) for bus in self._buses):
                return

    @staticmethod
    def _busy(bus: Bus) -> bool:
        core = bus._open
        return core is not None and any(consumer.busy() for consumer in core.consumers)

    async def advance(self, seconds_: Seconds) -> None:
        """Let time pass, for delays, retries, leases and expiry; whatever falls due meanwhile happens in its order."""
        await self._clock.advance(seconds(seconds_), self.idle)


def in_memory(
    *buses: Bus,
    faults: Faults = Faults(),  # noqa: B008  (frozen)
    depends: Mapping[Callable[..., Any], Callable[..., Any]] = {},
) -> AbstractAsyncContextManager[Trace]:
    """Serve these buses in memory, whatever URL they have, with a clock of the test's own.

    `depends` replaces dependencies: {provider: replacement}. Subscriptions run inside the block; it works in any test
    runner and needs no plugin. Raises Unsupported for faults, which have no machinery yet.
    """
    if faults != Faults():
        raise Unsupported("in_memory(faults=…) has no machinery yet: leave it out")
    return _in_memory(buses, depends)


@asynccontextmanager
async def _in_memory(
    buses: tuple[Bus, ...], depends: Mapping[Callable[..., Any], Callable[..., Any]]
) -> AsyncGenerator[Trace]:
    clock = VirtualClock()
    trace = Trace(buses, clock)
    url = f"memory://test-{secrets.token_hex(6)}"
    before = [(bus, bus._override, bus._config) for bus in buses]
    try:
        async with AsyncExitStack() as stack:
            for bus in buses:
                bus.override(url=url)
                bus._config = None  # read anew: its URL is put into the one it has
                bus._test_clock, bus._test_overrides, bus._test_taps = clock, depends, [trace._tap]
            for bus in buses:
                await stack.enter_async_context(bus.serving())
            yield trace
    finally:
        for bus, override, config in before:
            bus._override, bus._config = override, config
            bus._test_clock = bus._test_overrides = None
            bus._test_taps = []
