from __future__ import annotations

import asyncio
import time

import pytest

from switchgear.errors import Refused, Unavailable
from switchgear_kafka.tokens import Tokens
from tests.brokers.identity import provider


async def test_a_token_is_shared_and_renewed_before_it_expires() -> None:
    with provider() as server:
        tokens = Tokens(server.url, "admin", "s p@:", scope="kafka")
        first = await asyncio.gather(*(tokens.get() for _ in range(5)))
        assert len(set(first)) == 1
        assert server.given == 1
        assert 590 < first[0].expires - time.time() <= 600
        assert tokens.current() == first[0]
        tokens._renew = time.time()  # most of its lifetime is over
        assert (await tokens.get()).expires >= first[0].expires
        assert server.given == 2


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        (None, Refused, "401 invalid_client: check the client's id and secret"),
        ((403, b"no JSON"), Refused, "answers 403 Forbidden"),
        ((302, b""), Refused, "answers 302"),
        ((503, b""), Unavailable, "answers 503"),
        ((200, b"<html>"), Refused, "without an access_token: is it the right URL"),
        ((200, b'{"access_token": 1}'), Refused, "without an access_token"),
        ((200, b'{"access_token": "x", "expires_in": "soon"}'), Refused, "without an access_token"),
        ((200, b"[]"), Refused, "without an access_token"),
    ],
)
async def test_what_is_no_token(answer: tuple[int, bytes] | None, error: type[Exception], says: str) -> None:
    with provider() as server:
        server.answer = answer
        with pytest.raises(error, match=says) as caught:
            await Tokens(server.url, "admin", "guessed-wrong").get()
    assert "guessed-wrong" not in str(caught.value)


async def test_nobody_there() -> None:
    with provider() as server:
        url = server.url
    with pytest.raises(Unavailable, match="cannot be reached"):
        await Tokens(url, "admin", "x").get()
