"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import typer

Url: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--url",
        help="The broker, for example sqlite:///app.db or redis://localhost. "
        "Default: SWITCHGEAR_URL, else the configuration file.",
        show_default=False,
    ),
]
Urls: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--url",
        help="Use this broker instead of the program's own. With several buses NAME=URL, once per bus.",
        metavar="[NAME=]URL",
        show_default=False,
    ),
]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DryRun: TypeAlias = Annotated[bool, typer.Option("--dry-run", help="Change nothing, say what would be done.")]
Group: TypeAlias = Annotated[str, typer.Option("--group", "-g", help="The group.", show_default=False)]
AnyGroup: TypeAlias = Annotated[
    str | None, typer.Option("--group", "-g", help="Only this group's. Default: all groups'.", show_default=False)
]
Target: TypeAlias = Annotated[
    str, typer.Argument(help="A bus, or a function that makes one, for example shop.main:bus.", metavar="MODULE:BUS")
]
