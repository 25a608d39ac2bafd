"""Rows in bulk, each with an outcome of its own."""

from switchgear import Batch, Bus, Message, Reject, RetryAfter

from .depot import Parcel, parcels

bus = Bus()
loaded: list[str] = []


class Locked(Exception):
    """The row is held by someone else just now."""


async def insert(rows: list[Parcel], locked: set[str]) -> list[Exception | None]:
    def outcome(row: Parcel) -> Exception | None:
        if row.grams < 0:
            return ValueError("negative weight")
        if row.id in locked:
            locked.discard(row.id)
            return Locked(row.id)
        loaded.append(row.id)
        return None

    return [outcome(row) for row in rows]


held = {"p-3"}


@bus.subscribe(parcels, group="warehouse", batch=Batch(500, wait=0.2), concurrency=2)
async def load(batch: list[Parcel]) -> list[Exception | None]:
    return [Reject(str(e)) if isinstance(e, ValueError) else e for e in await insert(batch, held)]


@bus.subscribe(parcels, group="archive", batch=Batch(500))
async def archive(batch: list[Message[Parcel]]) -> list[Exception | None] | None:
    if any(message.body.grams == 0 for message in batch):
        return [RetryAfter(30) if message.attempt < 3 else Reject("weightless") for message in batch]
    return None
