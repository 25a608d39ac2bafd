"""A publisher in a program without an event loop, such as a Django view or a nightly job."""

from collections.abc import Iterable

from switchgear.sync import Bus

from .depot import Parcel, parcels

bus = Bus()  # its thread and loop start with the first publish, and again after a fork


def hand_in(tenant: str) -> str:
    return bus.publish(parcels, Parcel("p-1", "Ulm", 900), headers={"tenant": tenant}, timeout=2)


def nightly(rows: Iterable[Parcel]) -> list[str]:
    return bus.publish_many(parcels, rows, id=lambda parcel: parcel.id)
