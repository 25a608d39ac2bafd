"""The transport of `simulated://`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from switchgear.driver import (
    Capabilities,
    Delivery,
    Drift,
    Fence,
    Headers,
    NameRules,
    Order,
    Outgoing,
    Resource,
    Revoked,
    Row,
    Settlement,
    Start,
    Subscription,
    TopicInfo,
)
from switchgear.errors import Lost, MaybeSent, Refused, TransportError, Unavailable

from .protocol import Mark, Received, delivery, outcomes
from .wire import Address, Wire

BATCH_BYTES = 32 << 20
BEFORE = Capabilities(
    order=Order.TOTAL, send_order=True, batch_bytes=BATCH_BYTES, names=NameRules(length=200), groups=True,
    broadcast=True, persistent=True, ack_durable=True, starts=frozenset({"new", "earliest", "time"}),
    retry_delay=float("inf"), delay=float("inf"), counting="exact", lease_cap=float("inf"), fencing=True,
)  # fmt: skip
WAIT = 1.0  # seconds that a server waits for messages


class SimulatedTransport:
    """One connection for all but reading; each source and each reader that browses has one of its own.

    Also Registry, Scheduling, Seekable, Lagged, Browsable, Provisioner.
    """

    def __init__(self, address: Address, timeout: float) -> None:
        self.capabilities = BEFORE
        self._address, self._timeout = address, timeout
        self._wire: Wire | None = None
        self._sources: set[SimulatedSource] = set()

    def __repr__(self) -> str:
        return f"simulated://{self._address[0]}:{self._address[1]}"

    async def connect(self, deadline: float) -> None:
        """Connect, or see that the server still answers. Raises Unavailable."""
        if self._wire is not None:
            try:
                await self._wire.call("ping", deadline=deadline)
                return
            except MaybeSent:
                await self._wire.close()
            except Unavailable:
                pass
        self._wire = None
        wire = await Wire.open(self._address, deadline)
        try:
            found: Capabilities = await wire.call("connect", deadline=deadline)
        except MaybeSent as error:
            await wire.close()
            raise _unavailable(error) from error.__cause__
        except BaseException:
            await wire.close()
            raise
        self.capabilities = replace(found, batch_bytes=BATCH_BYTES)
        self._wire = wire

    async def send(self, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        """Raises Unavailable where nothing was sent, MaybeSent where no answer came by the deadline."""
        unfit = {n for n, m in enumerate(batch) if not all(_is_text(name) for name, _ in m.headers)}
        within = max(0.0, deadline - asyncio.get_running_loop().time())
        fit = [m for n, m in enumerate(batch) if n not in unfit]
        said = iter(outcomes(await self._open().call("send", fit, within, deadline=deadline)))
        return [
            Refused(f"{self!r}: a header's name is no text") if n in unfit else next(said) for n in range(len(batch))
        ]

    async def subscribe(self, subscription: Subscription, revoked: Revoked) -> SimulatedSource:
        """Join, on a connection of its own. Nothing is ever revoked."""
        self._open()
        wire = await Wire.open(self._address, self._soon())
        try:
            capabilities: Capabilities = await wire.call("subscribe", subscription, deadline=self._soon())
        except MaybeSent as error:
            await wire.close()
            raise _unavailable(error) from error.__cause__
        except BaseException:
            await wire.close()
            raise
        source = SimulatedSource(wire, capabilities, self._timeout, self._sources.discard)
        self._sources.add(source)
        return source

    async def close(self) -> None:
        """Leave every group and close every connection."""
        await asyncio.gather(*(source.close() for source in list(self._sources)))
        wire, self._wire = self._wire, None
        if wire is not None:
            await wire.close()

    def _open(self) -> Wire:
        if self._wire is None:
            raise Unavailable(f"{self!r} is not connected")
        return self._wire

    def _soon(self) -> float:
        return asyncio.get_running_loop().time() + self._timeout

    async def _call(self, method: str, *arguments: object) -> Any:
        try:
            return await self._open().call(method, *arguments, deadline=self._soon())
        except MaybeSent as error:
            raise _unavailable(error) from error.__cause__

    async def read(self, prefix: str) -> Mapping[str, Row]:
        found: Mapping[str, Row] = await self._call("read", prefix)
        return found

    async def write(self, name: str, value: bytes | None, *, expect: int | None, ttl: float | None) -> int | None:
        revision: int | None = await self._call("write", name, value, expect, ttl)
        return revision

    async def promote(self, limit: int) -> float | None:
        left: float | None = await self._call("promote", limit)
        return left

    async def cancel(self, topic: str, dedup: str) -> bool:
        return bool(await self._call("cancel", topic, dedup))

    async def seek(self, topic: str, group: str, to: Start | str) -> None:
        await self._call("seek", topic, group, to)

    async def lag(self, topics: Sequence[str], group: str) -> Mapping[str, int]:
        found: Mapping[str, int] = await self._call("lag", list(topics), group)
        return found

    async def browse(self, topic: str, start: Start, end: float | None) -> AsyncIterator[tuple[Delivery, Headers]]:
        self._open()
        wire = await Wire.open(self._address, self._soon())
        try:
            await wire.call("browse", topic, start, end, deadline=self._soon())
            while page := await wire.call("page", deadline=self._soon()):
                for item in page:
                    yield delivery(item), item.native.headers
        except MaybeSent as error:
            raise _unavailable(error) from error.__cause__
        finally:
            await wire.close()

    async def provision(self, wanted: Sequence[Resource], apply: bool) -> Sequence[Drift]:
        found: Sequence[Drift] = await self._call("provision", list(wanted), apply)
        return found

    async def topics(self, prefix: str) -> Sequence[TopicInfo]:
        found: Sequence[TopicInfo] = await self._call("topics", prefix)
        return found


class SimulatedSource:
    """One subscription. It is lost with its connection: the server then gives back what it held."""

    def __init__(self, wire: Wire, capabilities: Capabilities, timeout: float, gone: Any) -> None:
        self.capabilities = capabilities
        self.trimmed: Mapping[str, int] = {}
        self._wire, self._timeout, self._gone = wire, timeout, gone
        self._closed = asyncio.Event()

    async def receive(self, limit: int, held: Collection[str] = ()) -> Sequence[Delivery]:
        """Raises Lost when the connection broke or the server does not answer."""
        if self._closed.is_set():
            await asyncio.sleep(0)  # whoever calls on must not starve the loop
            return []
        try:
            found = await self._call(WAIT, "receive", limit, list(held))
        except (Unavailable, MaybeSent) as error:
            if self._closed.is_set():
                return []
            raise Lost(f"{error}; what this source held returns to the group") from error.__cause__
        items, self.trimmed = found
        return [] if self._closed.is_set() else [delivery(item) for item in items]

    async def settle(self, batch: Sequence[Settlement]) -> Sequence[TransportError | None]:
        """Lost for all once the connection is gone. Raises Unavailable where it broke meanwhile."""
        if not batch:
            return []
        marks = [
            Mark(s.delivery.topic, s.delivery.key, s.delivery.lane, s.delivery.token, s.verdict.value, s.seconds)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
            for s in batch
        ]
        try:
            said = await self._call(0.0, "settle", marks)
        except MaybeSent as error:
            raise _unavailable(error) from error.__cause__
        except Unavailable as error:
            lost = Lost(f"{error}; it returned to the group")
            lost.__cause__ = error.__cause__
            return [lost] * len(batch)
        return outcomes(said)

    async def assign(self, topics: Mapping[str, Fence | None]) -> None:
        """Raises Unavailable."""
        try:
            await self._call(0.0, "assign", dict(topics))
        except MaybeSent as error:
            raise _unavailable(error) from error.__cause__

    async def _call(self, longer: float, method: str, *arguments: object) -> Any:
        deadline = asyncio.get_running_loop().time() + self._timeout + longer
        return await self._wire.call(method, *arguments, deadline=deadline)

    def note(self, lane: str) -> str:
        """Nothing is settled cumulatively here."""
        return ""

    def headers(self, delivery: Delivery) -> Headers:
        """As they were sent."""
        return _received(delivery).headers

    def position(self, delivery: Delivery) -> str:
        """As the server says."""
        return _received(delivery).position

    def time(self, delivery: Delivery) -> float:
        """As the server says, unix seconds."""
        return _received(delivery).time

    async def close(self) -> None:
        """Leave; without an answer in time the server gives back what is held when it misses the connection."""
        if self._closed.is_set():
            return
        self._closed.set()
        try:
            await self._call(0.0, "leave")
        except TransportError:
            pass
        finally:
            await self._wire.close()
            self._gone(self)


def _received(delivery: Delivery) -> Received:
    assert isinstance(delivery.native, Received)
    return delivery.native


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _unavailable(error: TransportError) -> Unavailable:
    return Unavailable(str(error))
