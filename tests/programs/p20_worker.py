"""A worker under an orchestrator: `switchgear run tests.programs.p20_worker:bus --health 8080`."""

from switchgear import Bus, Retry

from .depot import Parcel, parcels

bus = Bus(grace=25)  # shorter than the orchestrator's own patience


# breaker=Breaker("payments", ratio=0.5), rate=Rate(100, per=1) as soon as these exist
@bus.subscribe(parcels, group="franking", concurrency=16, timeout=10, retry=Retry(attempts=8, on=(OSError,)))
async def frank(parcel: Parcel) -> None:
    print(parcel.id, flush=True)


if __name__ == "__main__":
    bus.run()
