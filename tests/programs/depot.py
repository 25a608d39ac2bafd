"""What the programs share: a parcel depot's messages and topics."""

import msgspec

from switchgear import Topic


class Parcel(msgspec.Struct):
    id: str
    city: str
    grams: float


class Label(msgspec.Struct):
    parcel: str
    city: str
    postage: float


class Pickup(msgspec.Struct):
    parcel: str


parcels = Topic("parcels", Parcel, key=lambda parcel: parcel.city)
labels = Topic("labels", Label, key=lambda label: label.city)
pickups = Topic("pickups", Pickup)
