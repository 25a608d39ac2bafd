"""Request and reply."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from switchgear import (
    Bus,
    CodecError,
    Drop,
    Message,
    Misuse,
    Reject,
    RequestFailed,
    RequestTimeout,
    Retry,
    RetryAfter,
    Topic,
    Unavailable,
    Unsupported,
)
from switchgear import core as core_module
from switchgear.replies import is_reply_address
from tests.support.scripted import ScriptedTransport
from tests.support.virtual import virtual


class Quote(msgspec.Struct):
    price: int


asks = Topic("asks", dict)


def memory_bus(name: str = "tests") -> Bus:
    return Bus("memory://shared", name=name, config={})


@virtual
async def test_an_answer_comes_back_decoded() -> None:
    bus = memory_bus()

    @bus.subscribe(asks, group="g")
    async def answer(ask: dict[str, int]) -> Quote:
        return Quote(ask["n"] * 2)

    async with bus.serving():
        assert await bus.request(asks, {"n": 21}, Quote) == Quote(42)
        assert await bus.request("asks", {"n": 1}, dict) == {"price": 2}


@virtual
async def test_many_at_once_each_get_their_own_and_other_instances_none() -> None:
    server, client, other = memory_bus("server"), memory_bus("client"), memory_bus("client")

    @server.subscribe(asks, group="g", concurrency=8)
    async def answer(ask: dict[str, int]) -> int:
        await asyncio.sleep(0.01 * (ask["n"] % 7))
        return ask["n"]

    async with server.serving(), client, other:
        found = await asyncio.gather(
            *(client.request(asks, {"n": n}, int) for n in range(0, 100, 2)),
            *(other.request(asks, {"n": n}, int) for n in range(1, 100, 2)),
        )
    assert found == [*range(0, 100, 2), *range(1, 100, 2)]


@virtual
async def test_nothing_is_an_answer_too() -> None:
    bus = memory_bus()

    @bus.subscribe(asks, group="g")
    async def answer(ask: dict[str, int]) -> None: ...

    async with bus.serving():
        assert await bus.request(asks, {}, type(None)) is None


@virtual
async def test_an_answer_goes_to_the_next_topic_as_well() -> None:
    bus = memory_bus()
    seen: list[dict[str, int]] = []

    @bus.subscribe(asks, group="g", to="answers")
    async def answer(ask: dict[str, int]) -> dict[str, int]:
        return {"n": ask["n"] + 1}

    @bus.subscribe("answers", group="g")
    async def collect(answer: dict[str, int]) -> None:
        seen.append(answer)

    async with bus.serving():
        assert await bus.request(asks, {"n": 1}, dict) == {"n": 2}
        await asyncio.sleep(0.1)
    assert seen == [{"n": 2}]


@pytest.mark.parametrize("dead_letter", [True, False])
@virtual
async def test_a_rejection_is_the_askers_error(dead_letter: bool) -> None:
    bus = memory_bus()

    @bus.subscribe(asks, group="g", dead_letter=dead_letter)
    async def answer(ask: dict[str, int]) -> int:
        raise Reject("out of stock: ß")

    async with bus.serving():
        with pytest.raises(RequestFailed, match="out of stock: ß") as caught:
            await bus.request(asks, {}, int)
        assert not isinstance(caught.value, RequestTimeout)


@virtual
async def test_exhausted_retries_are_answered_and_a_retry_that_works_too() -> None:
    bus = memory_bus()
    attempts: list[int] = []

    @bus.subscribe(asks, group="g", retry=Retry(attempts=3, base=0.01))
    async def answer(ask: dict[str, bool], message: Message[Any]) -> str:
        attempts.append(message.attempt)
        if ask["works"] and message.attempt == 2:
            return "at last"
        raise RetryAfter(0.01, "later")

    async with bus.serving():
        assert await bus.request(asks, {"works": True}, str) == "at last"
        with pytest.raises(RequestFailed, match="later"):
            await bus.request(asks, {"works": False}, str)
    assert attempts == [1, 2, 1, 2, 3]


@virtual
async def test_a_request_that_is_dropped_is_answered_too() -> None:
    bus = memory_bus()

    @bus.subscribe(asks, group="g")
    async def answer(ask: dict[str, int]) -> int:
        raise Drop("not ours")

    async with bus.serving():
        with pytest.raises(RequestFailed, match="not ours"):
            await bus.request(asks, {}, int, timeout=5)


@virtual
async def test_no_answer_in_time_is_a_timeout_and_a_late_one_harms_nobody() -> None:
    bus = memory_bus()

    @bus.subscribe(asks, group="g")
    async def answer(ask: dict[str, float]) -> str:
        await asyncio.sleep(ask["pause"])
        return "late"

    async with bus.serving():
        began = asyncio.get_running_loop().time()
        with pytest.raises(RequestTimeout, match="no answer from 'asks' within 1 s") as caught:
            await bus.request(asks, {"pause": 2.0}, str, timeout=1)
        assert isinstance(caught.value, TimeoutError)
        assert asyncio.get_running_loop().time() - began == pytest.approx(1.0, abs=0.1)
        await asyncio.sleep(5)
        assert await bus.request(asks, {"pause": 0.0}, str) == "late"
        assert bus._open is not None
        assert bus._open.replies is not None
        assert bus._open.replies._waiting == {}


@virtual
async def test_an_answer_that_is_something_else_is_a_codec_error() -> None:
    bus = memory_bus()

    @bus.subscribe(asks, group="g")
    async def answer(ask: dict[str, int]) -> str:
        return "text"

    async with bus.serving():
        with pytest.raises(CodecError):
            await bus.request(asks, {}, Quote)


@virtual
async def test_an_answer_that_cannot_be_encoded_is_the_handlers_failure() -> None:
    bus = memory_bus()

    @bus.subscribe(asks, group="g", retry=Retry(attempts=1))
    async def answer(ask: dict[str, int]) -> object:
        return object()

    async with bus.serving():
        with pytest.raises(RequestFailed, match="object"):
            await bus.request(asks, {}, str)


@virtual
async def test_dataclasses_and_pydantic_models_travel_back() -> None:
    pydantic = pytest.importorskip("pydantic")

    @dataclass
    class Plain:
        n: int

    class Model(pydantic.BaseModel):  # type: ignore[misc, name-defined]
        n: int

    bus = memory_bus()

    @bus.subscribe(asks, group="g")
    async def answer(ask: dict[str, str]) -> Any:
        return Model(n=1) if ask["as"] == "model" else Plain(2)

    async with bus.serving():
        assert await bus.request(asks, {"as": "model"}, Model) == Model(n=1)
        assert await bus.request(asks, {"as": "plain"}, Plain) == Plain(2)


@virtual
async def test_a_foreign_return_address_is_not_honoured() -> None:
    bus = memory_bus()
    stolen: list[Any] = []
    handled: list[int] = []

    @bus.subscribe(asks, group="g")
    async def answer(ask: dict[str, int]) -> str:
        handled.append(1)
        return "secret"

    @bus.subscribe("public", group="g")
    async def steal(body: Any) -> None:
        stolen.append(body)

    async with bus.serving():
        core = bus._open
        assert core is not None
        writer = await core.writer(asks, core.loop.time() + 5)
        for address in ("public", "public/abc", "sg.dlq.orders.g/abc", "sg.reply./abc", "sg.reply.x/a\u0000"):
            out = writer.message({"n": 1}, {}, None)
            headers = [*out.headers, ("ce-replyto", address.encode())]
            await core.emit(msgspec.structs.replace(out, marked=True, headers=headers))
        await asyncio.sleep(1)
    assert stolen == []
    assert len(handled) >= 4


@pytest.mark.parametrize(
    ("address", "good"),
    [
        ("sg.reply.shop/0a1b2c", True),
        ("sg.reply.shop.api/0a1b2c", True),
        ("sg.reply.shop", False),
        ("sg.reply./0a1b2c", False),
        ("sg.reply.shop/", False),
        ("sg.reply.shop/a/b", False),
        ("sg.retry.orders.g/abc", False),
        ("orders/abc", False),
        ("", False),
    ],
)
def test_return_addresses(address: str, good: bool) -> None:
    assert is_reply_address(address) is good


@virtual
async def test_closing_tells_who_waits() -> None:
    server, client = memory_bus("server"), memory_bus("client")

    @server.subscribe(asks, group="g")
    async def answer(ask: dict[str, int]) -> None:
        await asyncio.sleep(20)

    async with server.serving():
        async with client:
            asking = asyncio.create_task(client.request(asks, {}, str, timeout=60))
            await asyncio.sleep(1)
        with pytest.raises(RequestFailed, match="closed before the answer"):
            await asking


@virtual
async def test_the_timeout_covers_a_broker_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    transport = ScriptedTransport()
    transport.connects = [Unavailable("refused")] * 1000
    monkeypatch.setattr(core_module, "open_transport", lambda url, tuning: transport)
    bus = Bus("double://", name="tests", config={})
    async with bus:
        began = asyncio.get_running_loop().time()
        with pytest.raises(Unavailable):
            await bus.request(asks, {}, str, timeout=2)
        assert asyncio.get_running_loop().time() - began == pytest.approx(2.0, abs=0.1)
    with pytest.raises(Misuse):
        await bus.request(asks, {}, str)


@virtual
async def test_a_broker_without_broadcast_has_no_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    transport = ScriptedTransport(broadcast=False)
    monkeypatch.setattr(core_module, "open_transport", lambda url, tuning: transport)
    async with Bus("double://", name="tests", config={}) as bus:
        with pytest.raises(Unsupported, match="double:// has no broadcast"):
            await bus.request(asks, {}, str)
    assert transport.stored == []


@virtual
async def test_a_request_from_a_handler_goes_on_with_the_correlation() -> None:
    bus = memory_bus()
    seen: dict[str, tuple[str, str]] = {}

    @bus.subscribe(asks, group="g")
    async def answer(ask: dict[str, int], message: Message[Any]) -> str:
        seen["asked"] = (message.correlation_id, str(message._attributes().causation_id))
        return "yes"

    @bus.subscribe("orders", group="g")
    async def order(body: dict[str, int], message: Message[Any]) -> None:
        seen["order"] = (message.correlation_id, message.id)
        await bus.request(asks, {}, str)

    async with bus.serving():
        first = await bus.publish("orders", {})
        await asyncio.sleep(1)
    assert seen["order"] == (first, first)
    assert seen["asked"] == (first, first)
