"""A consumer that rejects every tenth message, and the office that gets the dead letters.

`switchgear run tests.faults.poisoned:create` and `…:office`; what they do is in FAULTS, as JSON.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from switchgear import Bus, Message, Reject, Topic
from switchgear.driver import Outgoing
from switchgear.errors import NotSent, TransportError
from switchgear.plugins import open_transport

from .jobs import GROUP, Job, jobs
from .oracle import Journal, now

graves = Topic("graves", Job, order="none", partitions=1)


class Poisoned(msgspec.Struct, kw_only=True):
    url: str
    handled: str
    """A journal, of the consumer."""
    buried: str
    """A journal, of the office: the id of each dead letter."""
    gate: str = ""
    """While there is a file of this name, the consumer's driver stores no dead letter."""
    order: str = "none"
    lease: float = 3.0


def poison(id: str) -> bool:
    """One in ten."""
    return zlib.crc32(id.encode()) % 10 == 0


def create() -> Bus:
    given = _given()
    if given.gate:
        shut(type(open_transport(given.url)), Path(given.gate))
    journal, pid = Journal(given.handled), os.getpid()
    bus = Bus(name="consumer", grace=10.0)

    @bus.subscribe(
        jobs(given.order), group=GROUP, start="earliest", lease=given.lease, concurrency=16, dead_letter=graves.name
    )
    async def handle(job: Job, message: Message[Job]) -> None:
        if poison(job.id):
            raise Reject("poison")
        journal.write(pid, job.id, message.fence, zlib.crc32(message.data or b""), f"{now():.6f}")

    return bus


def office() -> Bus:
    given = _given()
    journal = Journal(given.buried)
    bus = Bus(name="office")

    @bus.subscribe(graves, group="office", start="earliest", lease=given.lease)
    async def bury(job: Job) -> None:
        journal.write(job.id)

    return bus


def shut(transport: type[Any], gate: Path) -> None:
    """Let `send` fail for dead letters while the gate is there."""
    real = transport.send

    async def send(self: Any, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        if batch[0].topic != graves.name or not gate.exists():  # noqa: ASYNC240
            return await real(self, batch, deadline)  # type: ignore[no-any-return]
        return [NotSent("the gate is shut")] * len(batch)

    transport.send = send


def _given() -> Poisoned:
    return msgspec.json.decode(os.environ["FAULTS"], type=Poisoned)
