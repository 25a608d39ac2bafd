"""`switchgear replay`: give a group a range of a topic once more, while it runs."""

from __future__ import annotations

from typing import Annotated

import typer

from .execute import execute, note
from .options import DryRun, Group, Json, Url


def replay(
    topic: Annotated[str, typer.Argument(help="The topic's name.")],
    group: Group,
    start: Annotated[
        str,
        typer.Option(
            "--from",
            help="earliest, an instant (2026-05-01T12:30, without a zone it is local time) or how long ago (15m).",
            metavar="earliest|TIME",
        ),
    ],
    until: Annotated[
        str | None, typer.Option("--until", help="As --from. Default: now.", metavar="TIME", show_default=False)
    ] = None,
    dry_run: DryRun = False,
    url: Url = None,
    json: Json = False,
) -> None:
    """Copy what a topic stored in a range of time to one group, which may be running; no other group sees it.

    The copies come beside what the group reads, so they are out of order with it. To move a group back instead, stop it
    and use `switchgear seek`.
    """
    execute(_replay(url, topic, group, start, until, dry_run, json))


async def _replay(
    url: str | None, topic: str, group: str, start: str, until: str | None, dry_run: bool, json: bool
) -> None:
    from switchgear import Bus
    from switchgear.redriving import replay_range

    from .output import print_json
    from .progress import progress
    from .stored import connected

    begin, end = _instant("--from", start), None if until is None else _instant("--until", until)
    async with Bus(url, name="switchgear") as bus:
        await connected(bus)
        with progress("replaying", None) as advance:
            told = 0

            def tell(looked: int, taken: int) -> None:
                nonlocal told
                told += taken
                advance(looked, f"{told:,} copied")

            summary = await replay_range(bus, topic, group, begin, end, dry_run=dry_run, progress=tell)
    if json:
        print_json({"topic": topic, "group": group, "copied": 0 if dry_run else summary.taken, "found": summary.taken})
    elif dry_run:
        print(f"{summary.taken:,} would be copied to group {group}")
    else:
        print(f"{summary.taken:,} copied to group {group}")
        note("they are handled beside what the group reads, and out of order with it")


def _instant(option: str, text: str) -> float | None:
    from switchgear.errors import ConfigurationError

    from .tail import when

    found = when(text, option)
    if found == "new":
        raise ConfigurationError(f"{option} new: nothing is stored from now on; give earliest, an instant or 15m")
    return None if found == "earliest" else found.timestamp()
