"""A web application that publishes, and consumes in the same process."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException

from switchgear import Bus, Unavailable

from .depot import Parcel, parcels

bus = Bus()
arrived: list[str] = []


@bus.subscribe(parcels, group="board")
async def show(parcel: Parcel) -> None:
    arrived.append(parcel.id)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    async with bus.serving():  # `async with bus:` would publish only
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/parcels")
async def accept(id: str, city: str) -> str:
    try:
        return await bus.publish(parcels, Parcel(id, city, 250), timeout=2)
    except Unavailable as error:
        raise HTTPException(503) from error


@app.get("/ready")
def ready() -> bool:
    return bus.health().ready
