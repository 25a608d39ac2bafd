"""From one broker to another."""

from switchgear import Bus, Message, run
from switchgear_kafka import KafkaTuning

from .depot import Parcel, parcels

events = Bus("kafka://localhost:9092", name="events", tuning=[KafkaTuning(linger=0.005)])
live = Bus("redis://localhost", name="live")


@events.subscribe(parcels, group="screens", start="earliest")
async def forward(parcel: Parcel, message: Message[Parcel]) -> None:
    await live.publish("screens", {"id": parcel.id}, id=message.id, expires=30)


if __name__ == "__main__":
    run(events, live)
