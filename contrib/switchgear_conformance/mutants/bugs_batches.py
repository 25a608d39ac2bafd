"""Bugs in what is done to several messages at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from msgspec.structs import replace

from switchgear import Bus, Message
from switchgear.driver import Capabilities, Delivery, Outgoing, Settlement, Source, Transport, Verdict
from switchgear.errors import TransportError
from switchgear.knobs import Outcomes
from switchgear.lanes import Lanes
from switchgear.program import Route

from .bug import Bug
from .patching import patch, restore


class OneFailsAll(Bug):
    """Where one item of a send is refused, all of them are said to be."""

    fails = {"10.driver", "50.driver", "84.driver"}

    async def send(self, t: Transport, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        outcomes = await t.send(batch, deadline)
        error = next((outcome for outcome in outcomes if outcome is not None), None)
        return outcomes if error is None else [error] * len(batch)


class ManyOutOfPlace(Bug):
    """The core gives the outcomes of `publish_many`, where several failed, with the errors last."""

    fails = {"50.bus"}

    async def connect(self, t: Transport, deadline: float) -> None:
        right: Any = Bus.publish_many

        async def publish_many(self: Bus, topic: Any, values: Iterable[Any], **options: Any) -> list[Any]:
            found: list[Any] = await right(self, topic, values, **options)
            errors = [one for one in found if isinstance(one, TransportError)]
            return found if len(errors) < 2 else [*(one for one in found if one not in errors), *errors]

        patch(self, Bus, "publish_many", publish_many)
        await t.connect(deadline)

    async def close(self, t: Transport) -> None:
        await t.close()
        restore(self, Bus, "publish_many")


class ReleaseOfOne(Bug):
    """Of messages that are given back in one call, and whose neighbours are not, only the first returns."""

    fails = {"51.driver"}

    async def settle(self, s: Source, batch: Sequence[Settlement]) -> Sequence[TransportError | None]:
        released = [one for one in batch if one.verdict is Verdict.RELEASE]
        places = [int(s.position(one.delivery)) for one in released]
        if len(places) >= 8 and all(b - a > 1 for a, b in pairwise(places)):
            for one in released[1:]:
                one.verdict = Verdict.ACK
        return await s.settle(batch)


class RetryOfOneTopic(Bug):
    """Of a batch of RETRY from several topics, only those of the first topic return."""

    fails = {"15.driver", "51.driver.topics"}

    async def settle(self, s: Source, batch: Sequence[Settlement]) -> Sequence[TransportError | None]:
        for one in batch:
            if one.verdict is Verdict.RETRY and one.delivery.topic != batch[0].delivery.topic:
                one.verdict = Verdict.ACK
        return await s.settle(batch)


class OnlyFirstFailed(Bug):
    """The core takes the first of the errors that a batch handler returns, and the rest for done."""

    fails = {"51.bus", "89.bus.copy", "90.bus.broker", "90.bus.order"}

    async def connect(self, t: Transport, deadline: float) -> None:
        right = Route.handle_batch

        async def handle_batch(self: Route, messages: list[Message[Any]]) -> Outcomes:
            found = await right(self, messages)
            first = next((n for n, one in enumerate(found or ()) if one is not None), -1)
            return found and [one if n == first else None for n, one in enumerate(found)]

        patch(self, Route, "handle_batch", handle_batch)
        await t.connect(deadline)

    async def close(self, t: Transport) -> None:
        await t.close()
        restore(self, Route, "handle_batch")


class FollowersForgotten(Bug):
    """The core forgets what stands in a batch behind a failed message of its key."""

    fails = {"51.bus.keys"}

    async def connect(self, t: Transport, deadline: float) -> None:
        def follow_first(_: Lanes, back: Sequence[Delivery]) -> None:
            """Nothing."""

        patch(self, Lanes, "follow_first", follow_first)
        await t.connect(deadline)

    async def close(self, t: Transport) -> None:
        await t.close()
        restore(self, Lanes, "follow_first")


class KeyGoesOnWithoutIt(Bug):
    """It claims `send_order`, and stores the later items of a key although an earlier one failed."""

    fails = {"84.driver", "84.bus"}

    def capabilities(self, c: Capabilities) -> Capabilities:
        return replace(c, immediate=False, sends=1)

    async def send(self, t: Transport, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        return [outcome for m in batch for outcome in await t.send([m], deadline)]
