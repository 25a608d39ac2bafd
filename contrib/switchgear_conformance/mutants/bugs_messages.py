"""Bugs in what is carried."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from switchgear.driver import (
    Capabilities,
    Delivery,
    HeaderLimits,
    Headers,
    Outgoing,
    Settlement,
    Source,
    Transport,
)
from switchgear.errors import TransportError
from switchgear.writing import Writer

from .bug import Bug
from .patching import patch, restore


def changed(m: Outgoing, **fields: Any) -> Outgoing:
    return msgspec.structs.replace(m, **fields)


class BodyAsText(Bug):
    """Bodies pass through a text field."""

    fails = {"2.driver", "2.bus", "43.driver", "43.bus", "74.driver", "85.driver", "85.bus"}

    async def send(self, t: Transport, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        texts = [m.body and m.body.decode(errors="replace").encode() for m in batch]
        return await t.send([changed(m, body=b) for m, b in zip(batch, texts, strict=True)], deadline)


class ParametersCut(Bug):
    """The parameters of a content type are cut off."""

    fails = {"2.driver", "74.driver"}

    async def send(self, t: Transport, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        cut = [changed(m, media=m.media and m.media.partition(b";")[0]) for m in batch]
        return await t.send(cut, deadline)


class HeadersByName(Bug):
    """Headers are kept as a mapping: of a repeated name the last."""

    fails = {"3.driver", "36.driver", "46.driver", "74.driver"}

    async def send(self, t: Transport, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        return await t.send([changed(m, headers=list(dict(m.headers).items())) for m in batch], deadline)


class HeadersTrimmed(Bug):
    """Headers go over HTTP: blanks around a value are taken away, and what is empty is left out."""

    fails = {"3.driver", "3.bus", "74.driver", "74.bus"}

    def headers(self, s: Source, d: Delivery) -> Headers:
        return [(name, kept) for name, value in s.headers(d) if (kept := value.strip())]


class HeadersTakenOver(Bug):
    """The driver adds a header of its own to the sender's list, where that has four: it sends five at a time."""

    fails = {"3.driver"}

    async def send(self, t: Transport, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        for m in batch:
            if len(m.headers) == 4:
                m.headers.append(("x-driver", b"1"))
        return await t.send(batch, deadline)


class NameReplaced(Bug):
    """A header whose name is no text is stored under a name that is."""

    fails = {"3.driver.unfit"}

    def headers(self, s: Source, d: Delivery) -> Headers:
        return [(name.encode(errors="replace").decode(), value) for name, value in s.headers(d)]


class MarksOneForAll(Bug):
    """A batch is marked as its second message is."""

    fails = {"3.driver.marked", "43.driver", "74.driver"}

    async def send(self, t: Transport, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        return await t.send([changed(m, marked=m.marked and batch[:2][-1].marked) for m in batch], deadline)


class HeadersUnchecked(Bug):
    """The core sends users' headers as they are."""

    fails = {"3.bus", "10.bus"}

    async def connect(self, t: Transport, deadline: float) -> None:
        right = Writer._headers  # pyright: ignore[reportPrivateUsage]

        def headers(
            self: Writer, id_: str, key: bytes | None, given: Mapping[str, str], expires: float | None, parent: Any
        ) -> Headers:
            found = right(self, id_, key, {}, expires, parent)
            return found + [(name, value.encode()) for name, value in given.items()]

        patch(self, Writer, "_headers", headers)
        await t.connect(deadline)

    async def close(self, t: Transport) -> None:
        await t.close()
        restore(self, Writer, "_headers")


class HeadersCut(Bug):
    """Few headers are kept, as is declared, and the core cuts off what is beyond."""

    fails = {"3.bus", "91.bus"}

    def capabilities(self, c: Capabilities) -> Capabilities:
        return replace(c, headers=HeaderLimits(count=14))

    async def connect(self, t: Transport, deadline: float) -> None:
        right = Writer._headers  # pyright: ignore[reportPrivateUsage]

        def headers(
            self: Writer, id_: str, key: bytes | None, given: Mapping[str, str], expires: float | None, parent: Any
        ) -> Headers:
            return right(self, id_, key, dict(list(given.items())[:5]), expires, parent)

        patch(self, Writer, "_headers", headers)
        await t.connect(deadline)

    async def close(self, t: Transport) -> None:
        await t.close()
        restore(self, Writer, "_headers")


class TokenOfTheDelivery(Bug):
    """A token names a hand-out, not the stored message."""

    fails = {"15.driver", "36.driver", "53.bus.log", "75.driver"}

    def __init__(self) -> None:
        self.count = 0

    async def receive(self, s: Source, limit: int, held: Collection[str]) -> Sequence[Delivery]:
        found: list[Delivery] = []
        for d in await s.receive(limit, held):
            self.count += 1
            again = (d.deliveries or 1) > 1
            found.append(msgspec.structs.replace(d, token=(d.token, self.count if again else 0)))
        return found

    async def settle(self, s: Source, batch: Sequence[Settlement]) -> Sequence[TransportError | None]:
        return await s.settle([self._right(one) for one in batch])

    async def commit(
        self, t: Any, s: Source, settled: Sequence[Settlement], produced: Sequence[Outgoing], deadline: float
    ) -> None:
        await t.commit(s, [self._right(one) for one in settled], produced, deadline)

    @staticmethod
    def _right(one: Settlement) -> Settlement:
        token: Any = one.delivery.token
        return msgspec.structs.replace(one, delivery=msgspec.structs.replace(one.delivery, token=token[0]))


class PositionOfTheMember(Bug):
    """A position counts what this member was handed, not where the message is."""

    fails = {"15.driver", "15.bus", "44.driver.seek", "77.driver"}

    def __init__(self) -> None:
        self.given: dict[int, int] = {}

    def position(self, s: Source, d: Delivery) -> str:
        return str(self.given.setdefault(id(d), len(self.given)))


class IdOfTheDelivery(Bug):
    """The broker stamps a new id on what it hands out again."""

    fails = {"15.bus", "36.bus", "42.bus"}

    def headers(self, s: Source, d: Delivery) -> Headers:
        again = b"/%d" % d.deliveries if d.deliveries and d.deliveries > 1 else b""
        return [(name, value + again if name == "ce-id" else value) for name, value in s.headers(d)]


class NativeWrapped(Bug):
    """The client's object is inside one of the driver's."""

    fails = {"17.driver", "17.bus"}

    async def receive(self, s: Source, limit: int, held: Collection[str]) -> Sequence[Delivery]:
        return [msgspec.structs.replace(d, native=[d.native]) for d in await s.receive(limit, held)]

    def headers(self, s: Source, d: Delivery) -> Headers:
        return s.headers(unwrapped(d))

    def position(self, s: Source, d: Delivery) -> str:
        return s.position(unwrapped(d))

    def time(self, s: Source, d: Delivery) -> float:
        return s.time(unwrapped(d))


def unwrapped(d: Delivery) -> Delivery:
    native: Any = d.native
    return msgspec.structs.replace(d, native=native[0])
