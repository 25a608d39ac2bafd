"""A notebook's cell: look at everything without a group, then take one message and decide on it."""

from switchgear import Bus

from .depot import Parcel, parcels


async def cell(url: str = "redis://localhost") -> list[Parcel]:
    seen: list[Parcel] = []
    async with Bus(url) as bus:
        async with bus.consumer(parcels, group=None, start="earliest", idle=2) as messages:
            async for message in messages:
                seen.append(message.body)  # noqa: PERF401
        async with bus.consumer(parcels, group="audit", start="earliest") as messages:
            message = await anext(messages)
            await (message.ack() if message.body.grams > 0 else message.reject("no weight"))
    return seen
