"""Commands to the server and their replies: bounded in time, every failure one of our errors."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self, TypeAlias, cast

from hiredis import pack_command  # pyright: ignore[reportUnknownVariableType]
from redis import exceptions as client
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from switchgear.errors import (
    ConfigurationError,
    MaybeSent,
    NotFound,
    NotSent,
    Refused,
    SwitchgearError,
    TransportError,
    Unavailable,
)

from .scripts import TEXT, Script
from .tuning import Settings

Command: TypeAlias = tuple[Any, ...]

CODES: Final[tuple[tuple[str, type[TransportError], str], ...]] = (
    ("LOADING", Unavailable, "it is loading its data"),
    ("MASTERDOWN", Unavailable, "its primary is down"),
    ("CLUSTERDOWN", Unavailable, "the cluster is down"),
    ("TRYAGAIN", Unavailable, "a slot is being moved"),
    ("BUSY", Unavailable, "a script keeps it busy"),
    ("OOM", NotSent, "it is out of memory (maxmemory with the policy noeviction): nothing was stored"),
    ("MISCONF", NotSent, "it cannot save to disk and takes no writes"),
    ("NOREPLICAS", NotSent, "fewer replicas are connected than min-replicas-to-write"),
    ("READONLY", Refused, "it is a read-only replica: let the URL name the primary"),
    ("WRONGPASS", Refused, "wrong user or password: check the URL"),
    ("NOAUTH", Refused, "it wants a password: write redis://user:password@host"),
    ("NOPERM", Refused, "this user lacks the right: see ACL SETUSER"),
    ("WRONGTYPE", Refused, "the key exists and is no stream"),
    ("NOGROUP", NotFound, "no such group"),
    ("MOVED", Refused, "it is a cluster, which is not served: name one server"),
    ("CROSSSLOT", Refused, "it is a cluster, which is not served: name one server"),
)
CLASSES: Final[tuple[tuple[type[client.RedisError], str], ...]] = (
    (client.BusyLoadingError, "LOADING"), (client.MasterDownError, "MASTERDOWN"), (client.TryAgainError, "TRYAGAIN"),
    (client.ClusterDownError, "CLUSTERDOWN"), (client.OutOfMemoryError, "OOM"), (client.ReadOnlyError, "READONLY"),
    (client.AuthenticationError, "WRONGPASS"), (client.NoPermissionError, "NOPERM"), (client.MovedError, "MOVED"),
    (client.ClusterCrossSlotError, "CROSSSLOT"),
)  # fmt: skip


def refusal(address: str, said: str | client.RedisError) -> TransportError:
    """Our error for what the server replied."""
    code = said if isinstance(said, str) else getattr(said, "status_code", None) or str(said)
    if not isinstance(said, str):
        code = next((name for kind, name in CLASSES if isinstance(said, kind)), code)
    code = code.partition(" ")[0]
    for name, error, meaning in CODES:
        if code == name:
            return error(f"{address}: {meaning} ({said})")
    return Refused(f"{address}: {said}")


def failure(address: str, error: Exception, sent: bool) -> SwitchgearError:
    """Our error for a broken connection, `sent` or not yet when it broke."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ssl.SSLCertVerificationError):
            return ConfigurationError(f"{address}: {seen.verify_message}: name its authority with ?ca=/path/to/ca.pem")
        if isinstance(seen, ssl.SSLError) and seen.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
            return ConfigurationError(f"{address}: the server speaks no TLS there: write redis://, or its TLS port")
        seen = seen.__cause__ or seen.__context__
    if "Invalid Database" in str(error) or "DB index" in str(error):
        return ConfigurationError(f"{address}: no such database; its number is the path of the URL")
    if isinstance(error, client.ResponseError | client.AuthenticationError | client.BusyLoadingError):
        return refusal(address, error)
    if sent:
        return MaybeSent(f"{address}: the connection was lost before the answer came ({str(error) or 'timeout'})")
    if isinstance(error, TimeoutError | client.TimeoutError):
        hint = "; does that port speak TLS?" if address.startswith("rediss:") else ""
        return Unavailable(f"{address} cannot be reached: no answer in time{hint}")
    return Unavailable(f"{address} cannot be reached: {error}")


def vanished(reply: client.ResponseError) -> bool:
    """Whether the stream or the group is not there (any more)."""
    return "NOGROUP" in str(reply) or "no such key" in str(reply)


def call(script: Script, keys: Sequence[str], *arguments: Any) -> Command:
    """The command that runs a script."""
    return ("EVALSHA", script.sha, len(keys), *keys, *arguments)


class Wire:
    """A pool of connections for commands."""

    def __init__(self, settings: Settings) -> None:
        self.address = settings.address
        self.patience = settings.tuning.timeout
        self._closed = asyncio.Event()
        self._options = _options(settings)
        self._kind: type[Connection] = SSLConnection if settings.tls else Connection
        self._most = settings.tuning.connections
        self._all: list[AbstractConnection] = []
        self._free: list[AbstractConnection] = []  # the last that was given back is the next to go
        self._waiting: deque[asyncio.Future[AbstractConnection]] = deque()

    def soon(self) -> float:
        """The deadline of a call that has none of its own."""
        return asyncio.get_running_loop().time() + self.patience

    async def ask(self, commands: Sequence[Command], deadline: float) -> list[Any]:
        """Run commands on one connection, in order; a ResponseError takes the place of its reply.

        Raises Unavailable when nothing was sent, MaybeSent when the answer did not come, Refused for a wrong password,
        ConfigurationError for TLS that cannot work.
        """
        with _Mapping(self.address) as state:
            async with asyncio.timeout_at(deadline):
                if self._closed.is_set():
                    raise Unavailable(f"{self.address}: the connection is closed")
                connection = self._free.pop() if self._free else await self._another()
                try:
                    await _ensure(connection)
                    state.sent = True
                    return await exchange(connection, commands)
                except BaseException:
                    await connection.disconnect(nowait=True)  # an answer may still come: not for the next who asks
                    raise
                finally:
                    await self._give_back(connection)

    async def one(self, *command: Any, deadline: float | None = None) -> Any:
        """The reply to one command, its ResponseError raised as one of ours."""
        reply = (await self.ask([command], deadline or self.soon()))[0]
        if isinstance(reply, client.RedisError):
            raise refusal(self.address, reply) from reply
        return reply

    async def _another(self) -> AbstractConnection:
        """A connection when none is free: a new one, or the next that is given back."""
        if len(self._all) < self._most:
            connection = self._kind(**self._options)
            self._all.append(connection)
            return connection
        waiter: asyncio.Future[AbstractConnection] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                await self._give_back(waiter.result())
            raise

    async def _give_back(self, connection: AbstractConnection) -> None:
        if self._closed.is_set():
            await connection.disconnect(nowait=True)
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(connection)
                return
        self._free.append(connection)

    def line(self) -> Line:
        """One more connection, beside the pool."""
        return Line(self.address, self._kind(**self._options))

    async def close(self) -> None:
        """Close every connection; what is under way fails."""
        self._closed.set()
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_exception(Unavailable(f"{self.address}: the connection is closed"))
        for connection in self._all:
            with suppress(client.RedisError, OSError):
                await connection.disconnect()


class Line:
    """One connection, for reads that block."""

    def __init__(self, address: str, connection: AbstractConnection) -> None:
        self.id: int | None = None
        """The server's number of this connection, for CLIENT UNBLOCK."""
        self._address = address
        self._connection = connection

    async def ask(self, commands: Sequence[Command], deadline: float) -> list[Any]:
        """As `Wire.ask`; connects when it has to."""
        with _Mapping(self._address) as state:
            async with asyncio.timeout_at(deadline):
                if not self._connection.is_connected:
                    await self._connection.connect()  # type: ignore[no-untyped-call]
                    reply = (await exchange(self._connection, [("CLIENT", "ID")]))[0]
                    self.id = reply if isinstance(reply, int) else None
                state.sent = True
                return await exchange(self._connection, commands)

    async def close(self) -> None:
        """Disconnect; a read that blocks ends with an error."""
        self.id = None
        with suppress(client.RedisError, OSError):
            await self._connection.disconnect()


class _Mapping:
    """Turns the client's and the system's exceptions into ours."""

    def __init__(self, address: str) -> None:
        self.sent = False
        self._address = address

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if isinstance(error, client.RedisError | OSError):  # TimeoutError is an OSError
            raise failure(self._address, error, self.sent) from error


async def _ensure(connection: AbstractConnection) -> None:
    """Connect, and again where the server hung up since the last command: nothing is sent into the void."""
    reader = connection._reader
    if reader is not None and reader.at_eof():
        await connection.disconnect(nowait=True)
    if not connection.is_connected:
        await connection.connect()  # type: ignore[no-untyped-call]


async def exchange(connection: AbstractConnection, commands: Sequence[Command]) -> list[Any]:
    """Send commands in one packet and read the replies; scripts that the server does not know yet are loaded."""
    replies = await _round(connection, commands)
    for i, reply in enumerate(replies):
        if isinstance(reply, client.NoScriptError):
            await _round(connection, [("SCRIPT", "LOAD", text) for text in TEXT.values()])
            # What follows the first that failed may depend on it (WAIT does); what succeeded is not run again.
            again = [
                n for n in range(i, len(commands))
                if isinstance(replies[n], client.NoScriptError) or commands[n][0] != "EVALSHA"
            ]  # fmt: skip
            for n, late in zip(again, await _round(connection, [commands[n] for n in again]), strict=True):
                replies[n] = late
            break
    return replies


async def _round(connection: AbstractConnection, commands: Sequence[Command]) -> list[Any]:
    await connection.send_packed_command([b"".join(map(_packed, commands))], check_health=False)
    replies: list[Any] = []
    for _ in commands:
        try:
            replies.append(await connection.read_response())
        except client.ResponseError as error:
            replies.append(error)
    return replies


_packed = cast("Callable[[Command], bytes]", pack_command)


def _options(settings: Settings) -> dict[str, Any]:
    options: dict[str, Any] = {
        "host": settings.host, "port": settings.port, "db": settings.db, "username": settings.user,
        "password": settings.password, "protocol": 2, "socket_timeout": None,
        "socket_connect_timeout": settings.tuning.timeout, "retry": Retry(NoBackoff(), 0), "socket_keepalive": True,
    }  # fmt: skip
    if settings.tls:
        options |= {
            "ssl_ca_certs": settings.ca, "ssl_certfile": settings.cert, "ssl_keyfile": settings.key,
            "ssl_cert_reqs": "required" if settings.verify else "none", "ssl_check_hostname": settings.verify,
        }  # fmt: skip
    return options
