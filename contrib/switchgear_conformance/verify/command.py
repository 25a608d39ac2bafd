"""`switchgear verify`: a workload against a broker, and what its history proves."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from .verdict import Verdict


def verify(
    url: Annotated[str, typer.Argument(help="The broker; not needed with --harness or --check.")] = "",
    harness: Annotated[str | None, typer.Option(help="Starts the broker, and can kill it.")] = None,
    seconds: Annotated[float, typer.Option("--for", help="Seconds of load.", min=0.1)] = 60.0,
    publishers: Annotated[int, typer.Option(min=1)] = 2,
    consumers: Annotated[int, typer.Option(min=1)] = 2,
    order: Annotated[str, typer.Option(help="none, key or total.")] = "key",
    keys: Annotated[int, typer.Option(help="Keys of each publisher.", min=1)] = 20,
    rate: Annotated[float, typer.Option(help="Messages a second of each publisher.", min=0.1)] = 200.0,
    lease: Annotated[float, typer.Option(help="Seconds.", min=0.5)] = 5.0,
    faults: Annotated[
        str, typer.Option(help="kill, leave, join, pause, publisher, broker, restart, freeze; with commas. Or all.")
    ] = "none",
    every: Annotated[float, typer.Option(help="Seconds between two faults, on average.", min=0.1)] = 5.0,
    seed: Annotated[int | None, typer.Option(help="Of the schedule of faults; printed by every run.")] = None,
    history: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Keep the history there.")] = None,
    check: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Judge a history again; run nothing.")] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", dir_okay=False, help="Write the verdict.")] = None,
) -> None:
    """Prove that nothing is lost: publish and consume, do harm, and compare what went in with what came out.

    Publishers and consumers are processes of their own (tasks, for memory). Ctrl-C ends the load early; the verdict
    comes all the same. The history is JSON Lines, one file a process, for other programs to check. Exit codes: 0
    nothing lost, nothing unexpected, keys in order; 1 the verdict is bad; 2 nothing was proven.
    """
    from secrets import randbits

    from switchgear.errors import ConfigurationError, SwitchgearError
    from switchgear_conformance.harness import BrokerFailed, NotRun
    from switchgear_conformance.harness import harness as find

    from .supervise import FAULTS, POWERS, Plan, WorkloadFailed
    from .supervise import verify as run

    try:
        if check is not None:
            _conclude(_judge(check), json)
        if order not in ("none", "key", "total"):
            raise ConfigurationError(f"--order {order!r}: expected none, key or total")
        if not url and harness is None:
            raise ConfigurationError("name a broker by its URL, or a harness that starts one by --harness NAME")
        chosen = find(harness) if harness is not None else None
        possible = [name for name in FAULTS if name not in POWERS or (chosen and POWERS[name][0] in chosen.powers)]
        wanted = possible if faults == "all" else [] if faults == "none" else [f.strip() for f in faults.split(",")]
        plan = Plan(
            seconds=seconds, publishers=publishers, consumers=consumers, order=order, keys=keys, rate=rate, lease=lease,
            faults=tuple(wanted), every=every, seed=randbits(32) if seed is None else seed,
        )  # fmt: skip
        print(f"seed {plan.seed}; faults: {', '.join(wanted) or 'none'}", file=sys.stderr, flush=True)
        verdict = run(plan, url, chosen, history, lambda text: print(text, file=sys.stderr, flush=True))
    except NotRun as error:
        _give_up(f"not run: {error}")
    except OSError as error:
        _give_up(str(error))
    except (SwitchgearError, BrokerFailed, WorkloadFailed) as error:
        _give_up(str(error) if isinstance(error, ConfigurationError) else f"{type(error).__name__}: {error}")
    _conclude(verdict, json)


def _judge(folder: Path) -> Verdict:
    """Read a history again."""
    import msgspec

    from switchgear.errors import ConfigurationError

    from .history import MARK, read
    from .oracle import Oracle

    try:
        marks = [event.what for event in read(folder) if event.e == MARK]
        oracle = Oracle(folder).look()
    except msgspec.MsgspecError as error:
        raise ConfigurationError(f"{folder}: not a history: {error}") from error
    if not marks:
        raise ConfigurationError(f"{folder} holds no history: there is no workload.jsonl with a mark")
    return oracle.verdict(ordered="order none" not in marks)


def _conclude(verdict: Verdict, json: Path | None) -> NoReturn:
    import msgspec

    if json is not None:
        json.write_bytes(msgspec.json.format(msgspec.json.encode(verdict), indent=1) + b"\n")
    for line in verdict.lines():
        print(line)
    print("verdict: good" if verdict.good else "verdict: BAD")
    raise typer.Exit(0 if verdict.good else 1)


def _give_up(text: str) -> NoReturn:
    print(f"error: {text}", file=sys.stderr)
    raise typer.Exit(2)
