"""A transport that does what a test tells it to, and checks that the core keeps its side of the contract."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from switchgear.driver import Capabilities, Outgoing, Row
from switchgear.errors import TransportError

Outcomes = Sequence[TransportError | None]
Act = Callable[["ScriptedTransport", Sequence[Outgoing], float], Awaitable[Outcomes]]


async def store(transport: ScriptedTransport, batch: Sequence[Outgoing], deadline: float) -> Outcomes:
    """What a broker does when all is well."""
    transport.stored.extend(batch)
    return [None] * len(batch)


def fail(*errors: TransportError | None) -> Act:
    """Outcomes item by item; what is not named is stored."""

    async def act(transport: ScriptedTransport, batch: Sequence[Outgoing], deadline: float) -> Outcomes:
        found = [*errors, *[None] * (len(batch) - len(errors))]
        transport.stored.extend(m for m, error in zip(batch, found, strict=True) if error is None)
        return found

    return act


def broken(error: BaseException, *, stored: bool = False) -> Act:
    """The call raises; with `stored` the broker has the batch all the same."""

    async def act(transport: ScriptedTransport, batch: Sequence[Outgoing], deadline: float) -> Outcomes:
        if stored:
            transport.stored.extend(batch)
        raise error

    return act


async def hang(transport: ScriptedTransport, batch: Sequence[Outgoing], deadline: float) -> Outcomes:
    """No answer, ever."""
    await asyncio.get_running_loop().create_future()
    raise AssertionError("unreachable")


def after(seconds: float, act: Act = store) -> Act:
    """The same, later."""

    async def later(transport: ScriptedTransport, batch: Sequence[Outgoing], deadline: float) -> Outcomes:
        await asyncio.sleep(seconds)
        return await act(transport, batch, deadline)

    return later


class ScriptedTransport:
    """Takes its acts from `script`, then from `otherwise`."""

    def __init__(self, *script: Act, otherwise: Act = store, **capabilities: Any) -> None:
        self.capabilities = replace(Capabilities(batch=100, groups=True, broadcast=True), **capabilities)
        self.script = list(script)
        self.otherwise = otherwise
        self.connects: list[BaseException | None] = []
        """What the next calls of `connect` raise; None and past the end: nothing."""
        self.connected = 0
        self.closed = 0
        self.stored: list[Outgoing] = []
        self.calls: list[list[Outgoing]] = []
        self.running: list[Sequence[Outgoing]] = []

    async def connect(self, deadline: float) -> None:
        self.connected += 1
        if self.connects:
            error = self.connects.pop(0)
            if error is not None:
                raise error

    async def send(self, batch: Sequence[Outgoing], deadline: float) -> Outcomes:
        self._check(batch)
        self.calls.append(list(batch))
        self.running.append(batch)
        act = self.script.pop(0) if self.script else self.otherwise
        try:
            return await act(self, batch, deadline)
        finally:
            self.running.remove(batch)

    def _check(self, batch: Sequence[Outgoing]) -> None:
        keys = [(m.topic, m.key) for m in batch if m.key is not None]
        elsewhere = {(m.topic, m.key) for other in self.running for m in other}
        assert not elsewhere & set(keys), "a key in two running sends"
        assert self.capabilities.send_order or len(set(keys)) == len(keys), "a key twice in a send that keeps no order"
        assert 0 < len(batch) <= min(self.capabilities.batch, self.capabilities.batch_limit)
        assert len(self.running) < self.capabilities.sends

    async def subscribe(self, subscription: Any, revoked: Any) -> Any:
        raise NotImplementedError

    async def close(self) -> None:
        self.closed += 1

    @property
    def ids(self) -> list[str | None]:
        """What is stored, in order."""
        return [m.dedup for m in self.stored]


class RowsTransport(ScriptedTransport):
    """The same with a registry; `errors` are raised by its next calls."""

    def __init__(self, *script: Act, rows: dict[str, Row] | None = None, **more: Any) -> None:
        super().__init__(*script, **more)
        self.rows: dict[str, Row] = {} if rows is None else rows
        self.errors: list[BaseException] = []
        self.revision = 0
        self.reads = 0

    async def read(self, prefix: str) -> Mapping[str, Row]:
        self.reads += 1
        await asyncio.sleep(0.01)
        if self.errors:
            raise self.errors.pop(0)
        return {name: row for name, row in self.rows.items() if name.startswith(prefix)}

    async def write(self, name: str, value: bytes | None, *, expect: int | None, ttl: float | None) -> int | None:
        await asyncio.sleep(0.01)
        if self.errors:
            raise self.errors.pop(0)
        found = self.rows.get(name)
        if expect is not None and expect != (found.revision if found else 0):
            return None
        self.revision += 1
        if value is None:
            self.rows.pop(name, None)
        else:
            self.rows[name] = Row(value, self.revision)
        return self.revision
