"""Bugs in names, keys and limits."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from msgspec.structs import replace

from switchgear.driver import (
    Capabilities,
    Outgoing,
    Revoked,
    Source,
    Subscription,
    Transport,
)
from switchgear.errors import Refused, TransportError
from switchgear.writing import Writer

from .bug import Bug
from .bugs_messages import changed
from .patching import patch, restore


class KeysNormalised(Bug):
    """Keys are brought into Unicode's composed form."""

    fails = {"4.driver", "4.bus", "4.bus.keys"}

    async def send(self, t: Transport, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        return await t.send([changed(m, key=composed(m.key)) for m in batch], deadline)


def composed(key: bytes | None) -> bytes | None:
    if key is None:
        return None
    return unicodedata.normalize("NFC", key.decode(errors="surrogateescape")).encode(errors="surrogateescape")


class NamesFolded(Bug):
    """Topics are told apart without regard to case."""

    fails = {"4.driver", "4.bus", "4.bus.keys"}

    async def send(self, t: Transport, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        return await t.send([changed(m, topic=m.topic.lower()) for m in batch], deadline)

    async def subscribe(self, t: Transport, subscription: Subscription, revoked: Revoked) -> Source:
        topics = {name.lower(): fence for name, fence in subscription.topics.items()}
        return await t.subscribe(replace(subscription, topics=topics), revoked)


class LimitIsOneLess(Bug):
    """The longest body that is declared is refused."""

    fails = {"5.driver", "5.bus"}

    async def send(self, t: Transport, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        if len(batch) == 1 and batch[0].body is not None and len(batch[0].body) >= t.capabilities.body:
            return [Refused(f"{batch[0].topic}: too long")]
        return await t.send(batch, deadline)


class TooLongIsCut(Bug):
    """Of a body that is too long, what fits is stored."""

    fails = {"5.driver", "10.driver"}

    async def send(self, t: Transport, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        most = t.capabilities.body
        return await t.send([changed(m, body=m.body and m.body[:most]) for m in batch], deadline)


class BodyUnchecked(Bug):
    """The core sends what is longer than declared, and the broker stores what fits."""

    fails = {"5.bus", "14.bus", "54.driver.refused"}

    def capabilities(self, c: Capabilities) -> Capabilities:
        return replace(c, body=c.body - 1000)

    async def connect(self, t: Transport, deadline: float) -> None:
        right = Writer._check_body  # pyright: ignore[reportPrivateUsage]

        def check(self: Writer, value: object, body: bytes | None, key: bytes | None) -> bytes | None:
            return right(self, value, body, key) if value is None else body

        patch(self, Writer, "_check_body", check)
        await t.connect(deadline)

    async def close(self, t: Transport) -> None:
        await t.close()
        restore(self, Writer, "_check_body")
