"""The kit's TCP proxy: each fault, as a bare client sees it."""

from __future__ import annotations

import asyncio
import gc
import socket
import time
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from switchgear_conformance.harness import HarnessLied
from switchgear_conformance.proxy import HOST, Line

WITHIN = 10.0  # seconds: nothing here takes so long
Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Broker:
    """Sends back what it gets, and keeps what it got; "!" in it makes it hang up."""

    def __init__(self) -> None:
        self.got = bytearray()
        self.sizes: list[int] = []
        self.ends: list[str] = []
        self.ended = asyncio.Event()
        self.more = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 20):
                self.got += data
                self.sizes.append(len(data))
                self.more.set()
                writer.write(data)
                await writer.drain()
                if b"!" in data:
                    break
            self.ends.append("closed")
        except ConnectionResetError:
            self.ends.append("reset")
        finally:
            self.ended.set()
            writer.close()


@pytest.fixture
async def broker() -> AsyncIterator[Broker]:
    broker = Broker()
    broker.server = await asyncio.start_server(broker.serve, HOST, 0)  # type: ignore[attr-defined]
    yield broker
    broker.server.close()  # type: ignore[attr-defined]


@pytest.fixture
async def line(broker: Broker) -> AsyncIterator[Line]:
    line = await Line.open(1)
    line.forward(broker.server.sockets[0].getsockname())  # type: ignore[attr-defined]
    yield line
    await line.close()
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "proxy"]


@pytest.fixture
async def clients(line: Line) -> AsyncIterator[list[Client]]:
    opened: list[Client] = []
    yield opened
    for _, writer in opened:
        writer.transport.abort()


async def client(line: Line, clients: list[Client]) -> Client:
    async with asyncio.timeout(WITHIN):
        clients.append(await asyncio.open_connection(*line.addresses[0]))
    return clients[-1]


async def said(reader: asyncio.StreamReader, count: int) -> bytes:
    async with asyncio.timeout(WITHIN):
        return await reader.readexactly(count)


async def silent(reader: asyncio.StreamReader) -> None:
    """Nothing comes, though a connection past the proxy would have answered many times by now."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await reader.read(1)


async def test_forwards_and_counts(line: Line, broker: Broker, clients: list[Client]) -> None:
    body = bytes(range(256)) * 4000
    body = body.replace(b"!", b"")
    for n in (1, 2):
        reader, writer = await client(line, clients)
        writer.write(body)
        assert await said(reader, len(body)) == body
        assert line.connections == n
        assert line.bytes == {"up": n * len(body), "down": n * len(body)}
    line.must_have_been_used("mine")


async def test_an_end_is_passed_on_with_all_before_it(line: Line, broker: Broker, clients: list[Client]) -> None:
    reader, writer = await client(line, clients)
    writer.write(b"x" * 300_000)
    writer.write_eof()
    async with asyncio.timeout(WITHIN):
        assert await reader.read() == b"x" * 300_000
    assert broker.ends == ["closed"]
    reader, writer = await client(line, clients)
    writer.write(b"bye!")
    async with asyncio.timeout(WITHIN):
        assert await reader.read() == b"bye!"


async def test_latency_delays_both_ways_and_keeps_the_order(line: Line, clients: list[Client]) -> None:
    reader, writer = await client(line, clients)
    line.latency(0.05, jitter=0.02, seed=3)
    began = time.monotonic()
    for n in range(10):
        writer.write(b"%d" % n)
        await asyncio.sleep(0)
    assert await said(reader, 10) == b"0123456789"
    assert 0.1 <= time.monotonic() - began < WITHIN


async def test_jitter_is_seeded(line: Line) -> None:
    delays: list[list[float]] = []
    for seed in (1, 1, 2):
        line.latency(0.1, jitter=0.5, seed=seed)
        delays.append([line.faults.delay() for _ in range(20)])
    assert delays[0] == delays[1] != delays[2]
    assert all(0.1 <= delay <= 0.6 for delay in delays[0])


async def test_bandwidth(line: Line, clients: list[Client]) -> None:
    reader, writer = await client(line, clients)
    line.bandwidth(100_000)
    began = time.monotonic()
    writer.write(b"x" * 20_000)
    assert await said(reader, 20_000) == b"x" * 20_000
    assert 0.19 < time.monotonic() - began < WITHIN


async def test_slices(line: Line, broker: Broker, clients: list[Client]) -> None:
    reader, writer = await client(line, clients)
    line.slices(7)
    body = bytes(range(34, 234))
    writer.write(body)
    assert await said(reader, 200) == body
    assert len(broker.sizes) > 5
    assert bytes(broker.got) == body


async def test_reset_is_seen_at_both_ends(line: Line, broker: Broker, clients: list[Client]) -> None:
    reader, writer = await client(line, clients)
    writer.write(b"x")
    await said(reader, 1)
    await line.reset()
    async with asyncio.timeout(WITHIN):
        with pytest.raises(ConnectionResetError):
            await reader.read(1)
        await broker.ended.wait()
    assert broker.ends == ["reset"]
    reader, writer = await client(line, clients)
    writer.write(b"again")
    assert await said(reader, 5) == b"again"


async def test_down_cuts_and_refuses_until_healed(line: Line, clients: list[Client]) -> None:
    reader, writer = await client(line, clients)
    writer.write(b"x")
    await said(reader, 1)
    async with line.broken():
        async with asyncio.timeout(WITHIN):
            with pytest.raises(ConnectionResetError):
                await reader.read(1)
        for _ in range(3):
            with pytest.raises(ConnectionRefusedError):
                await client(line, clients)
    reader, writer = await client(line, clients)
    writer.write(b"again")
    assert await said(reader, 5) == b"again"


async def test_down_before_the_first_client(line: Line, clients: list[Client]) -> None:
    await line.down()
    with pytest.raises(ConnectionRefusedError):
        await client(line, clients)
    await line.heal()
    await client(line, clients)


async def test_black_hole_keeps_old_and_new_connections_silent(
    line: Line, broker: Broker, clients: list[Client]
) -> None:
    old, old_writer = await client(line, clients)
    old_writer.write(b"a")
    await said(old, 1)
    line.black_hole()
    new, new_writer = await client(line, clients)
    old_writer.write(b"b")
    new_writer.write(b"c")
    await silent(old)
    await silent(new)
    assert broker.got == b"a"
    await line.heal()
    assert (await said(old, 1), await said(new, 1)) == (b"b", b"c")


async def test_black_hole_of_responses_alone(line: Line, broker: Broker, clients: list[Client]) -> None:
    reader, writer = await client(line, clients)
    line.black_hole("down")
    writer.write(b"asked")
    async with asyncio.timeout(WITHIN):
        await broker.more.wait()
    await silent(reader)
    assert broker.got == b"asked"
    await line.heal()
    assert await said(reader, 5) == b"asked"


async def test_stranded_connections_stay_silent_for_good(line: Line, broker: Broker, clients: list[Client]) -> None:
    old, old_writer = await client(line, clients)
    old_writer.write(b"a")
    await said(old, 1)
    line.strand()
    old_writer.write(b"b")
    new, new_writer = await client(line, clients)
    new_writer.write(b"c")
    assert await said(new, 1) == b"c"
    await line.heal()
    await silent(old)
    assert broker.got == b"ac"


async def test_a_broker_hears_of_a_reset_in_a_black_hole_when_it_ends(
    line: Line, broker: Broker, clients: list[Client]
) -> None:
    reader, writer = await client(line, clients)
    writer.write(b"a")
    await said(reader, 1)
    line.black_hole()
    writer.transport.abort()
    await asyncio.sleep(0.05)
    assert broker.ends == []
    await line.heal()
    async with asyncio.timeout(WITHIN):
        await broker.ended.wait()


async def test_a_broker_that_is_not_there(broker: Broker, clients: list[Client]) -> None:
    line = await Line.open(1)
    try:
        for _ in range(2):  # not told where, then told and nobody there
            reader, _ = await client(line, clients)
            async with asyncio.timeout(WITHIN):
                with pytest.raises(ConnectionResetError):
                    await reader.read(1)
            server = await asyncio.start_server(broker.serve, HOST, 0)
            line.forward(server.sockets[0].getsockname())
            server.close()
            await server.wait_closed()
    finally:
        await line.close()


@pytest.mark.parametrize("response", [0, 3])
async def test_a_cut_response(response: int, line: Line, broker: Broker, clients: list[Client]) -> None:
    quiet, quiet_writer = await client(line, clients)
    reader, writer = await client(line, clients)
    cut = line.cut(request=8, response=response)
    quiet_writer.write(b"ping")
    assert await said(quiet, 4) == b"ping"
    assert not cut.happened.is_set()
    writer.write(b"a request")
    found = b""
    async with asyncio.timeout(WITHIN):
        with pytest.raises(ConnectionResetError):
            while True:
                found += await reader.readexactly(1)
        await cut.happened.wait()
    assert found in (b"a request"[:response], b"")  # a reader may hear of the RST before it has read
    assert bytes(broker.got) == b"pinga request"
    quiet_writer.write(b"a request")
    assert await said(quiet, 9) == b"a request", "only one connection is cut"


async def test_every_response_is_cut_until_healed(line: Line, broker: Broker, clients: list[Client]) -> None:
    line.cut(every=True)
    for _ in range(2):
        reader, writer = await client(line, clients)
        writer.write(b"x")
        async with asyncio.timeout(WITHIN):
            with pytest.raises(ConnectionResetError):
                await reader.read(1)
    assert broker.got == b"xx"
    await line.heal()
    reader, writer = await client(line, clients)
    writer.write(b"x")
    assert await said(reader, 1) == b"x"


async def test_as_many_proxies_as_addresses(broker: Broker) -> None:
    class Two:
        upstream = ((HOST, 1), (HOST, 2))

        def through(self, addresses: object) -> str:
            raise NotImplementedError

    line = await Line.open(1)
    try:
        with pytest.raises(HarnessLied, match="names 2 addresses and the harness says addresses=1"):
            line.connect(Two())
        with pytest.raises(HarnessLied, match="names 0 addresses"):
            line.connect(object())
        with pytest.raises(HarnessLied, match=r"'mine' claims ctl:proxy.*`through\(addresses\)`"):
            line.must_have_been_used("mine")
    finally:
        await line.close()


async def test_addresses_are_its_own() -> None:
    line, other = await Line.open(3), await Line.open(1)
    try:
        assert len({*line.addresses, *other.addresses}) == 4
        await line.down()
        again = await Line.open(5)
        assert not {*line.addresses} & {*again.addresses}, "ports are kept while they are refused"
        await again.close()
    finally:
        await line.close()
        await other.close()


@pytest.mark.parametrize("turns", range(6))
async def test_no_client_is_left_that_came_as_the_line_went_down(line: Line, turns: int) -> None:
    with socket.socket() as one:
        one.connect(line.addresses[0])
        for _ in range(turns):
            await asyncio.sleep(0)
        await line.down()
        gc.collect()  # what nobody closed warns now
        one.settimeout(WITHIN)
        with suppress(ConnectionResetError):
            assert one.recv(1) == b""
