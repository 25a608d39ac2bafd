"""A chain of topics: what a handler returns goes on, and what went wrong is compensated."""

from switchgear import Bus, Topic

from .depot import Label, Parcel, Pickup, labels, parcels, pickups

returned = Topic("returned", Parcel)
bus = Bus()
compensated: list[str] = []


@bus.subscribe(parcels, group="franking", to=labels)
async def frank(parcel: Parcel) -> Label | None:
    if parcel.grams <= 0:
        await bus.publish(returned, parcel)
        return None  # publishes nothing
    return Label(parcel.id, parcel.city, 1.5)


@bus.subscribe(labels, group="carrier", to=pickups)
def call_carrier(label: Label) -> Pickup:
    return Pickup(label.parcel)


@bus.subscribe(returned, group="desk")
async def compensate(parcel: Parcel) -> None:
    compensated.append(parcel.id)
