"""Models: programs that nobody wrote, and what must come of them."""

from __future__ import annotations

from switchgear_conformance.case import case
from switchgear_conformance.context import Context
from switchgear_conformance.models.envelopes import Envelopes, Values, envelopes, values
from switchgear_conformance.models.faults import Faults, Outages, faults, outages
from switchgear_conformance.models.groups import Crews, Groups, crews, groups
from switchgear_conformance.models.log import Journal, Log, journals, logs
from switchgear_conformance.models.play import explore
from switchgear_conformance.models.queue import Queue, queues
from switchgear_conformance.models.twins import Twins, twins
from switchgear_conformance.models.workers import Workers, workers

BOUND = 1e6  # seconds of the loop's time, which passes quickly where it is virtual; programs have bounds of their own


@case(74, bound=BOUND)
async def roundtrip_property(c: Context) -> None:
    """Any body, key, content type and headers within the limits arrive as they were sent."""
    await explore(c, Envelopes, envelopes(c), examples=40)


@case(74, level="bus", bound=BOUND)
async def roundtrip_property_through_bus(c: Context) -> None:
    """Any value is handled as it was published, with its id, key, headers and time of expiry."""
    await explore(c, Values, values(c), examples=30)


@case(75, bound=BOUND)
async def queue_machine(c: Context) -> None:
    """Nothing comes from nowhere, nothing after its acknowledgement, and nothing is lost, whatever two members do."""
    await explore(c, Queue, queues(c, "NONE"), examples=40)


@case(75, "order>=key", part="ordered", bound=BOUND)
async def queue_machine_ordered(c: Context) -> None:
    """The same, and nobody is handed a message while another of its key is with somebody else or was passed over."""
    await explore(c, Queue, queues(c, "KEY"), examples=40)


@case(75, "order=total", part="total", bound=BOUND)
async def queue_machine_total(c: Context) -> None:
    """The same with one order over all."""
    await explore(c, Queue, queues(c, "TOTAL"), examples=25)


@case(75, "groups", level="bus", bound=BOUND)
async def queue_machine_through_bus(c: Context) -> None:
    """Workers fail, hang, are closed and come back: every message is done, and once."""
    await explore(c, Workers, workers(c, ordered=False), examples=20)


@case(75, "groups", "order>=key", level="bus", part="ordered", bound=BOUND)
async def queue_machine_ordered_through_bus(c: Context) -> None:
    """The same, and the messages of a key are done in their order."""
    await explore(c, Workers, workers(c, ordered=True), examples=20)


@case(76, "replay", bound=BOUND)
async def ordered_log_machine(c: Context) -> None:
    """A group that begins at the earliest message reads the whole log, and of each key always what comes next."""
    await explore(c, Log, logs(c), examples=40)


@case(76, "replay", "order>=key", level="bus", bound=BOUND)
async def ordered_log_machine_through_bus(c: Context) -> None:
    """A consumer that begins at the earliest message reads the whole log, each key in order."""
    await explore(c, Journal, journals(c), examples=20, least=4)


@case(77, "groups", bound=BOUND)
async def group_machine(c: Context) -> None:
    """Each group gets what was sent since it is there, or since where it was moved, whoever joins and leaves."""
    await explore(c, Groups, groups(c), examples=40)


@case(77, "groups", level="bus", bound=BOUND)
async def group_machine_through_bus(c: Context) -> None:
    """Buses start and stop: each group handles what was published since it is there, each message once."""
    await explore(c, Crews, crews(c), examples=20)


@case(78, "groups", "ctl:proxy", bound=BOUND)
async def fault_machine(c: Context) -> None:
    """The line breaks and the broker is killed: what was acknowledged is read, what failed for certain is not."""
    await explore(c, Faults, faults(c), examples=40, least=6)


@case(78, "groups", "order>=key", "ctl:proxy", level="bus", bound=BOUND)
async def fault_machine_through_bus(c: Context) -> None:
    """The line breaks and the broker is killed: everything is published and handled, keys in order."""
    await explore(c, Outages, outages(c), examples=40, least=8)


@case(79, "groups", level="bus", bound=BOUND)
async def differential_through_bus(c: Context) -> None:
    """Whatever handlers do, each message is called as often and ends as it does on memory."""
    await explore(c, Twins, twins(c, "none"), examples=10)


@case(79, "groups", "order>=key", level="bus", part="ordered", bound=BOUND)
async def differential_ordered_through_bus(c: Context) -> None:
    """The same in order by key, which is the order on memory."""
    await explore(c, Twins, twins(c, "key"), examples=10)
