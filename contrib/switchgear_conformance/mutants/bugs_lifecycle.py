"""Bugs in opening and closing, in settling, and in errors."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from switchgear import Bus
from switchgear.driver import (
    Delivery,
    Drift,
    Outgoing,
    Resource,
    Settlement,
    Source,
    Start,
    Transport,
    Verdict,
)
from switchgear.errors import ConfigurationError, NotFound, SwitchgearError, TransportError, Unavailable
from switchgear.message import Message
from switchgear.pull import PullReading

from .bug import Bug
from .patching import patch, restore


class OneLife(Bug):
    """A transport that was closed can't be connected again."""

    fails = {"1.driver"}

    def __init__(self) -> None:
        self.dead = False

    async def connect(self, t: Transport, deadline: float) -> None:
        if self.dead:
            raise Unavailable("the connection is closed")
        await t.connect(deadline)

    async def close(self, t: Transport) -> None:
        await t.close()
        self.dead = True


class ClosedSwallows(Bug):
    """A closed transport takes messages and stores none."""

    fails = {"1.driver", "10.driver", "14.driver"}

    def __init__(self) -> None:
        self.closed = False

    async def send(self, t: Transport, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        return [None] * len(batch) if self.closed else await t.send(batch, deadline)

    async def close(self, t: Transport) -> None:
        await t.close()
        self.closed = True


class ClosedBusSwallows(Bug):
    """A closed bus takes messages and sends none."""

    fails = {"1.bus"}

    async def connect(self, t: Transport, deadline: float) -> None:
        right = Bus.publish

        async def publish(self: Bus, topic: Any, value: Any, **options: Any) -> str:
            closed = self._open is None and self._closed  # pyright: ignore[reportPrivateUsage]
            return "" if closed else await right(self, topic, value, **options)

        patch(self, Bus, "publish", publish)
        await t.connect(deadline)

    async def close(self, t: Transport) -> None:
        await t.close()
        restore(self, Bus, "publish")


class AckOfManyIsCut(Bug):
    """An acknowledgement of more than 128 messages at once is cut off there, and confirmed."""

    fails = {"11.driver", "11.bus", "57.driver"}

    async def settle(self, s: Source, batch: Sequence[Settlement]) -> Sequence[TransportError | None]:
        outcomes = await s.settle(batch[:128])
        return [*outcomes, *([None] * (len(batch) - len(outcomes)))]


class SecondAckTakesAnother(Bug):
    """A second acknowledgement settles the oldest delivery that is open."""

    fails = {"12.driver", "75.driver", "75.driver.ordered", "75.driver.total"}

    def __init__(self) -> None:
        self.open: dict[Source, dict[object, Delivery]] = {}

    async def receive(self, s: Source, limit: int, held: Collection[str]) -> Sequence[Delivery]:
        found = await s.receive(limit, held)
        self.open.setdefault(s, {}).update((d.token, d) for d in found)
        return found

    async def settle(self, s: Source, batch: Sequence[Settlement]) -> Sequence[TransportError | None]:
        open_ = self.open.setdefault(s, {})
        for one in batch:
            if one.verdict is Verdict.ACK and one.delivery.token not in open_ and open_:
                await s.settle([Settlement(open_.pop(next(iter(open_))), Verdict.ACK)])
            elif one.verdict is not Verdict.EXTEND:
                open_.pop(one.delivery.token, None)
        return await s.settle(batch)


class LastVerdictCounts(Bug):
    """Of a pulled message that was acknowledged, `reject` makes a dead letter all the same, and `retry` a copy."""

    fails = {"12.bus"}

    async def connect(self, t: Transport, deadline: float) -> None:
        async def retry(reading: PullReading, message: Message[Any], after: float | None) -> None:
            d = message._received()  # pyright: ignore[reportPrivateUsage]
            await t.send([Outgoing(d.topic, d.body, d.media, reading.raw_headers(message), d.key)], deadline)

        patch(self, PullReading, "retry", retry)
        await t.connect(deadline)

    async def close(self, t: Transport) -> None:
        await t.close()
        restore(self, PullReading, "retry")


class MissingIsUnavailable(Bug):
    """A private topic that is not there is taken for a broker that is not."""

    fails = {"13.driver"}

    async def send(self, t: Transport, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        if any(m.topic.endswith("nowhere") for m in batch):
            return [Unavailable("unknown topic or partition")] * len(batch)
        return await t.send(batch, deadline)


class ChecksNothing(Bug):
    """What is to be checked and not made is not compared."""

    fails = {"13.bus", "45.driver.provision", "45.driver.retention"}

    async def provision(self, t: Any, wanted: Sequence[Resource], apply: bool) -> Sequence[Drift]:
        return await super().provision(t, wanted, apply) if apply else []


class ClientsErrors(Bug):
    """What the client raises for a group that is not there goes through as it is."""

    fails = {"14.driver", "44.driver.seek", "77.driver"}

    async def seek(self, t: Any, topic: str, group: str, to: Start | str) -> None:
        try:
            await t.seek(topic, group, to)
        except NotFound as error:
            raise KeyError(str(error)) from error


class CauseDropped(Bug):
    """The client's error is written into ours, and not kept as its cause."""

    fails = {"14.driver", "14.bus"}
    over = "sqlite"

    async def connect(self, t: Transport, deadline: float) -> None:
        try:
            await t.connect(deadline)
        except SwitchgearError as error:
            raise type(error)(str(error)) from None


class ErrorsShowBodies(Bug):
    """A message that is refused is shown in the error."""

    fails = {"14.driver"}

    async def send(self, t: Transport, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        outcomes = await t.send(batch, deadline)
        shown = zip(batch, outcomes, strict=True)
        return [o and type(o)(f"{o}: {(m.body or b'')[:20].decode(errors='replace')}") for m, o in shown]


class ConnectsToNobody(Bug):
    """Connecting succeeds whether or not there is a broker: the client connects when it is first used."""

    fails = {"14.driver", "14.bus", "16.driver", "16.bus"}
    over = "sqlite"

    async def connect(self, t: Transport, deadline: float) -> None:
        try:
            await t.connect(deadline)
        except ConfigurationError:
            return


class ConnectIgnoresItsDeadline(Bug):
    """To find out that there is no broker takes as long as the system likes."""

    fails = {"16.driver"}
    over = "sqlite"

    async def connect(self, t: Transport, deadline: float) -> None:
        try:
            await t.connect(deadline)
        except ConfigurationError:
            await asyncio.sleep(4.0)
            raise


class HealthIsPolite(Bug):
    """A bus says that it is ready, come what may."""

    fails = {"16.bus", "42.bus.stop"}

    async def connect(self, t: Transport, deadline: float) -> None:
        right = Bus.health

        def health(self: Bus) -> Any:
            return replace(right(self), ready=True)

        patch(self, Bus, "health", health)
        await t.connect(deadline)

    async def close(self, t: Transport) -> None:
        await t.close()
        restore(self, Bus, "health")
