"""In order per city, many cities at a time."""

import asyncio

from switchgear import Bus, Retry, Topic

from .depot import Parcel

parcels = Topic("parcels", Parcel, key=lambda parcel: parcel.city, partitions=12)
bus = Bus()
booked: list[tuple[str, float]] = []


@bus.subscribe(parcels, group="ledger", order="key", concurrency=32, retry=Retry(attempts=6, base=0.02, cap=60))
async def book(parcel: Parcel) -> None:
    await asyncio.sleep(0)
    booked.append((parcel.city, parcel.grams))


async def main() -> None:
    async with bus:
        await bus.publish(parcels, Parcel("p-1", "Ulm", 1))
        await bus.publish("parcels", {"id": "p-2", "city": "Ulm", "grams": 2}, key="Ulm")
