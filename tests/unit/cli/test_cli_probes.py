"""`/live` and `/ready` over HTTP."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import Any

import pytest

from switchgear import Bus, Health
from switchgear.cli.probes import address, overall, probes
from switchgear.errors import ConfigurationError


async def ask(port: int, request: str) -> tuple[int, dict[str, str], bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request.encode())
    answer = await reader.read()
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *fields = head.decode().split("\r\n")
    return int(first.split()[1]), dict(field.split(": ", 1) for field in fields), body


async def get(port: int, path: str) -> tuple[int, Any]:
    status, fields, body = await ask(port, f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n")
    assert fields["content-type"] == "application/json"
    assert int(fields["content-length"]) == len(body)
    return status, json.loads(body)


@pytest.mark.parametrize(
    ("live", "ready", "on_live", "on_ready"),
    [(True, True, 200, 200), (True, False, 200, 503), (False, False, 503, 503), (False, True, 503, 503)],
)
async def test_statuses(live: bool, ready: bool, on_live: int, on_ready: int) -> None:
    health = Health(live=live, ready=ready, detail={"broker": "connected"})
    async with probes("127.0.0.1:0", lambda: health) as port:
        assert port is not None
        assert await get(port, "/live") == (on_live, {"live": live, "ready": ready, "detail": {"broker": "connected"}})
        assert (await get(port, "/ready?verbose=1"))[0] == on_ready


async def test_other_requests() -> None:
    async with probes("127.0.0.1:0", lambda: Health(live=True, ready=True, detail={})) as port:
        assert port is not None
        assert (await get(port, "/metrics"))[0] == 404
        assert (await ask(port, "POST /live HTTP/1.1\r\n\r\n"))[0] == 405
        status, fields, body = await ask(port, "HEAD /live HTTP/1.1\r\n\r\n")
        assert (status, body, int(fields["content-length"]) > 0) == (200, b"", True)


async def test_who_asks_nothing_or_too_much_harms_nobody() -> None:
    async with probes("127.0.0.1:0", lambda: Health(live=True, ready=True, detail={})) as port:
        assert port is not None
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"x" * 100_000)
        with suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.close()
        assert (await get(port, "/live"))[0] == 200


async def test_a_port_that_is_taken() -> None:
    async with probes("127.0.0.1:0", lambda: Health(live=True, ready=True, detail={})) as port:
        with pytest.raises(ConfigurationError, match="cannot listen there"):
            async with probes(f"127.0.0.1:{port}", lambda: Health(live=True, ready=True, detail={})):
                pass


def test_addresses() -> None:
    assert address("8080") == ("", 8080)
    assert address("127.0.0.1:8080") == ("127.0.0.1", 8080)
    assert address("[::1]:8080") == ("::1", 8080)
    for wrong in ("", "x", "70000", "1.2.3.4:", "-1"):
        with pytest.raises(ConfigurationError, match="PORT or HOST:PORT"):
            address(wrong)


async def test_several_buses_are_as_well_as_the_worst_of_them() -> None:
    one, two = Bus("memory://", name="one"), Bus("memory://", name="two")
    async with one.serving():
        assert overall([one]) == one.health()
        together = overall([one, two])
        assert (together.live, together.ready) == (True, False)
        assert together.detail["two: broker"] == "not open"
        async with two.serving():
            assert overall([one, two]).ready
            assert not overall([one, two], started=False).ready
