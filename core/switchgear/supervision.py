"""Keeping a transport connected: back-off with jitter, terminal errors apart from passing ones."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

from .driver import Transport
from .errors import ConfigurationError, MaybeSent, NotSent, Refused, SwitchgearError, TransportError, Unavailable

log = logging.getLogger("switchgear.connection")

ATTEMPT = 10.0  # seconds for one attempt to connect
BACKOFF, BACKOFF_CAP = 0.1, 10.0  # seconds


def said(error: BaseException) -> str:
    """What an error says, or its name where it says nothing."""
    return str(error) or type(error).__name__


class Link:
    """The state of one transport's connection, shared by publisher and consumers."""

    def __init__(self, transport: Transport, where: str) -> None:
        self._transport, self._where = transport, where
        self._loop = asyncio.get_running_loop()
        self.up = False
        self.error: BaseException | None = None
        """The last failure while down; None when up."""
        self.terminal: SwitchgearError | None = None
        """What makes trying again pointless: wrong password, wrong option."""
        self._task: asyncio.Task[None] | None = None
        self._waiters: list[asyncio.Future[None]] = []
        self._listeners: list[Callable[[], None]] = []
        self._closed = False

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` each time the connection is (again) there, and when trying has become pointless."""
        self._listeners.append(listener)

    def start(self) -> None:
        """Begin to connect, in the background, until it works or is pointless."""
        if self._task is None or self._task.done():
            self._task = self._loop.create_task(self._connect(), name=f"switchgear connect {self._where}")

    def down(self, error: BaseException) -> None:
        """The connection failed: reconnect."""
        if self._closed:
            return
        if self.up:
            self.up = False
            log.warning("lost the connection to %s: %s; reconnecting", self._where, error)
        self.error = error
        self.start()

    async def wait(self) -> None:
        """Return when connected. Raises the terminal error when connecting is pointless."""
        while not self.up:
            if self.terminal is not None:
                raise self.terminal
            if self._closed:
                raise Unavailable(f"the connection to {self._where} is closed")
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._waiters.append(waiter)
            await waiter

    def unavailable(self) -> TransportError:
        """What a publish raises whose time passed without a connection."""
        if isinstance(self.terminal, TransportError):
            return self.terminal
        error = Unavailable(f"cannot reach {self._where}: {self.terminal or self.error or 'not connected yet'}")
        error.__cause__ = self.terminal or self.error
        return error

    async def _connect(self) -> None:
        failures = 0
        while not self._closed:
            try:
                deadline = self._loop.time() + ATTEMPT
                async with asyncio.timeout_at(deadline + 1.0):
                    await self._transport.connect(deadline)
            except (Unavailable, NotSent, MaybeSent, TimeoutError) as error:
                failures += 1
                self.error = error
                pause = random.uniform(0.5, 1.0) * min(BACKOFF_CAP, BACKOFF * 2 ** min(failures, 10))
                level = logging.WARNING if failures in (1, 10, 100) or failures % 1000 == 0 else logging.DEBUG
                log.log(level, "cannot reach %s (attempt %d): %s", self._where, failures, said(error))
                await asyncio.sleep(pause)
                continue
            except (Refused, ConfigurationError) as error:
                log.error("connecting to %s is pointless: %s", self._where, error)
                self.error = self.terminal = error
                self._tell()
                return
            if self.error is not None:
                log.info("connected to %s again", self._where)
            self.up = True
            self.error = None
            self._tell()
            return

    def _tell(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        for listener in self._listeners:
            listener()

    async def close(self) -> None:
        """Stop connecting. Idempotent."""
        self._closed = True
        task, self._task = self._task, None
        if task is not None and not task.done():
            task.cancel()
            await asyncio.wait([task])
        self._tell()
