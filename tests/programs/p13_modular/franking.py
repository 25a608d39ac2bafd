"""Handlers on a router; the bus is a parameter."""

from switchgear import Bus, Router
from tests.programs.depot import Label, Parcel, labels, parcels

router = Router()


@router.subscribe(parcels, group="franking")
async def frank(parcel: Parcel, bus: Bus) -> None:
    await bus.publish(labels, Label(parcel.id, parcel.city, 1.5))
