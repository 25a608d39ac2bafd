"""`switchgear provision`: make topics and groups before the first message."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .execute import FAILED, execute
from .options import Json, Target, Urls

if TYPE_CHECKING:
    from switchgear.driver import Drift


def provision(
    target: Target,
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; exit with 1 when something is missing or differs.")
    ] = False,
    url: Urls = None,
    json: Json = False,
) -> None:
    """Create the topics and groups that a program declares, and correct what differs."""
    execute(_provision(target, check, url or [], json))


async def _provision(target: str, check: bool, urls: list[str], json: bool) -> None:
    from switchgear.plugins import redact
    from switchgear.provisioning import provision

    from .output import print_json, print_table
    from .targets import load

    [bus] = load([target], urls)
    async with bus:
        drifts = await provision(bus, apply=not check)
    if json:
        print_json([as_dict(drift) for drift in drifts])
    elif drifts:
        rows = [(d.resource.kind, name(d), d.field, d.wanted, d.found, action(d)) for d in drifts]
        print_table(("kind", "name", "what", "wanted", "found", ""), rows)
    else:
        print(f"nothing to do on {redact(bus.url)}")
    if any(not drift.applied for drift in drifts):
        raise typer.Exit(FAILED)


def name(drift: Drift) -> str:
    """A topic's name; of a group `TOPIC / GROUP`. Physical names."""
    resource = drift.resource
    return resource.name if resource.topic is None else f"{resource.topic} / {resource.name}"


def action(drift: Drift) -> str:
    if not drift.applied:
        return "differs" if drift.field != "exists" else "missing"
    return "created" if drift.field == "exists" else "corrected"


def as_dict(drift: Drift) -> dict[str, object]:
    resource = drift.resource
    return {
        "kind": resource.kind,
        "name": resource.name,
        "topic": resource.topic,
        "field": drift.field,
        "wanted": drift.wanted,
        "found": drift.found,
        "applied": drift.applied,
    }
