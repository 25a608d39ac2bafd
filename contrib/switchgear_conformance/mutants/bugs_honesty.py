"""Less than is asked for, in silence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from switchgear.driver import (
    Capabilities,
    Outgoing,
    Revoked,
    Settlement,
    Source,
    Subscription,
    Transport,
    Verdict,
)
from switchgear.errors import TransportError
from switchgear.writing import Writer

from .bug import Bug
from .bugs_messages import changed
from .patching import patch, restore


class DelayLeftOut(Bug):
    """There is no delay, none is declared, and a message that should wait is delivered at once."""

    fails = {"18.driver"}

    def capabilities(self, c: Capabilities) -> Capabilities:
        return replace(c, delay=0.0)

    async def send(self, t: Transport, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        return await t.send([changed(m, due=None) for m in batch], deadline)


class TombstonesAreEmpty(Bug):
    """There are no tombstones, and what should be one is stored as an empty body."""

    fails = {"18.driver", "50.driver", "84.driver", "84.bus"}

    async def send(self, t: Transport, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        return await t.send([changed(m, body=m.body or b"") for m in batch], deadline)


class RetryCapped(Bug):
    """RETRY waits 20 s at most, as is declared; whoever asks for more gets 20 s."""

    fails = {"18.driver.retry"}

    def capabilities(self, c: Capabilities) -> Capabilities:
        return replace(c, retry_delay=20.0)

    async def settle(self, s: Source, batch: Sequence[Settlement]) -> Sequence[TransportError | None]:
        for one in batch:
            if one.verdict is Verdict.RETRY:
                one.seconds = min(one.seconds, 20.0)
        return await s.settle(batch)


class StartsAtNew(Bug):
    """A new group always starts at what is new, as is declared; whoever asks for more gets that."""

    fails = {"18.driver.subscribe"}

    def capabilities(self, c: Capabilities) -> Capabilities:
        return replace(c, starts=frozenset({"new"}))

    async def subscribe(self, t: Transport, subscription: Subscription, revoked: Revoked) -> Source:
        return await t.subscribe(replace(subscription, start="new"), revoked)


class PriorityLeftOut(Bug):
    """The core takes a priority and does nothing with it."""

    fails = {"18.bus"}

    async def connect(self, t: Transport, deadline: float) -> None:
        right = Writer.message

        def message(self: Writer, value: object, options: Any, parent: Any) -> Outgoing:
            return right(self, value, {k: v for k, v in options.items() if k != "priority"}, parent)  # type: ignore[arg-type]

        patch(self, Writer, "message", message)
        await t.connect(deadline)

    async def close(self, t: Transport) -> None:
        await t.close()
        restore(self, Writer, "message")
