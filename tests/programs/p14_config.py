"""Configuration per environment: `SWITCHGEAR_URL`, else `switchgear.toml`, or the file `SWITCHGEAR_CONFIG` names."""

from switchgear import Bus

from .depot import Parcel, parcels

bus = Bus()


@bus.subscribe(parcels, group="franking", concurrency=4)  # the file says 64, and a file is stronger than code
async def frank(parcel: Parcel) -> None: ...
