"""`switchgear conformance`: run the catalogue against a broker. Imports nothing heavy before it is called."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from .case import Case
    from .report import Report, Result

Numbers = Annotated[list[int], typer.Option("--case", metavar="NUMBER", help="Only this case. Repeat for several.")]
Tiers = Annotated[
    list[str], typer.Option("--tier", help="Only this tier: core, capabilities, durable, faults. Repeat for several.")
]
Waivers = Annotated[
    Path | None, typer.Option(metavar="FILE", dir_okay=False, help="Cases that are known to fail, with reasons (TOML).")
]
Json = Annotated[Path | None, typer.Option(metavar="FILE", dir_okay=False, help="Write the report, for programs.")]
Junit = Annotated[Path | None, typer.Option(metavar="FILE", dir_okay=False, help="Write the report, for CI.")]
Markdown = Annotated[Path | None, typer.Option(metavar="FILE", dir_okay=False, help="Write the report, for people.")]


def conformance(
    url: Annotated[
        str, typer.Argument(help="The broker. May be left out where the harness starts one.", show_default=False)
    ] = "",
    harness: Annotated[
        str | None, typer.Option(help="Starts the broker, and does to it what cases ask for.", show_default=False)
    ] = None,
    tier: Tiers = [],  # noqa: B006  (typer's way)
    case: Numbers = [],  # noqa: B006
    seed: Annotated[int | None, typer.Option(help="Of everything random; printed by every run.")] = None,
    waivers: Waivers = None,
    json: Json = None,
    junit: Junit = None,
    markdown: Markdown = None,
) -> None:
    """Prove a transport: run the numbered cases and report.

    A waived case must fail. Exit codes: 0 no case failed, 1 a case failed, 2 nothing was proven: wrong usage, a broker
    that can't be had or reached, a harness that claims what it does not do.
    """
    from switchgear.errors import ConfigurationError, SwitchgearError

    from .choose import choose_harness, choose_numbers
    from .harness import BrokerFailed, NotRun
    from .runner import run
    from .waivers import waivers as read_waivers

    try:
        if not url and harness is None:
            raise ConfigurationError("name a broker by its URL, or a harness that starts one by --harness NAME")
        numbers = choose_numbers(case, tier)
        allowed = read_waivers(waivers) if waivers else {}
        for path in (json, junit, markdown):
            if path is not None:
                path.touch()
        report = run(
            choose_harness(url, harness),
            url=url,
            numbers=numbers,
            seed=seed,
            waivers=allowed,
            before=_begin,
            after=_end,
        )
    except OSError as error:
        _give_up(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except NotRun as error:
        _give_up(f"not run: {error}")
    except (SwitchgearError, BrokerFailed) as error:
        text = str(error) or "no details"
        _give_up(text if isinstance(error, ConfigurationError | BrokerFailed) else f"{type(error).__name__}: {text}")
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    _write(report, json, junit, markdown)
    _conclude(report)
    raise typer.Exit(1 if report.failed else 0)


def _give_up(text: str) -> NoReturn:
    print(f"error: {text}", file=sys.stderr)
    raise typer.Exit(2)


def _begin(case: Case) -> None:
    if sys.stderr.isatty():
        print(f"{case.id:>16}  {case.name} …", end="\r", file=sys.stderr, flush=True)


def _end(result: Result) -> None:
    line = f"{result.id:>16}  {result.name}: {result.outcome} ({result.seconds:.2f} s)"
    if result.reason:
        line += f": {result.reason}"
    print(f"\x1b[K{line}" if sys.stderr.isatty() else line, file=sys.stderr, flush=True)


def _write(report: Report, json: Path | None, junit: Path | None, markdown: Path | None) -> None:
    from .report import to_json, to_junit, to_markdown

    if json:
        json.write_bytes(to_json(report))
    if junit:
        junit.write_bytes(to_junit(report))
    if markdown:
        markdown.write_text(to_markdown(report), encoding="utf-8")


def _conclude(report: Report) -> None:
    for result in report.failed:
        print(f"\n{result.id} {result.name}: {result.reason}\n{result.detail}")
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    print(f"{report.harness} ({report.url}); {versions}; seed {report.seed}")
    print(", ".join(f"{n} {outcome}" for outcome, n in report.counts.items()))
    for name, standing in report.tiers().items():
        print(f"{name}: {'earned' if standing.earned else 'not earned'} ({standing.why})")
