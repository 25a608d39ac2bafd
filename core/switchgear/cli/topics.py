"""`switchgear topics`: what is stored on a broker."""

from __future__ import annotations

from typing import Annotated

import typer

from .execute import FAILED, execute
from .options import Json, Url


def topics(
    prefix: Annotated[str, typer.Argument(help="Only topics whose names start with it.")] = "",
    internal: Annotated[
        bool, typer.Option("--internal", help="Also those that Switchgear keeps: retry, dead letters, delay.")
    ] = False,
    diff: Annotated[
        str | None,
        typer.Option(
            "--diff",
            help="Instead show what this program declares and the broker has otherwise; exits with 1 if anything.",
            metavar="MODULE:BUS",
            show_default=False,
        ),
    ] = None,
    url: Url = None,
    json: Json = False,
) -> None:
    """List topics, how many messages each holds, and the groups that read it."""
    if diff is not None:
        execute(_diff(diff, url, prefix, json))
        return
    execute(_topics(url, prefix, internal or prefix.startswith("sg."), json))


async def _topics(url: str | None, prefix: str, internal: bool, json: bool) -> None:
    from switchgear import Bus
    from switchgear.errors import Unsupported
    from switchgear.plugins import redact

    from .output import print_json, print_table
    from .stored import stored_topics

    async with Bus(url, name="switchgear") as bus:
        found = await stored_topics(bus, prefix)
        where = redact(bus.url)
    if found is None:
        raise Unsupported(f"{where}: this transport cannot list topics")
    shown = [info for info in found if internal or not info.name.startswith("sg.")]
    if json:
        print_json([{"name": info.name, "messages": info.messages, "groups": info.groups} for info in shown])
    elif shown:
        print_table(
            ("topic", "messages", "groups"), [(info.name, info.messages, ", ".join(info.groups)) for info in shown]
        )
    else:
        print(f"no topics on {where}")


async def _diff(target: str, url: str | None, prefix: str, json: bool) -> None:
    from switchgear.names import physical
    from switchgear.plugins import redact
    from switchgear.provisioning import provision

    from .output import print_json, print_table
    from .provision import as_dict
    from .targets import load

    [bus] = load([target], [] if url is None else [url])
    async with bus:
        start = physical(bus.transport.capabilities.names, bus.namespace, prefix)
        drifts = [
            drift
            for drift in await provision(bus, apply=False)
            if (drift.resource.topic or drift.resource.name).startswith(start)
        ]
    drifts.sort(key=lambda drift: drift.resource.topic or drift.resource.name)  # a topic's groups with the topic
    if json:
        print_json([as_dict(drift) for drift in drifts])
    elif drifts:
        print_table(
            ("topic", "group", "what", "declared", "on the broker"),
            [
                (r.topic or r.name, r.name if r.topic else None, drift.field, drift.wanted, drift.found)
                for drift, r in ((drift, drift.resource) for drift in drifts)
            ],
        )
    else:
        print(f"no differences on {redact(bus.url)}")
    if drifts:
        raise typer.Exit(FAILED)
