"""A topic's plan: its order, its partitions, and how a key finds its partition; written once, shared by all.

Publisher and consumers must agree on it, so whoever comes first writes it to the broker's registry, and everybody else
is held to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from . import names
from .driver import Capabilities, Order, Provisioner, Registry, Resource, Transport
from .emulate.partitions import murmur2
from .errors import ConfigurationError
from .topic import ORDERS, Topic

PARTITIONS = 16  # where a topic is created without saying how many
VERSION = 1


class Stored(msgspec.Struct, forbid_unknown_fields=False):
    """The registry row."""

    order: str
    partitions: int
    hash: str = "murmur2"
    version: int = VERSION


@dataclass(frozen=True, slots=True)
class Plan:
    """A topic as it is on this broker."""

    topic: str
    order: Order
    partitions: int
    physical: tuple[str, ...]
    """One name, or one a partition where the core makes the partitions."""
    native: bool = True
    """Whether the broker itself keeps the order."""

    def place(self, key: bytes | None, turn: int) -> str:
        """The physical name for a message: by its key, or by turns without one."""
        if len(self.physical) == 1:
            return self.physical[0]
        return self.physical[(murmur2(key) if key is not None else turn) % len(self.physical)]


def declared(topic: Topic[Any], configured: Mapping[str, object]) -> tuple[str | None, int | None]:
    """Order and partitions as code says, else as configuration says, else None."""
    order = topic.order if topic.order is not None else configured.get("order")
    partitions = topic.partitions if topic.partitions is not None else configured.get("partitions")
    return order, partitions  # type: ignore[return-value]


async def resolve(
    topic: Topic[Any], configured: Mapping[str, object], transport: Transport, prefix: str, *, write: bool = True
) -> Plan:
    """The topic's plan on this broker; the first to come writes it (with `write`).

    Raises ConfigurationError, showing both, when the declaration differs from what is stored.
    """
    order, partitions = declared(topic, configured)
    stored = await _stored(topic.name, order, partitions, transport, prefix, write)
    plan = layout(topic.name, Order(ORDERS.index(stored.order)), stored.partitions, transport.capabilities, prefix)
    agree(topic, configured, plan)
    return plan


def agree(topic: Topic[Any], configured: Mapping[str, object], plan: Plan) -> None:
    """Raises ConfigurationError, showing both, where a declaration is not what the topic's plan says."""
    order, partitions = declared(topic, configured)
    if order is not None and order != ORDERS[plan.order]:
        raise _mismatch(plan, f"order={order!r}")
    if partitions is not None and partitions != plan.partitions:
        raise _mismatch(plan, f"partitions={partitions}")


def layout(topic: str, order: Order, partitions: int, capabilities: Capabilities, prefix: str) -> Plan:
    """Where a topic's messages are: in one physical topic unless the core must make the order itself."""
    rules = capabilities.names
    if order <= capabilities.order:
        return Plan(topic, order, partitions, (names.physical(rules, prefix, topic),))
    count = 1 if order is Order.TOTAL else partitions
    places = tuple(names.physical(rules, prefix, names.partition(topic, n)) for n in range(count))
    return Plan(topic, order, partitions, places, native=False)


async def _stored(
    topic: str, order: str | None, partitions: int | None, transport: Transport, prefix: str, write: bool
) -> Stored:
    if not isinstance(transport, Registry):
        return Stored(order or "none", partitions or PARTITIONS)
    row = names.physical(transport.capabilities.names, prefix, names.plan_row(topic))
    for _ in range(3):
        found = (await transport.read(row)).get(row)
        if found is not None:
            try:
                stored = msgspec.json.decode(found.value, type=Stored)
            except msgspec.DecodeError as error:
                raise ConfigurationError(f"the stored plan of topic {topic!r} is unreadable: {error}") from error
            if stored.version > VERSION or stored.hash != "murmur2":
                raise ConfigurationError(
                    f"the stored plan of topic {topic!r} is of a newer version ({found.value.decode()}): "
                    "upgrade switchgear"
                )
            if stored.order not in ORDERS or stored.partitions < 1:
                raise ConfigurationError(f"the stored plan of topic {topic!r} is unreadable: {found.value.decode()}")
            return stored
        if partitions is None:
            partitions = await _existing(topic, transport, prefix)
        wanted = Stored(order or "none", partitions or PARTITIONS)
        if not write:
            return wanted
        if await transport.write(row, msgspec.json.encode(wanted), expect=0, ttl=None) is not None:
            return wanted
    raise ConfigurationError(f"the plan of topic {topic!r} is being changed by others again and again")


async def _existing(topic: str, transport: Transport, prefix: str) -> int | None:
    """The partitions of a topic that somebody else made, where the broker has partitions."""
    if not isinstance(transport, Provisioner):
        return None
    name = names.physical(transport.capabilities.names, prefix, topic)
    drifts = await transport.provision([Resource(kind="topic", name=name, partitions=PARTITIONS)], False)
    for drift in drifts:
        if drift.field == "partitions" and isinstance(drift.found, int):
            return drift.found
    return None


def _mismatch(plan: Plan, mine: str) -> ConfigurationError:
    return ConfigurationError(
        f"topic {plan.topic!r} is declared here with {mine}, but its plan on the broker says "
        f"order={ORDERS[plan.order]!r}, partitions={plan.partitions}: declare the same everywhere, or use a new topic"
    )
