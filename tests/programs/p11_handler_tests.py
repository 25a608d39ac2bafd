"""How a user tests handlers: as functions, and on a bus in memory with its own clock."""

from switchgear import testing

from .depot import Label, Parcel, labels, parcels
from .p04_sql_worker import bus, transaction
from .p08_per_key import book, booked
from .p08_per_key import bus as ledger
from .p08_per_key import parcels as keyed


async def test_a_function() -> None:
    booked.clear()
    await book(Parcel("p-1", "Ulm", 2))  # the decorator returned the function itself
    assert booked == [("Ulm", 2)]


class NoSession:
    async def execute(self, *statement: object) -> None: ...


async def no_session() -> NoSession:
    return NoSession()


async def test_a_bus() -> None:
    async with testing.in_memory(bus, depends={transaction: no_session}) as trace:
        await bus.publish(parcels, Parcel("p-1", "Ulm", 100), delay=3600)
        await trace.idle()
        assert trace.published(labels) == []
        await trace.advance(3600)
        await trace.idle()
        assert trace.published(labels) == [Label("p-1", "Ulm", 1.0)]
        assert trace.dead_letters(parcels, group="franking") == []


async def faulty() -> None:
    """Not a test yet: `Faults` is refused for now, which `test_programs.py` asserts."""
    async with testing.in_memory(ledger, faults=testing.Faults(duplicate=0.2, imitate="redis", seed=7)) as trace:
        await ledger.publish_many(keyed, [Parcel(f"p-{n}", "Ulm", n) for n in range(100)])
        await trace.idle()
        assert [message.attempt for message in trace.handled(keyed, group="ledger")]
