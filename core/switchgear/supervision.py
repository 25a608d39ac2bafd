"""Keeping a transport connected: back-off with jitter, terminal errors apart from passing ones."""

from __future__ import annotations

import asyncio
import copy
import logging
import random
from collections.abc import Callable
from typing import TypeVar

from .driver import Transport
from .errors import ConfigurationError, MaybeSent, NotSent, Refused, Unavailable

E = TypeVar("E", bound=BaseException)

log = logging.getLogger("switchgear.connection")

ATTEMPT = 10.0  # seconds for one attempt to connect
BACKOFF, BACKOFF_CAP = 0.1, 2.0  # seconds; the cap is how late it may be noticed that a broker is back
STEADY = 5.0  # seconds after which a connection counts as good: when it breaks it is made anew without a pause


def said(error: BaseException) -> str:
    """What an error says, or its name where it says nothing."""
    return str(error) or type(error).__name__


def again(error: E) -> E:
    """The error for one more caller: an instance raised twice would gather the tracebacks of both."""
    try:
        new = copy.copy(error)
    except Exception:  # noqa: BLE001  not one of ours, and its arguments are not those of its constructor
        return error
    new.__cause__ = error.__cause__
    return new


class Link:
    """The state of one transport's connection, shared by publisher and consumers."""

    def __init__(self, transport: Transport, where: str) -> None:
        self._transport, self._where = transport, where
        self._loop = asyncio.get_running_loop()
        self.up = False
        self.error: BaseException | None = None
        """The last failure while down; None when up."""
        self.terminal: Exception | None = None
        """What makes trying again pointless: wrong password, wrong option, a bug of the transport."""
        self._failures = 0
        """In a row: attempts that failed and connections that did not last."""
        self._since = 0.0
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
        if self._closed or self.terminal is not None:
            return
        if self.up:
            self.up = False
            self._failures = 0 if self._loop.time() - self._since > STEADY else self._failures + 1
            log.warning("lost the connection to %s: %s; reconnecting", self._where, error)
        self.error = error
        self.start()

    async def wait(self) -> None:
        """Return when connected. Raises the terminal error when connecting is pointless."""
        while not self.up:
            if self.terminal is not None:
                raise again(self.terminal)
            if self._closed:
                raise Unavailable(f"the connection to {self._where} is closed")
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._waiters.append(waiter)
            await waiter

    def unavailable(self) -> Exception:
        """What a publish raises whose time passed without a connection: Unavailable, or what makes trying pointless."""
        if self.terminal is not None:
            return again(self.terminal)
        why = said(self.error).rstrip(".") if self.error else "not connected yet"
        error = Unavailable(f"cannot reach {self._where}: {why}; is it running, and the address right?")
        error.__cause__ = self.error
        return error

    async def _connect(self) -> None:
        while not self._closed and not self.up:
            if self._failures:
                await asyncio.sleep(random.uniform(0.5, 1.0) * min(BACKOFF_CAP, BACKOFF * 2 ** min(self._failures, 10)))
            try:
                deadline = self._loop.time() + ATTEMPT
                async with asyncio.timeout_at(deadline + 1.0):
                    await self._transport.connect(deadline)
            except (Unavailable, NotSent, MaybeSent, TimeoutError) as error:
                self._failures += 1
                self.error = error
                failures = self._failures
                level = logging.WARNING if failures in (1, 10, 100) or failures % 1000 == 0 else logging.DEBUG
                log.log(level, "cannot reach %s (attempt %d): %s", self._where, failures, said(error))
            except (Refused, ConfigurationError) as error:
                log.error("connecting to %s is pointless: %s", self._where, error)
                self._give_up(error)
            except Exception as error:
                log.exception("the transport failed in connect; this is a bug of the transport")
                self._give_up(error)
            else:
                if self.error is not None:
                    log.info("connected to %s again", self._where)
                self._since = self._loop.time()
                self.up = True
                self.error = None
                self._tell()
            if self.terminal is not None:
                return

    def _give_up(self, error: Exception) -> None:
        self.error = self.terminal = error
        self._tell()

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
            await asyncio.wait([task], timeout=2.0)
        self._tell()
