"""What must be declared for a case to apply: the same values that the runtime enforces."""

from __future__ import annotations

from collections.abc import Callable

from switchgear.driver import (
    Browsable,
    Capabilities,
    Lagged,
    Order,
    Provisioner,
    Registry,
    Scheduling,
    Seekable,
    Settling,
    Transport,
)

Declared = Callable[[Capabilities, Transport], bool]

DRIVER: dict[str, Declared] = {
    "groups": lambda c, _: c.groups,
    "broadcast": lambda c, _: c.broadcast,
    "order>=key": lambda c, _: c.order >= Order.KEY,
    "order=total": lambda c, _: c.order >= Order.TOTAL,
    "individual": lambda c, _: c.settling is Settling.INDIVIDUAL,
    "cumulative": lambda c, _: c.settling is Settling.CUMULATIVE,
    "nack": lambda c, _: c.retry_delay is not None,
    "nack_delay": lambda c, _: bool(c.retry_delay),
    "lease": lambda c, _: c.lease_cap > 0,
    "fencing": lambda c, _: c.fencing,
    "fences": lambda c, t: c.groups and c.order < Order.KEY and isinstance(t, Registry),  # the core leases partitions
    "counting": lambda c, _: c.counting != "none",
    "replay": lambda c, _: "earliest" in c.starts,
    "replay_time": lambda c, _: "time" in c.starts,
    "persistent": lambda c, _: c.persistent,
    "delay": lambda c, _: c.delay > 0,
    "ttl": lambda c, _: c.ttl,
    "priority": lambda c, _: c.priority > 0,
    "dedup": lambda c, _: c.dedup is not None,
    "filter": lambda c, _: c.filter,
    "transactions": lambda c, _: c.transactions,
    "tombstones": lambda c, _: c.tombstones,
    "send_order": lambda c, _: c.send_order,
    "registry": lambda _, t: isinstance(t, Registry),
    "scheduling": lambda _, t: isinstance(t, Scheduling),
    "seekable": lambda _, t: isinstance(t, Seekable),
    "browsable": lambda _, t: isinstance(t, Browsable),
    "lagged": lambda _, t: isinstance(t, Lagged),
    "provisioner": lambda _, t: isinstance(t, Provisioner),
}
"""Gates of cases on the bare driver."""

BUS: dict[str, Declared] = {
    **DRIVER,
    "order>=key": lambda c, t: c.order >= Order.KEY or isinstance(t, Registry),
    "order=total": lambda c, t: c.order >= Order.TOTAL or isinstance(t, Registry),
    "nack": lambda c, _: c.groups,
    "nack_delay": lambda c, _: c.groups,
    "delay": lambda c, _: c.delay > 0 or c.groups,
    "scheduling": lambda c, t: c.delay > 0 and isinstance(t, Scheduling),  # else the core's delay topics keep it
    "dead_letter": lambda c, _: c.groups,
    "ttl": lambda _c, _t: True,
}
"""Gates of cases through `Bus`: what negotiation gives, native or emulated."""

REFUSABLE = frozenset({"groups", "broadcast", "order>=key", "order=total", "nack", "dead_letter", "replay", "delay"})
"""What negotiation refuses at start: where it is not given, the case has to see it refused."""


def missing(gates: tuple[str, ...], level: str, capabilities: Capabilities, transport: Transport) -> list[str]:
    """The gates (but for `ctl:…`) that this transport does not pass."""
    known = DRIVER if level == "driver" else BUS
    return [g for g in gates if not g.startswith("ctl:") and not known[g](capabilities, transport)]
