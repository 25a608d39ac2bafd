"""A TCP proxy between clients and a broker, that does to connections what networks do.

It works on bytes and knows no protocol. A `Line` holds one proxy for each address of the broker, and what is wrong with
all of them at the moment. The proxies listen before the broker is started, so that a broker can advertise them.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections.abc import AsyncGenerator, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from .harness import Address, HarnessLied, Proxied

HOST = "127.0.0.1"
CHUNK = 1 << 16  # bytes read at once
BACKLOG = 100  # clients that wait to be taken
QUEUED = 16  # chunks that are on their way in one direction
TURNS = 4  # of the loop between two slices, so that a client on this loop reads them one by one
RST = struct.pack("ii", 1, 0)  # SO_LINGER: on, 0 seconds

Way = Literal["up", "down"]
"""Up: from the client to the broker; down: the responses."""


@dataclass
class Faults:
    """What is wrong; the defaults are a good network."""

    latency: float = 0.0
    """Seconds each way."""
    jitter: float = 0.0
    """Seconds more, at the most."""
    bandwidth: float = 0.0
    """Bytes a second, each way of each connection; 0: without bound."""
    slices: int = 0
    """Bytes of a segment; 0: as it comes."""
    random: random.Random = field(default_factory=random.Random)

    def delay(self) -> float:
        return self.latency + self.jitter * self.random.random() if self.jitter else self.latency

    @property
    def piece(self) -> int:
        """Bytes to forward at once."""
        sizes = [CHUNK, self.slices or CHUNK, max(1, int(self.bandwidth * 0.02)) if self.bandwidth else CHUNK]
        return min(sizes)


class Cut:
    """A response that ends too early: what `Line.cut` returns."""

    def __init__(self, request: int, response: int, every: bool) -> None:
        self.request, self.response, self.every = request, response, every
        self.happened = asyncio.Event()
        """A connection was cut."""


class Line:
    """All proxies before one broker, one an address."""

    def __init__(self) -> None:
        self._proxies: list[Proxy] = []
        self._connections: set[Connection] = set()
        self.faults = Faults()
        self.cuts: list[Cut] = []
        self.gates: dict[Way, asyncio.Event] = {"up": asyncio.Event(), "down": asyncio.Event()}
        for gate in self.gates.values():
            gate.set()
        self.connections = 0
        """How many clients have connected so far."""
        self.bytes: dict[Way, int] = {"up": 0, "down": 0}
        """How many bytes were forwarded so far."""

    @classmethod
    async def open(cls, count: int) -> Line:
        """Listen on `count` free ports, before the broker is started."""
        line = cls()
        for _ in range(count):
            line._proxies.append(Proxy(line))
        line._listen()
        return line

    @property
    def addresses(self) -> Sequence[Address]:
        return [proxy.address for proxy in self._proxies]

    def connect(self, broker: Any) -> None:
        """Forward to this broker from now on. Raises HarnessLied where it has not as many addresses as there are
        proxies."""
        upstream = list(broker.upstream) if isinstance(broker, Proxied) else []
        if len(upstream) != len(self._proxies):
            raise HarnessLied(
                f"the broker's `upstream` names {len(upstream)} addresses and the harness says "
                f"addresses={len(self._proxies)}: let it say how many each of its brokers has"
            )
        self.forward(*upstream)

    def forward(self, *upstream: Address) -> None:
        """Forward to these addresses, one a proxy."""
        for proxy, address in zip(self._proxies, upstream, strict=True):
            proxy.upstream = address

    def must_have_been_used(self, harness: str) -> None:
        """Raises HarnessLied if no client came through: the URL of `through` leads past the proxies."""
        if not self.bytes["up"]:
            raise HarnessLied(
                f"the harness {harness!r} claims ctl:proxy, and no byte came through the proxies: `through(addresses)` "
                "has to return a URL whose clients connect to these addresses alone, and a broker that tells clients "
                "its own addresses has to tell `Setup.advertise`"
            )

    async def close(self) -> None:
        """End every connection and give the ports back."""
        for proxy in self._proxies:
            proxy.close()
        await self.reset()
        for proxy in self._proxies:
            proxy.reserved.close()

    # ---- what a network does

    def latency(self, seconds: float, *, jitter: float = 0.0, seed: int = 0) -> None:
        """Delay each way by so many seconds, and up to `jitter` seconds more; nothing overtakes."""
        self.faults.latency, self.faults.jitter, self.faults.random = seconds, jitter, random.Random(seed)

    def bandwidth(self, rate: float) -> None:
        """Forward at most so many bytes a second, each way of each connection."""
        self.faults.bandwidth = rate

    def slices(self, size: int) -> None:
        """Forward segments of at most so many bytes."""
        self.faults.slices = size

    async def reset(self) -> None:
        """RST every connection, at both ends; new ones are taken."""
        tasks = [connection.task for connection in self._connections]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # an aborted transport closes its socket in the next turn

    def black_hole(self, *ways: Way) -> None:
        """Forward nothing in these directions (default: both). Connections stay, new ones are accepted; what was sent
        arrives after `heal`, as when a network resends."""
        for way in ways or ("up", "down"):
            self.gates[way].clear()

    def strand(self) -> None:
        """Forward nothing any more on the connections that are there, for good, and tell neither end; new ones work."""
        shut: dict[Way, asyncio.Event] = {"up": asyncio.Event(), "down": asyncio.Event()}
        for connection in self._connections:
            connection.gates = shut

    async def down(self) -> None:
        """Cut every connection and refuse new ones, until `heal`."""
        for proxy in self._proxies:
            proxy.close()
        await self.reset()

    def cut(self, *, request: int = 1, response: int = 0, every: bool = False) -> Cut:
        """RST a connection once `response` bytes of a response have passed.

        It is the first connection on which from now on `request` bytes or more go to the broker; the bytes counted as
        the response are those that come after them. So with response=0 the broker has answered, and nobody heard it.
        With `every` it goes on with each further connection that does so, until `heal`.
        """
        cut = Cut(request, response, every)
        self.cuts.append(cut)
        return cut

    async def heal(self) -> None:
        """A good network again; connections that are there go on."""
        self.faults = Faults()
        self.cuts.clear()
        for gate in self.gates.values():
            gate.set()
        self._listen()

    @asynccontextmanager
    async def broken(self) -> AsyncGenerator[None]:
        """`down` for a while."""
        await self.down()
        try:
            yield
        finally:
            await self.heal()

    # ---- inside

    def _listen(self) -> None:
        for proxy in self._proxies:
            proxy.listen()

    def accepted(self, upstream: Address | None, client: socket.socket) -> None:
        self.connections += 1
        connection = Connection(self, upstream, client)
        self._connections.add(connection)
        connection.task.add_done_callback(lambda _: self._connections.discard(connection))


class Proxy:
    """One listening port. While it is closed a second socket keeps the port from being given to anybody else."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self.upstream: Address | None = None
        self._listening: socket.socket | None = None
        self.reserved = _bound(0)
        self.address: Address = (HOST, self.reserved.getsockname()[1])

    def listen(self) -> None:
        """Take clients from now on.

        Not by asyncio's server, which lets clients lie that it has accepted in the turn in which it is closed.
        """
        if self._listening is None:
            self._listening = _bound(self.address[1])
            self._listening.setblocking(False)
            self._listening.listen(BACKLOG)
            asyncio.get_running_loop().add_reader(self._listening, self._accept)

    def _accept(self) -> None:
        while self._listening is not None:
            try:
                client, _ = self._listening.accept()
            except OSError:  # there is none, or it is gone
                return
            client.setblocking(False)
            self._line.accepted(self.upstream, client)

    def close(self) -> None:
        listening, self._listening = self._listening, None
        if listening is not None:
            asyncio.get_running_loop().remove_reader(listening)
            listening.close()


def _bound(port: int) -> socket.socket:
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind((HOST, port))
    return bound


def _abort(writer: asyncio.StreamWriter) -> None:
    """RST."""
    with suppress(OSError):
        _socket(writer).setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
    writer.transport.abort()


async def _streams(client: socket.socket) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await loop.connect_accepted_socket(lambda: protocol, client)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


class Severed(Exception):
    """A cut fell due."""


class Connection:
    """One client's connection, and ours to the broker for it."""

    def __init__(self, line: Line, upstream: Address | None, client: socket.socket) -> None:
        self._line, self._upstream, self._client = line, upstream, client
        self.gates = line.gates
        self._sent: dict[Cut, int] = {}
        """By cut, bytes that have gone up since."""
        self._left: dict[Cut, int] = {}
        """Cuts that have found this connection, and bytes that may still come down."""
        self._writers: list[asyncio.StreamWriter] = []
        self._whole = False
        """Whether both ends have said all they had to say."""
        self.task = asyncio.get_running_loop().create_task(self._run(), name="proxy")
        self.task.add_done_callback(self._end)  # no `finally`: a task that is cancelled early has run nothing of it

    def _end(self, task: asyncio.Task[None]) -> None:
        for writer in self._writers:
            if self._whole:
                writer.transport.abort()
            else:
                _abort(writer)
        if not self._writers:
            with suppress(OSError):
                self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
            self._client.close()

    async def _run(self) -> None:
        writers = self._writers
        try:
            if self._upstream is None:
                return
            said, client = await _streams(self._client)
            writers.append(client)
            answers, broker = await asyncio.open_connection(*self._upstream)
            writers.append(broker)
            for each in writers:
                _socket(each).setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                each.transport.set_write_buffer_limits(0)  # so that `drain` waits until all is with the kernel
            await _together(self._pump("up", said, broker), self._pump("down", answers, client))
            self._whole = True
        except OSError:  # the broker is not there, or one end is gone: so is the other, as soon as it can hear of it
            for gate in self.gates.values():
                await gate.wait()
        except Severed:
            pass

    async def _pump(self, way: Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(QUEUED)
        await _together(self._take(reader, queue), self._forward(way, queue, writer))

    async def _take(self, reader: asyncio.StreamReader, queue: asyncio.Queue[tuple[float, bytes]]) -> None:
        time = asyncio.get_running_loop().time
        due = 0.0
        while True:
            data = await reader.read(CHUNK)
            due = max(due, time() + self._line.faults.delay())
            await queue.put((due, data))
            if not data:
                return

    async def _forward(self, way: Way, queue: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        line, time = self._line, asyncio.get_running_loop().time
        while True:
            due, data = await queue.get()
            if (wait := due - time()) > 0:
                await asyncio.sleep(wait)
            if not data:
                await self.gates[way].wait()
                writer.write_eof()
                return
            while data:
                await self.gates[way].wait()
                faults = line.faults
                piece, data = data[: faults.piece], data[faults.piece :]
                if faults.bandwidth:
                    await asyncio.sleep(len(piece) / faults.bandwidth)
                for part in self._passing(way, piece):
                    writer.write(part)
                    line.bytes[way] += len(part)
                    await writer.drain()
                if faults.slices:
                    for _ in range(TURNS):
                        await asyncio.sleep(0)

    def _passing(self, way: Way, piece: bytes) -> Iterator[bytes]:
        """What of a piece may pass. Raises Severed where a cut is due."""
        if way == "up":
            for cut in list(self._line.cuts):
                sent = self._sent[cut] = self._sent.get(cut, 0) + len(piece)
                if sent >= cut.request and cut not in self._left:
                    self._left[cut] = cut.response
                    if not cut.every:
                        self._line.cuts.remove(cut)
        elif self._left:
            cut, left = min(self._left.items(), key=lambda item: item[1])
            if len(piece) > left:
                if left:
                    yield piece[:left]
                cut.happened.set()
                raise Severed
            for cut in self._left:
                self._left[cut] -= len(piece)
        yield piece


async def _together(*both: Coroutine[Any, Any, None]) -> None:
    """Until all have ended, or one failed: its error is raised, the others are cancelled."""
    tasks = [asyncio.create_task(one, name="proxy") for one in both]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _socket(writer: asyncio.StreamWriter) -> socket.socket:
    found: socket.socket = writer.get_extra_info("socket")
    return found
