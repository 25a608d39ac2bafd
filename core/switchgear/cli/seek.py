"""`switchgear seek`: let a stopped group begin elsewhere."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from .execute import execute
from .options import DryRun, Group, Json, Url

if TYPE_CHECKING:
    from switchgear.driver import Start


def seek(
    topic: Annotated[str, typer.Argument(help="The topic's name.")],
    group: Group,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help="new, earliest, an instant (2026-05-01T12:30), how long ago (15m), or a position as dead letters "
            "tell it; on Kafka partition and offset: 3:1207.",
            metavar="new|earliest|TIME|POSITION",
        ),
    ],
    dry_run: DryRun = False,
    url: Url = None,
    json: Json = False,
) -> None:
    """Move a stopped group; what it then reads it reads once more, what it skips it never handles.

    What waits at its return address stays there.
    """
    execute(_seek(url, topic, group, to, dry_run, json))


async def _seek(url: str | None, topic: str, group: str, text: str, dry_run: bool, json: bool) -> None:
    from switchgear import Bus
    from switchgear.driver import Seekable
    from switchgear.errors import ConfigurationError, NotFound, Unsupported
    from switchgear.redriving import existing

    from .lag import RETURNED, lags
    from .output import print_json, print_table
    from .stored import connected

    target = place(text)
    async with Bus(url, name="switchgear") as bus:
        transport = await connected(bus)
        core = bus._running()
        if not isinstance(transport, Seekable):
            raise Unsupported(
                f"{core.url}: this transport cannot move a group: subscribe a new group with start=, "
                "or copy a range with switchgear replay"
            )
        plan = await existing(bus, topic)
        if isinstance(target, str) and target not in ("new", "earliest") and len(plan.physical) > 1:
            raise ConfigurationError(
                f"--to {text}: {topic!r} is kept in {len(plan.physical)} streams on {core.url}, of which a position "
                "means one: give a time"
            )
        before = (await lags(bus, topic, group)).get((topic, group))
        if before is None:
            raise NotFound(f"{core.url}: no group {group!r} reads topic {topic!r}")
        after = before
        if not dry_run:
            for name in plan.physical:
                await transport.seek(name, core.physical(group), target)
            after = (await lags(bus, topic, group)).get((topic, group), {})
    lanes = [lane for lane in after if lane != RETURNED]
    if json:
        moved = [{"partition": lane, "before": before.get(lane), "after": after[lane]} for lane in lanes]
        print_json({"topic": topic, "group": group, "to": text, "dry_run": dry_run, "lag": moved})
    elif dry_run:
        print(f"group {group} of {topic} would go to {text}; it must be stopped. Not handled now: {_total(before)}")
    else:
        rows = [(lane or "all", before.get(lane, 0), after[lane]) for lane in lanes]
        print(f"group {group} of {topic} goes on at {text}")
        print_table(("partition", "lag before", "lag now"), rows)


def _total(lanes: dict[str, int]) -> str:
    from .lag import RETURNED

    return f"{sum(count for lane, count in lanes.items() if lane != RETURNED):,}"


def place(text: str) -> Start | str:
    """What `--to` means: a position where it can be no time. Raises ConfigurationError."""
    from .tail import when

    if re.fullmatch(r"\d+|\d+[:-]\d+", text):
        return text
    found = when(text, "--to")
    return found if isinstance(found, str) else found.timestamp()
