"""The server's end: `python -m switchgear_conformance.simulated.serving PORT URL` serves the transport of URL."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from switchgear.driver import (
    Capabilities,
    Delivery,
    Headers,
    Outgoing,
    Row,
    Settlement,
    Source,
    Subscription,
    Transport,
    Verdict,
)
from switchgear.errors import Lost, NotSent, SwitchgearError, TransportError
from switchgear.plugins import open_transport

from .protocol import (
    CALLS,
    Answer,
    Call,
    Item,
    Mark,
    Problem,
    Received,
    Topics,
    frame,
    item,
    problem,
    problems,
    raw,
    read_frame,
)

HOST = "127.0.0.1"
PAGE = 200
PATIENCE = 10.0  # seconds


class Server:
    """One transport for all clients. It must settle by token and key alone, and revoke nothing, as SQLite's does."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.full = False
        self.sessions: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    def accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(Session(self, reader, writer).run())
        self.sessions[task] = writer
        task.add_done_callback(lambda _: self.sessions.pop(task))

    async def close(self) -> None:
        for writer in self.sessions.values():
            writer.transport.abort()
        await asyncio.gather(*self.sessions)
        await self.transport.close()


class Session:
    """One connection: when it ends, its source leaves the group."""

    def __init__(self, server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._server, self._reader, self._writer = server, reader, writer
        self._inner: Any = server.transport
        self._source: Source | None = None
        self._pages: AsyncIterator[tuple[Delivery, Headers]] | None = None

    async def run(self) -> None:
        calls: set[asyncio.Task[None]] = set()
        try:
            while (data := await read_frame(self._reader)) is not None:
                task = asyncio.create_task(self._answer(msgspec.msgpack.decode(data, type=Call)))
                calls.add(task)
                task.add_done_callback(calls.discard)
        except (OSError, EOFError):
            pass
        finally:
            with suppress(TransportError):
                await self.leave()
            await asyncio.gather(*calls)
            if self._source is not None:  # it subscribed while it went
                with suppress(TransportError):
                    await self.leave()
            self._writer.close()

    async def _answer(self, call: Call) -> None:
        try:
            arguments = msgspec.msgpack.decode(call.arguments, type=CALLS[call.method][0])
            answer = Answer(call.number, raw(await getattr(self, call.method)(*arguments)))
        except SwitchgearError as error:
            answer = Answer(call.number, problem=problem(error))
        with suppress(OSError):
            self._writer.write(frame(answer))
            await self._writer.drain()

    # ---- what a client may call; see `protocol.CALLS`

    async def connect(self) -> Capabilities:
        await self._inner.connect(_soon())
        capabilities: Capabilities = self._inner.capabilities
        return capabilities

    async def ping(self) -> None:
        """It answers."""

    async def fill(self) -> None:
        """Nothing more is stored from now on."""
        self._server.full = True

    async def free(self) -> None:
        self._server.full = False

    async def send(self, batch: list[Outgoing], within: float) -> list[Problem | None]:
        if self._server.full:
            full = problem(NotSent("the server has no room: let it `free` what was filled"))
            return [full] * len(batch)
        outcomes: Sequence[TransportError | None]
        outcomes = await self._inner.send(batch, asyncio.get_running_loop().time() + within)
        return problems(outcomes)

    async def subscribe(self, subscription: Subscription) -> Capabilities:
        assert self._source is None
        source: Source = await self._inner.subscribe(subscription, _never)
        self._source = source
        return source.capabilities

    async def assign(self, topics: Topics) -> None:
        await self._reading().assign(topics)

    async def receive(self, limit: int, held: list[str]) -> tuple[list[Item], dict[str, int]]:
        source = self._reading()
        found = [
            item(d, Received(source.headers(d), source.position(d), source.time(d)))
            for d in await source.receive(limit, held)
        ]
        return found, dict(getattr(source, "trimmed", {}))

    async def settle(self, marks: list[Mark]) -> list[Problem | None]:
        batch = [
            Settlement(Delivery(m.topic, None, None, m.key, m.lane, m.token, None), Verdict(m.verdict), m.seconds)
            for m in marks
        ]
        return problems(await self._reading().settle(batch))

    async def leave(self) -> None:
        source, self._source = self._source, None
        if source is not None:
            await source.close()

    async def browse(self, topic: str, start: Any, end: float | None) -> None:
        self._pages = self._inner.browse(topic, start, end)

    async def page(self) -> list[Item]:
        found: list[Item] = []
        assert self._pages is not None
        async for d, headers in self._pages:
            stored: Any = d.native
            found.append(item(d, Received(headers, str(stored.position), stored.time)))
            if len(found) == PAGE:
                break
        return found

    def _reading(self) -> Source:
        if self._source is None:
            raise Lost("this connection reads nothing")
        return self._source

    async def read(self, prefix: str) -> Mapping[str, Row]:
        found: Mapping[str, Row] = await self._inner.read(prefix)
        return found

    async def write(self, name: str, value: bytes | None, expect: int | None, ttl: float | None) -> int | None:
        revision: int | None = await self._inner.write(name, value, expect=expect, ttl=ttl)
        return revision

    def __getattr__(self, name: str) -> Any:
        """What goes through as it is: promote, cancel, seek, lag, provision, topics."""
        return getattr(self._inner, name)


async def _never(lanes: Collection[str], lost: bool) -> None:
    raise AssertionError("a transport that takes lanes away can't be served")


def _soon() -> float:
    return asyncio.get_running_loop().time() + PATIENCE


async def serve(port: int, url: str) -> None:
    """Until SIGTERM."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    transport = open_transport(url)
    await transport.connect(_soon())
    server = Server(transport)
    listener = await asyncio.start_server(server.accepted, HOST, port)
    await ended.wait()
    listener.close()
    await server.close()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), sys.argv[2]))
