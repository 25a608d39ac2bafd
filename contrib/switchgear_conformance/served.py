"""Which distribution serves a scheme, and with which client."""

from __future__ import annotations

import re
from importlib.metadata import Distribution, PackageNotFoundError, entry_points, version

from switchgear.plugins import TRANSPORTS


def served(scheme: str) -> tuple[str, str]:
    """The transport ("switchgear_redis of switchgear 0.1.0") and its client ("redis 6.2.0", or "")."""
    for entry in entry_points(group=TRANSPORTS, name=scheme):
        if entry.dist is None:
            return entry.value, ""
        return f"{entry.value} of {entry.dist.name} {entry.dist.version}", client(entry.dist, entry.value)
    return "not known", ""


def client(distribution: Distribution, module: str) -> str:
    """Of our own transports what their extra requires; of others all that the distribution requires, but for us."""
    extra = module.removeprefix("switchgear_") if distribution.name == "switchgear" else None
    found: list[str] = []
    for requirement in distribution.requires or []:
        wanted, _, marker = requirement.partition(";")
        name = re.match(r"[A-Za-z0-9._-]+", wanted)
        asked = re.search(r"""extra\s*==\s*['"]([^'"]+)""", marker)
        if name is None or (asked[1] if asked else None) != extra or name[0] == "switchgear":
            continue
        try:
            found.append(f"{name[0]} {version(name[0])}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)
