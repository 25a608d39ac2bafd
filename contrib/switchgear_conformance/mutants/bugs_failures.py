"""Bugs in what becomes of messages that cannot be handled."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from switchgear.driver import Delivery, Outgoing, Row, Settlement, Source, Transport, Verdict
from switchgear.errors import TransportError
from switchgear.fate import Fate, Grave
from switchgear.message import Message

from .bug import Bug
from .patching import patch, restore


class RetrySpins(Bug):
    """From the third RETRY of a message on, its delay is forgotten."""

    fails = {"41.driver", "41.bus"}

    async def settle(self, s: Source, batch: Sequence[Settlement]) -> Sequence[TransportError | None]:
        for one in batch:
            if one.verdict is Verdict.RETRY and (one.delivery.deliveries or 0) > 2:
                one.seconds = 0.0
        return await s.settle(batch)


class RetryLetsKeyGo(Bug):
    """The core holds what is to be tried again, and hands over what follows it in its key meanwhile."""

    fails = {"34.bus", "41.bus.keys", "51.bus.keys", "75.bus.ordered", "83.bus"}

    async def connect(self, t: Transport, deadline: float) -> None:
        right = Fate._again  # pyright: ignore[reportPrivateUsage]

        async def again(self: Fate, message: Message[Any], delay: float) -> bool:
            await right(self, message, delay)
            return True

        patch(self, Fate, "_again", again)
        await t.connect(deadline)

    async def close(self, t: Transport) -> None:
        await t.close()
        restore(self, Fate, "_again")


class CountStops(Bug):
    """The count of deliveries is kept in one bit: it never passes two."""

    fails = {
        "36.bus",
        "36.driver",
        "37.bus",
        "37.driver",
        "42.bus",
        "75.driver",
        "75.driver.ordered",
        "75.driver.total",
        "79.bus",
        "89.bus",
    }

    async def receive(self, s: Source, limit: int, held: Collection[str]) -> Sequence[Delivery]:
        found = await s.receive(limit, held)
        for d in found:
            d.deliveries = min(d.deliveries or 1, 2)
        return found


class PrivateTwice(Bug):
    """What is for one group alone (dead letters) is stored twice."""

    fails = {
        "42.bus",
        "42.bus.continue",
        "42.bus.park",
        "42.bus.reject",
        "42.bus.stop",
        "43.bus",
        "79.bus",
        "79.bus.ordered",
        "85.bus",
        "93.bus",
        "89.bus.copy",
        "89.bus.replay",
        "90.bus.broker",
        "90.bus.copy",
        "90.bus.order",
    }

    async def send(self, t: Transport, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        outcomes = await t.send(batch, deadline)
        await t.send([m for m in batch if m.private], deadline)
        return outcomes


class ParkedForgotten(Bug):
    """Rows that hold back a key are stored and not found again."""

    fails = {"42.bus.park"}

    async def read(self, t: Transport, prefix: str) -> Mapping[str, Row]:
        rows = await super().read(t, prefix)
        return {name: row for name, row in rows.items() if "sg.parked." not in name}


class DeadLetterHoldsKey(Bug):
    """The core acknowledges what it has buried and forgets to go on with its key, where that is to continue."""

    fails = {"42.bus.continue", "53.bus.keys", "79.bus.ordered"}

    async def connect(self, t: Transport, deadline: float) -> None:
        right = Fate._buried  # pyright: ignore[reportPrivateUsage]

        async def buried(self: Fate, grave: Grave) -> bool:
            settings = self._c.settings.dead_letter
            return await right(self, grave) and settings is not None and settings.after != "continue"

        patch(self, Fate, "_buried", buried)
        await t.connect(deadline)

    async def close(self, t: Transport) -> None:
        await t.close()
        restore(self, Fate, "_buried")


class StopGoesOn(Bug):
    """The core writes the dead letter that is to stop its lane, and does not stop it."""

    fails = {"42.bus.stop"}

    async def connect(self, t: Transport, deadline: float) -> None:
        def set_aside(_: Fate, came: Iterable[Delivery]) -> None:
            """Nothing."""

        patch(self, Fate, "set_aside", set_aside)
        await t.connect(deadline)

    async def close(self, t: Transport) -> None:
        await t.close()
        restore(self, Fate, "set_aside")


class EnvelopeIsParsed(Bug):
    """The driver reads structured events and drops those that are malformed."""

    fails = {"43.driver", "43.bus"}

    async def receive(self, s: Source, limit: int, held: Collection[str]) -> Sequence[Delivery]:
        found = await s.receive(limit, held)
        bad = [d for d in found if d.media == b"application/cloudevents+json" and (d.body or b"")[-1:] != b"}"]
        await s.settle([Settlement(d, Verdict.ACK) for d in bad])
        return [d for d in found if d not in bad]
