"""Later, again, and not at all."""

from datetime import UTC, datetime, timedelta

from switchgear import Bus, RetryAfter, Topic

from .depot import Parcel, parcels

ticks = Topic("ticks", datetime, order="total")
bus = Bus("sqlite:///depot.db")
polls: list[int] = []


@bus.subscribe(ticks, group="cron")
async def every_minute(tick: datetime) -> None:
    following = tick + timedelta(minutes=1)
    await bus.publish(ticks, following, delay=following, id=f"tick-{following:%Y%m%d%H%M}")


async def remind(parcel: Parcel) -> bool:
    id = await bus.publish(parcels, parcel, delay=timedelta(hours=24), expires=timedelta(hours=36))
    await bus.publish(parcels, parcel, delay=datetime(2130, 1, 1, tzinfo=UTC))
    return await bus.cancel(parcels, id)


@bus.subscribe(parcels, group="poll")
async def poll(parcel: Parcel) -> None:
    polls.append(1)
    if len(polls) < 3:
        raise RetryAfter(30)
