"""Plain JSON from and for programs that know nothing of Switchgear."""

from datetime import datetime

import pydantic

from switchgear import Bus, Message, Topic


class Reading(pydantic.BaseModel):
    scale: str
    at: datetime
    grams: float


readings = Topic("depot.readings", Reading, key=lambda reading: reading.scale, envelope="none")
bus = Bus("kafka://localhost:9092")
stored: list[tuple[Reading, str, object]] = []


@bus.subscribe(readings, group="store", start="earliest")
async def store(reading: Reading, message: Message[Reading]) -> None:
    stored.append((reading, message.id, getattr(message.native, "offset", None)))  # the client's own message
