"""Models: programs that nobody wrote, and what must come of them."""

from __future__ import annotations

from switchgear_conformance.case import case
from switchgear_conformance.context import Context
from switchgear_conformance.models.play import explore
from switchgear_conformance.models.queue import Queue, queues

BOUND = 1e6  # seconds of the loop's time, which passes quickly where it is virtual; programs have bounds of their own


@case(75, bound=BOUND)
async def queue_machine(c: Context) -> None:
    """Nothing comes from nowhere, nothing after its acknowledgement, and nothing is lost, whatever two members do."""
    await explore(c, Queue, queues(c, "NONE"), examples=60)


@case(75, "order>=key", part="ordered", bound=BOUND)
async def queue_machine_ordered(c: Context) -> None:
    """The same, and nobody is handed a message while another of its key is with somebody else or was passed over."""
    await explore(c, Queue, queues(c, "KEY"), examples=60)


@case(75, "order=total", part="total", bound=BOUND)
async def queue_machine_total(c: Context) -> None:
    """The same with one order over all."""
    await explore(c, Queue, queues(c, "TOTAL"), examples=40)
