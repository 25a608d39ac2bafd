"""A connection to the server: calls and answers by number, any number at once."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from switchgear.errors import MaybeSent, Unavailable

from .protocol import CALLS, Answer, Call, frame, raised, raw, read_frame

Address = tuple[str, int]


class Wire:
    """Once it is broken it stays so."""

    read_frame = staticmethod(read_frame)

    def __init__(self, address: Address, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._where = f"simulated://{address[0]}:{address[1]}"
        self._reader, self._writer = reader, writer
        self._calls: dict[int, asyncio.Future[Answer]] = {}
        self._number = 0
        self._broken: Exception | None = None
        self._heard = 0.0
        self._time = asyncio.get_running_loop().time
        self._task = asyncio.create_task(self._read(), name="simulated")

    @classmethod
    async def open(cls, address: Address, deadline: float) -> Wire:
        """Raises Unavailable."""
        try:
            async with asyncio.timeout_at(deadline):
                reader, writer = await asyncio.open_connection(*address)
        except (OSError, TimeoutError) as error:
            said = str(error) or "no connection in time"
            raise Unavailable(f"simulated://{address[0]}:{address[1]} cannot be reached: {said}") from error
        return cls(address, reader, writer)

    async def call(self, method: str, *arguments: object, deadline: float) -> Any:
        """What the server answers, or the error that it tells of.

        Raises Unavailable when the connection was broken before, MaybeSent when it broke, or nothing came by the
        deadline. A server that said nothing meanwhile counts as gone: the connection is given up.
        """
        if self._broken is not None:
            raise Unavailable(f"{self._where}: the connection is broken: {self._broken}") from self._broken
        takes, answers = CALLS[method]
        del takes
        number = self._number = self._number + 1
        future = self._calls[number] = asyncio.get_running_loop().create_future()
        began = self._time()
        self._writer.write(frame(Call(number, method, raw(arguments))))
        try:
            async with asyncio.timeout_at(deadline):
                answer = await future
        except TimeoutError as error:
            if self._heard <= began:
                self._break(TimeoutError(f"no answer within {self._time() - began:.1f} s"))
            raise MaybeSent(f"{self._where}: no answer to {method!r} in time") from error
        finally:
            self._calls.pop(number, None)
            if future.done() and not future.cancelled():
                future.exception()
        if answer.problem is not None:
            raise raised(answer.problem)
        return msgspec.msgpack.decode(answer.result, type=answers)

    async def _read(self) -> None:
        try:
            while (data := await self.read_frame(self._reader)) is not None:
                answer = msgspec.msgpack.decode(data, type=Answer)
                self._heard = self._time()
                if (future := self._calls.get(answer.number)) is not None and not future.done():
                    future.set_result(answer)
            self._break(ConnectionError("the server closed it"))
        except (OSError, EOFError, msgspec.DecodeError) as error:
            self._break(error)

    def _break(self, error: Exception) -> None:
        if self._broken is None:
            self._broken = error
        for future in self._calls.values():
            if not future.done():
                maybe = MaybeSent(f"{self._where}: the connection broke before the answer came: {error}")
                maybe.__cause__ = error
                future.set_exception(maybe)
        self._writer.transport.abort()

    async def close(self) -> None:
        """Idempotent."""
        if self._broken is None:
            self._broken = ConnectionError("it was closed")
        self._writer.close()
        self._task.cancel()
        await asyncio.wait([self._task])
        self._break(self._broken)
        await asyncio.sleep(0)  # the socket is closed in the next turn
