"""Things go wrong: a middleware that breaks a share of the calls."""

from __future__ import annotations

import random
from collections.abc import Callable

from switchgear import Handler, Message, Middleware


class Broken(Exception):
    """An injected failure."""


def flaky(rate: float, seed: str, broke: Callable[[], object]) -> Middleware:
    """Break calls with probability `rate`: half of them before the handler, half after it.

    The second half is the nasty one: the work is done, the message is not acknowledged, and it will be handled again.
    """
    dice = random.Random(seed)

    def wrap(handle: Handler) -> Handler:
        async def broken(message: Message) -> object:
            fate = dice.random()
            if fate < rate / 2:
                broke()
                raise Broken("before the work")
            result = await handle(message)
            if fate < rate:
                broke()
                raise Broken("after the work")
            return result

        return broken

    return wrap
