"""Bugs in what is carried."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from switchgear.driver import Outgoing, Transport
from switchgear.errors import TransportError

from .bug import Bug


class BodyAsText(Bug):
    """Bodies pass through a text field."""

    fails = {"2.driver"}

    async def send(self, t: Transport, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        texts = [(m.body or b"").decode(errors="replace").encode() for m in batch]
        return await t.send([msgspec.structs.replace(m, body=b) for m, b in zip(batch, texts, strict=True)], deadline)
