"""What handlers and dependencies get of the running bus."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import Any


class BusScope:
    """Dependencies with `scope="bus"`: opened once, closed with the bus."""

    def __init__(self) -> None:
        self.stack = AsyncExitStack()
        self._values: dict[Callable[..., Any], asyncio.Future[object]] = {}

    async def get(self, provider: Callable[..., Any], open_: Callable[[], Awaitable[object]]) -> object:
        """The provider's value; of several that ask at once the first opens it, and a failure is not remembered."""
        while (found := self._values.get(provider)) is not None:
            await asyncio.wait([found])
            if not found.cancelled():  # else whoever opened it was cancelled: somebody else has to
                return found.result()
        future = self._values[provider] = asyncio.get_running_loop().create_future()
        try:
            value = await open_()
        except BaseException as error:
            del self._values[provider]
            if isinstance(error, Exception):
                future.set_exception(error)
                future.exception()  # seen: whoever else waits gets it too
            else:
                future.cancel()
            raise
        future.set_result(value)
        return value


class Services:
    """Of one subscription; see `handlers.Services`."""

    def __init__(
        self, bus: object, scope: BusScope, overrides: Mapping[Callable[..., Any], Callable[..., Any]],
        sync_bus: Callable[[], object], width: int, where: str,
    ) -> None:  # fmt: skip
        self._bus, self._scope, self._overrides = bus, scope, overrides
        self._sync_bus, self._width, self._where = sync_bus, width, where
        self._pool: ThreadPoolExecutor | None = None

    @property
    def bus(self) -> object:
        return self._bus

    @property
    def overrides(self) -> Mapping[Callable[..., Any], Callable[..., Any]]:
        return self._overrides

    def sync_bus(self) -> object:
        return self._sync_bus()

    async def bus_scoped(self, provider: Callable[..., Any], open: Callable[[], Awaitable[object]]) -> object:
        return await self._scope.get(provider, open)

    def bus_stack(self) -> AsyncExitStack:
        return self._scope.stack

    def thread_pool(self) -> Executor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._width, thread_name_prefix=f"switchgear {self._where}")
        return self._pool

    def close(self, wait: bool) -> None:
        """End the threads; without `wait` a handler that still runs is left to the end of the process."""
        if self._pool is not None:
            self._pool.shutdown(wait=wait, cancel_futures=True)
            self._pool = None
