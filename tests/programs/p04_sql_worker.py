"""A transaction per message, with the inbox in it: a duplicate has no effect."""

from collections.abc import AsyncGenerator
from typing import Annotated

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from switchgear import Bus, Depends, Message
from switchgear_sql import first_time

from .depot import Label, Parcel, labels, parcels

bus = Bus("redis://localhost")


async def engine() -> AsyncGenerator[AsyncEngine]:
    """Opened once per bus."""
    engine = create_async_engine("sqlite+aiosqlite:///franking.db")
    yield engine
    await engine.dispose()


async def transaction(
    message: Message, engine: Annotated[AsyncEngine, Depends(engine, scope="bus")]
) -> AsyncGenerator[AsyncSession]:
    """Opened once per message; it commits before the message is acknowledged, and a failed commit is a retry."""
    async with AsyncSession(engine) as session, session.begin():
        await first_time(session, message, group="franking")
        yield session


@bus.subscribe(parcels, group="franking", to=labels)
async def frank(parcel: Parcel, session: Annotated[AsyncSession, Depends(transaction)]) -> Label:
    postage = 0.01 * parcel.grams
    await session.execute(text("insert into postage values (:id, :paid)"), {"id": parcel.id, "paid": postage})
    return Label(parcel.id, parcel.city, postage)
