"""All commands together. Command modules import nothing heavy at their top, so that `--help` is quick."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Annotated

import typer

from . import demo, dlq, explain, lag, provision, publish, replay, run, seek, tail, topics, transports

EXIT_CODES = "Exit codes: 0 done · 1 the work failed · 2 wrong usage or configuration · 130 interrupted"

COMMANDS = "switchgear.commands"
"""Entry point group of commands that plugins bring: name and function. Their modules import nothing heavy either."""

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,  # they would print local variables, and bodies and passwords with them
    epilog=EXIT_CODES,
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"switchgear {version('switchgear')}")
        raise typer.Exit


@app.callback()
def switchgear(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Publish and subscribe; the broker is a URL."""


app.command()(run.run)
app.command()(publish.publish)
app.command()(tail.tail)
app.command()(topics.topics)
app.add_typer(dlq.app, name="dlq")
app.command()(lag.lag)
app.command()(seek.seek)
app.command()(replay.replay)
app.command()(provision.provision)
app.command()(explain.explain)
app.command()(transports.transports)
app.command()(demo.demo)
for _name, _value in sorted({(entry.name, entry.value) for entry in entry_points(group=COMMANDS)}):
    app.command(_name)(EntryPoint(_name, _value, COMMANDS).load())
