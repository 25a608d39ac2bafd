"""Bugs in what is made of what others put on a topic."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from switchgear import Message
from switchgear.core import Core
from switchgear.driver import Delivery, Headers, Outgoing, Source, Transport

from .bug import Bug
from .patching import patch, restore


class KeyIsText(Bug):
    """A source decodes keys, and falls over one that is no text."""

    fails = {"2.driver", "74.driver", "85.driver", "85.bus"}

    async def receive(self, s: Source, limit: int, held: Collection[str]) -> Sequence[Delivery]:
        found = await s.receive(limit, held)
        for d in found:
            (d.key or b"").decode()
        return found


class TwentyHeaders(Bug):
    """Of a message's headers twenty are kept."""

    fails = {"91.driver", "91.bus"}

    def headers(self, s: Source, d: Delivery) -> Headers:
        return s.headers(d)[:20]


class AnswersAnywhere(Bug):
    """An answer goes wherever its request says."""

    fails = {"93.bus"}

    async def connect(self, t: Transport, deadline: float) -> None:
        right = Core.reply

        async def reply(self: Core, message: Message[Any], value: object, failure: str | None) -> None:
            await right(self, message, value, failure)
            topic, _, _ = (message._attributes().reply_to or "").partition("/")
            if topic and not topic.startswith("sg.reply."):
                await self.emit(Outgoing(self.physical(topic), str(value).encode(), private=True))

        patch(self, Core, "reply", reply)
        await t.connect(deadline)

    async def close(self, t: Transport) -> None:
        await t.close()
        restore(self, Core, "reply")
