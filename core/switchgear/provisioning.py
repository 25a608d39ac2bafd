"""Creating what a bus needs on its broker, before the first publisher runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .core import group_resources, return_resources, topic_resources
from .driver import Drift, Provisioner, Resource
from .errors import Unsupported

if TYPE_CHECKING:
    from .bus import Bus


async def provision(bus: Bus, apply: bool) -> Sequence[Drift]:
    """Compare what the bus's subscriptions and outputs need with what is there, and create it with `apply`.

    Returns every difference found. Raises Unsupported where the broker cannot be provisioned, Unavailable when it
    cannot be reached.
    """
    async with bus._core() as core:
        if not core.link.up:
            raise core.link.unavailable()
        if not isinstance(core.transport, Provisioner):
            raise Unsupported(f"{core.scheme}:// cannot be provisioned by Switchgear")
        wanted: list[Resource] = []
        declared = bus._all()
        for assembled in await core.assemble(declared, write=apply):
            wanted += topic_resources(assembled.topic, assembled.plan, core.config.topic(assembled.topic.name))
            wanted += return_resources(assembled)
            wanted += group_resources(assembled)
        if wanted and core.delays.emulated:
            wanted += core.delays.resources()
        for topic in {one.to.name: one.to for one in declared if one.to is not None}.values():
            plan = await core.plan(topic, write=apply)
            wanted += topic_resources(topic, plan, core.config.topic(topic.name))
        unique: list[Resource] = []
        for resource in wanted:
            if resource not in unique:
                unique.append(resource)
        return await core.transport.provision(unique, apply)
