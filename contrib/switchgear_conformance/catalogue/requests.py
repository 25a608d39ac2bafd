"""Requests and their answers."""

from __future__ import annotations

import asyncio

from switchgear import Reject, Retry, Topic
from switchgear.errors import RequestFailed, RequestTimeout
from switchgear_conformance.case import case
from switchgear_conformance.context import Context

SOON = 10.0  # seconds within which an answer must have come
LITTLE = 0.5  # seconds that a request waits for an answer that does not come

prices = Topic("prices", str)


@case(56, "groups", "broadcast", level="bus")
async def request_reply_through_bus(c: Context) -> None:
    """Every request of every asker gets its own answer, however the answers are mixed."""
    responder, askers = c.bus(), [c.bus(name="asker"), c.bus(name="asker"), c.bus(name="other")]

    @responder.subscribe(prices, group="pricing", concurrency=16)
    async def price(word: str) -> str:
        await asyncio.sleep(0.05 if word.endswith("0") else 0.0)  # so that later requests are answered first
        return f"price of {word}"

    await c.serve(responder)
    for bus in askers:
        await c.opened(bus)

    async def ask(n: int, bus_number: int) -> tuple[str, str]:
        word = f"{bus_number}/{n}"
        return word, await askers[bus_number].request(prices, word, str, timeout=SOON)

    found = await asyncio.gather(*(ask(n, b) for n in range(12) for b in range(len(askers))))
    wrong = [(word, answer) for word, answer in found if answer != f"price of {word}"]
    assert not wrong, f"{len(wrong)} of {len(found)} requests got an answer that is not theirs, such as {wrong[0]}"


@case(56, "groups", "broadcast", level="bus", part="failure")
async def request_reply_failure_through_bus(c: Context) -> None:
    """What the responder rejects fails with its reason; the asker can go on."""
    bus = c.bus()

    @bus.subscribe(prices, group="pricing", retry=Retry(attempts=1))
    async def price(word: str) -> str:
        if word == "unknown":
            raise Reject("no such product")
        return word

    await c.serve(bus)
    try:
        answer = await bus.request(prices, "unknown", str, timeout=SOON)
    except RequestFailed as error:
        assert not isinstance(error, RequestTimeout), "the responder's rejection did not arrive"
        assert "no such product" in str(error), f"the reason did not arrive: {error}"
    else:
        raise AssertionError(f"the responder rejected it, and the request returned {answer!r}")
    assert await bus.request(prices, "known", str, timeout=SOON) == "known"


@case(56, "groups", "broadcast", level="bus", part="timeout")
async def request_reply_timeout_through_bus(c: Context) -> None:
    """Without an answer a request ends in time; the answer that comes too late is nobody's."""
    bus, asked = c.bus(grace=1), c.log()
    late = asyncio.Event()

    @bus.subscribe(prices, group="pricing", concurrency=8)
    async def price(word: str) -> str:
        asked.add(word)
        if word == "slow":
            await late.wait()
        return f"price of {word}"

    await c.serve(bus)
    assert await bus.request(prices, "warm", str, timeout=SOON) == "price of warm"
    began = c.time()
    try:
        answer = await bus.request(prices, "slow", str, timeout=LITTLE)
    except RequestTimeout:
        took = c.time() - began
        assert LITTLE - 0.02 <= took < LITTLE + 2, f"timeout={LITTLE} s, and it took {took:.2f} s"
    else:
        raise AssertionError(f"nobody had answered, and the request returned {answer!r}")
    late.set()
    for n in range(5):
        assert await bus.request(prices, f"next {n}", str, timeout=SOON) == f"price of next {n}"
    assert asked.items.count("slow") == 1
