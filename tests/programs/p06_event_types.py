"""Several types on one topic: one handler for the union, or a topic per type under one name."""

from typing import assert_never

import msgspec

from switchgear import Bus, Topic


class Accepted(msgspec.Struct, tag=True):
    id: str


class Delivered(msgspec.Struct, tag=True):
    id: str
    signed_by: str


journey = Topic("journey", Accepted | Delivered, key=lambda event: event.id)
accepted = Topic("journey", Accepted, type="com.depot.accepted", key=lambda event: event.id)
delivered = Topic("journey", Delivered, type="com.depot.delivered", key=lambda event: event.id)

bus = Bus()
log: list[str] = []


@bus.subscribe(journey, group="log")
async def write_down(event: Accepted | Delivered) -> None:
    match event:
        case Accepted(id=id):
            log.append(f"log {id} accepted")
        case Delivered(id=id, signed_by=name):
            log.append(f"log {id} signed by {name}")
        case _:
            assert_never(event)


@bus.subscribe(accepted, group="counter", concurrency=8)
async def on_accepted(event: Accepted) -> None:
    log.append(f"counter accepted {event.id}")


@bus.subscribe(delivered, group="counter")  # the same group: one consumer, routed by type
async def on_delivered(event: Delivered) -> None:
    log.append(f"counter delivered {event.id}")
