"""One attempt's time."""

from __future__ import annotations

import asyncio
from typing import Any

from switchgear.knobs import Handler
from switchgear.message import Message


def timeout(seconds: float) -> Any:
    """A middleware: an attempt that takes longer is cancelled and fails with TimeoutError.

    A `def` handler can't be cancelled: it keeps its message, its key and its thread until it returns, and the attempt
    fails then (the thread call shields itself and reports the timeout).
    """

    def wrap(handle: Handler) -> Handler:
        async def bounded(message: Message[Any]) -> object:
            try:
                async with asyncio.timeout(seconds) as scope:
                    return await handle(message)
            except TimeoutError:
                if scope.expired():
                    raise TimeoutError(f"the handler took longer than its timeout of {seconds:g} s") from None
                raise

        return bounded

    return wrap
