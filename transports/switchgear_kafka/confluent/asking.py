"""Asking the brokers with confluent-kafka's admin client, whose answers are futures."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, Final, TypeVar

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from switchgear.errors import SwitchgearError, Unavailable
from switchgear_kafka import tls
from switchgear_kafka.tuning import Settings

from .connection import connection, made, token
from .failures import CERTAIN, PASSING, error_of, failure
from .metadata import Metadata

K = TypeVar("K")
CLOSED: Final = KafkaError(KafkaError._TRANSPORT, "Disconnected")
"""What it means that the client tells no more than that all brokers are down."""
PAUSE = 0.1  # seconds before what passes by itself is asked again


class Asking:
    """One connected admin client."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.at = settings.address
        self.patience = settings.tuning.timeout
        self._open: AdminClient | None = None
        self._metadata = Metadata()
        self._heard: KafkaError | None = None
        """The last error that belonged to no request."""
        self._down = False
        """No broker was there, all having been tried."""

    def soon(self) -> float:
        """The deadline of a call that has none of its own."""
        return asyncio.get_running_loop().time() + self.patience

    @property
    def client(self) -> Any:
        """The connected client. Raises Unavailable before `connect` and after `close`."""
        if self._open is None:
            raise Unavailable(f"{self.at} is not connected")
        return self._open

    async def connect(self, deadline: float) -> None:
        """Have any broker tell about the cluster."""
        loop = asyncio.get_running_loop()
        if self._open is not None:
            if await self.reachable(min(deadline, loop.time() + max(1.0, self.patience / 2))):
                return
            await self.close()  # its lines may be dead, and every broker may have another address now
        if self._settings.tls:
            tls.context(self._settings)  # says which file is wrong, and how
        await token(self._settings)
        try:
            admin = await made(self._settings, lambda: AdminClient(connection(self._settings, self.hear)))
        except KafkaException as error:
            raise failure(self.at, error) from error
        at = f"{self.at} cannot be reached"
        self._heard, self._down = None, False
        until = max(deadline, loop.time() + 1.0)
        asked = asyncio.ensure_future(self._metadata.ask(admin, self._settings.tuning.registry, until))
        try:
            while True:
                await asyncio.wait([asked], timeout=min(0.05, max(0.0, deadline - loop.time())))
                admin.poll(0)
                heard = self._known() or (CLOSED if self._down else None)
                if asked.done():
                    if (why := asked.exception()) is None:
                        break
                    raise await self._why(at, heard or why, deadline) from why
                over = loop.time() >= deadline or self._down
                if heard is not None and (heard.code() in CERTAIN or over):
                    raise await self._why(at, heard, deadline) from KafkaException(heard)
                if loop.time() >= deadline:
                    raise Unavailable(f"{at}: no answer in time")
        finally:
            asked.cancel()
        self._open = admin

    async def _why(self, at: str, error: KafkaError | BaseException, deadline: float) -> SwitchgearError:
        """Where TLS fails the client does not tell what is wrong with a certificate: Python does."""
        if self._settings.tls:
            until = max(deadline, asyncio.get_running_loop().time() + 1.0)
            for host, port in self._settings.servers:
                try:
                    async with asyncio.timeout_at(until):
                        _, writer = await asyncio.open_connection(host, port, ssl=tls.context(self._settings))
                except ssl.SSLError as found:
                    return tls.failure(at, found)
                except (OSError, TimeoutError):
                    continue
                writer.transport.abort()
        return failure(at, error)

    def hear(self, error: KafkaError) -> None:
        """Keep what a client says that belongs to no request."""
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            self._down = True
        else:
            self._heard = error

    def _known(self) -> KafkaError | None:
        return self._heard

    async def reachable(self, deadline: float) -> bool:
        """Whether any broker answers."""
        try:
            async with asyncio.timeout_at(deadline):
                await self.about(self._settings.tuning.registry, deadline)
        except (KafkaException, TimeoutError, Unavailable):
            return False
        return True

    async def about(self, topic: str, deadline: float) -> Any:
        """What the cluster tells of its brokers and of a topic. Raises KafkaException, Unavailable."""
        client = self.client
        client.poll(0)
        return await self._metadata.ask(client, topic, deadline)

    async def close(self) -> None:
        """Close every connection; what is under way fails."""
        self._open = None
        await self._metadata.close()

    async def ask(self, send: Callable[[Any, float], Mapping[K, Future[Any]]], what: str = "") -> dict[K, Any]:
        """Each answer, or the KafkaError in its place; asked again while the cluster sorts itself out."""
        until, loop = self.soon(), asyncio.get_running_loop()
        at = f"{self.at}: {what}" if what else self.at
        client = self.client
        while True:
            client.poll(0)
            try:
                futures = send(client, max(0.1, until - loop.time()))
                async with asyncio.timeout_at(until + 1.0):
                    answers = await asyncio.gather(
                        *(asyncio.wrap_future(future) for future in futures.values()), return_exceptions=True
                    )
            except (KafkaException, TimeoutError) as error:
                raise failure(at, error) from error
            found: dict[K, Any] = {}
            for key, answer in zip(futures, answers, strict=True):
                if isinstance(answer, BaseException) and not isinstance(answer, KafkaException):
                    raise answer
                found[key] = error_of(answer) if isinstance(answer, KafkaException) else answer
            again = any(isinstance(one, KafkaError) and one.code() in PASSING for one in found.values())
            if not again or loop.time() + PAUSE >= until:
                return found
            await asyncio.sleep(PAUSE)

    async def one(self, send: Callable[[Any, float], Future[Any]], what: str) -> Any:
        """The only answer. Raises its error."""
        (found,) = (await self.ask(lambda client, timeout: {0: send(client, timeout)}, what)).values()
        if isinstance(found, KafkaError):
            raise failure(f"{self.at}: {what}", found)
        return found
