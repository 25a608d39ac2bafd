"""`switchgear topics`: what is stored on a broker."""

from __future__ import annotations

from typing import Annotated

import typer

from .execute import execute
from .options import Json, Url


def topics(
    prefix: Annotated[str, typer.Argument(help="Only topics whose names start with it.")] = "",
    internal: Annotated[
        bool, typer.Option("--internal", help="Also those that Switchgear keeps: retry, dead letters, delay.")
    ] = False,
    url: Url = None,
    json: Json = False,
) -> None:
    """List topics, how many messages each holds, and the groups that read it."""
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
