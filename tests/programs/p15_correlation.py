"""Publishing inside a handler continues the chain; user headers are passed on by hand."""

from typing import Annotated

from switchgear import Bus, Header, Message

from .depot import Label, Parcel, labels, parcels

bus = Bus()


@bus.subscribe(parcels, group="franking")
async def frank(
    parcel: Parcel, message: Message[Parcel], tenant: Annotated[str | None, Header("tenant")] = None
) -> None:
    headers = {"tenant": tenant} if tenant else {}
    await bus.publish(labels, Label(parcel.id, parcel.city, message.attempt), headers=headers)


chain: list[tuple[str, str, str | None]] = []


@bus.subscribe(labels, group="trace")
async def trace(message: Message[Label]) -> None:
    chain.append((message.correlation_id, message.id, message.headers.get("tenant")))
