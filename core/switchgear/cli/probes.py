"""`/live` and `/ready` over HTTP, for a container's probes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager

import msgspec

from switchgear import Bus, Health
from switchgear.errors import ConfigurationError

PATIENCE = 5.0  # seconds for a request to arrive
LONGEST = 8192  # bytes of a request's head


def address(text: str) -> tuple[str, int]:
    """`PORT` or `HOST:PORT`; every interface without a host, for probes from outside. Raises ConfigurationError."""
    host, _, port = text.rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        raise ConfigurationError(f"--health {text!r}: expected PORT or HOST:PORT, for example 8080")
    return host.strip("[]"), int(port)


def overall(buses: Iterable[Bus], started: bool = True) -> Health:
    """The health of all buses as one, not ready before all have `started`; details by bus where there are several."""
    states = {bus.name: bus.health() for bus in buses}
    return Health(
        live=all(state.live for state in states.values()),
        ready=started and all(state.ready for state in states.values()),
        detail={
            (f"{name}: {what}" if len(states) > 1 else what): text
            for name, state in states.items()
            for what, text in state.detail.items()
        },
    )


@asynccontextmanager
async def probes(listen: str | None, health: Callable[[], Health]) -> AsyncGenerator[int | None]:
    """Answer while the block runs; yields the port. Raises ConfigurationError when it is taken."""
    if listen is None:
        yield None
        return
    host, port = address(listen)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(response(head, health))
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # a peer that asks nothing gets no answer
        finally:
            writer.close()

    try:
        server = await asyncio.start_server(answer, host or None, port, limit=LONGEST)
    except OSError as error:
        raise ConfigurationError(f"--health {listen}: cannot listen there: {error.strerror or error}") from None
    async with server:
        yield server.sockets[0].getsockname()[1]


def response(request: bytes, health: Callable[[], Health]) -> bytes:
    """The whole answer to a request's head."""
    method, _, rest = request.partition(b" ")
    path = rest.partition(b" ")[0].partition(b"?")[0]
    if method not in (b"GET", b"HEAD"):
        status, body = "405 Method Not Allowed", b'{"error":"only GET and HEAD"}'
    elif path not in (b"/live", b"/ready"):
        status, body = "404 Not Found", b'{"error":"only /live and /ready"}'
    else:
        state = health()
        good = state.live if path == b"/live" else state.live and state.ready
        status = "200 OK" if good else "503 Service Unavailable"
        body = msgspec.json.encode(state)
    head = (
        f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        "cache-control: no-store\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + (b"" if method == b"HEAD" else body)
