"""`switchgear dlq`: look at dead letters, handle them again, or give them up."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from .execute import FAILED, execute, note
from .options import AnyGroup, DryRun, Json, Url

if TYPE_CHECKING:
    from switchgear import Bus
    from switchgear.letters import Filter, Letter
    from switchgear.redriving import Summary

app = typer.Typer(no_args_is_help=True, help="Dead letters: list, show, replay, drop, export.")

Topic: TypeAlias = Annotated[str, typer.Argument(help="The topic whose messages failed, or a topic of dead letters.")]
Key: TypeAlias = Annotated[str | None, typer.Option("--key", help="Only letters of this key.")]
Reason: TypeAlias = Annotated[str | None, typer.Option("--reason", help="Only with this text in the reason.")]
Type: TypeAlias = Annotated[str | None, typer.Option("--type", help="Only messages of this type.")]
Since: TypeAlias = Annotated[
    str | None, typer.Option("--since", help="Only those that failed since: 2026-05-01T12:30, or 15m ago.")
]
Until: TypeAlias = Annotated[str | None, typer.Option("--until", help="Only those that failed until then.")]


@app.command("list")
def list_(
    topic: Topic, group: AnyGroup = None, key: Key = None, reason: Reason = None, type: Type = None,
    since: Since = None, until: Until = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many, the newest.")] = 100,
    url: Url = None, json: Json = False,
) -> None:  # fmt: skip
    """List the letters that are neither replayed nor dropped, the newest last."""
    execute(_list(url, topic, group, _filter(key, reason, type, since, until), limit, json))


@app.command()
def show(
    topic: Topic, id: Annotated[str, typer.Argument(help="The message's id, as `list` shows it.", metavar="ID")],
    group: AnyGroup = None, url: Url = None, json: Json = False,
) -> None:  # fmt: skip
    """Show a letter: where from, why, its headers and its body."""
    execute(_show(url, topic, group, id, json))


@app.command()
def replay(
    topic: Topic, group: AnyGroup = None, key: Key = None, reason: Reason = None, type: Type = None,
    since: Since = None, until: Until = None,
    wait: Annotated[
        float, typer.Option("--wait", min=0, help="Seconds to wait until the group has handled a parked key.")
    ] = 30,
    dry_run: DryRun = False, url: Url = None, json: Json = False,
) -> None:  # fmt: skip
    """Hand letters to the group that failed once more, and to no other; then free the parked keys among them.

    The group may be running or not. A run that is interrupted goes on where it was when it is started again.
    """
    execute(_work(url, topic, group, _filter(key, reason, type, since, until), wait, dry_run, json))


@app.command()
def drop(
    topic: Topic, group: AnyGroup = None, key: Key = None, reason: Reason = None, type: Type = None,
    since: Since = None, until: Until = None, dry_run: DryRun = False, url: Url = None, json: Json = False,
) -> None:  # fmt: skip
    """Give letters up, and free the parked keys among them."""
    execute(_work(url, topic, group, _filter(key, reason, type, since, until), None, dry_run, json))


@app.command()
def export(
    topic: Topic, group: AnyGroup = None, key: Key = None, reason: Reason = None, type: Type = None,
    since: Since = None, until: Until = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A new file. Default: standard output.", show_default=False)
    ] = None,
    url: Url = None,
) -> None:  # fmt: skip
    """Write letters as JSON Lines, as `tail --json` does; they stay where they are."""
    execute(_export(url, topic, group, _filter(key, reason, type, since, until), output))


def _filter(key: str | None, reason: str | None, type: str | None, since: str | None, until: str | None) -> Filter:
    from switchgear.errors import ConfigurationError
    from switchgear.letters import Filter

    from .execute import fail
    from .tail import when

    def instant(option: str, text: str | None) -> float | None:
        found = when(text, option) if text is not None else "earliest"
        if found == "new":
            raise ConfigurationError(f"{option} new: nothing has failed since now; give an instant, or how long ago")
        return None if found == "earliest" else found.timestamp()

    try:
        return Filter(
            key=key, reason=reason, type=type, since=instant("--since", since), until=instant("--until", until)
        )
    except ConfigurationError as error:
        fail(error)


@asynccontextmanager
async def _places(
    url: str | None, topic: str, group: str | None
) -> AsyncGenerator[tuple[Bus, list[tuple[str, str | None]]]]:
    """The open bus, and the topics with the dead letters."""
    from switchgear import Bus
    from switchgear.letters import graves

    from .stored import connected

    async with Bus(url, name="switchgear") as bus:
        await connected(bus)
        yield bus, await graves(bus, topic, group)


async def _letters(
    bus: Bus, places: list[tuple[str, str | None]], only: Filter, group: str | None
) -> AsyncIterator[Letter]:
    from switchgear.letters import waiting

    for grave, _ in places:
        async for letter in waiting(bus, grave, only, group):
            yield letter


async def _list(url: str | None, topic: str, group: str | None, only: Filter, limit: int, json: bool) -> None:
    from collections import deque

    from .output import print_json, print_table

    newest: deque[Letter] = deque(maxlen=limit)
    total = 0
    async with _places(url, topic, group) as (bus, places):
        async for letter in _letters(bus, places, only, group):
            newest.append(letter)
            total += 1
    if json:
        print_json([_summary(letter) for letter in newest])
    elif newest:
        several = len({letter.group for letter in newest}) > 1
        columns = ["published", "key", "type", "attempts", "reason", "id", *(["group"] if several else [])]
        print_table(columns, [(*_row(one), *([one.group] if several else [])) for one in newest])
    else:
        print(f"no dead letters of {topic}")
    if total > limit:
        note(f"{total - limit:,} older ones are not shown: --limit {total}")


def _row(letter: Letter) -> tuple[object, ...]:
    envelope = letter.envelope
    at = "" if envelope.time is None else f"{envelope.time.astimezone():%Y-%m-%d %H:%M:%S}"
    return at, clean(letter.key or ""), envelope.type, envelope.attempt, clean(letter.reason), clean(letter.id)


def _summary(letter: Letter) -> dict[str, object]:
    from .tail import printable

    envelope = letter.envelope
    return {
        "topic": letter.source, "group": letter.group, "id": printable(letter.id), "time": envelope.time,
        "key": letter.key, "type": envelope.type, "attempts": envelope.attempt, "reason": letter.reason,
    }  # fmt: skip


def clean(text: str) -> str:
    """Nothing that a terminal would act on."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _record(letter: Letter) -> dict[str, object]:
    from .internal import Stored
    from .tail import body

    value, kind = body(letter.delivery.body)
    record = Stored(letter.topic, letter.delivery, letter.envelope).record(value, kind)
    return {**record, "id": letter.id}


async def _show(url: str | None, topic: str, group: str | None, id: str, json: bool) -> None:
    from switchgear.errors import NotFound
    from switchgear.letters import Filter

    from .output import print_json

    found = 0
    async with _places(url, topic, group) as (bus, places):
        async for letter in _letters(bus, places, Filter(), group):
            if letter.id != id:
                continue
            if not json and found:
                print()
            found += 1
            print_json(_record(letter)) if json else _print(letter)
    if not found:
        raise NotFound(
            f"no dead letter of {topic} has the id {id!r}: switchgear dlq list {topic} shows those there are"
        )


def _print(letter: Letter) -> None:
    from .tail import body

    envelope, told = letter.envelope, letter.envelope.extensions
    value, kind = body(letter.delivery.body)
    shown = (letter.delivery.body or b"").decode() if kind == "json" else f"({kind})" + (f" {value}" if value else "")
    for name, text in (
        ("id", letter.id), ("reason", letter.reason), ("attempts", envelope.attempt), ("topic", letter.source),
        ("group", letter.group), ("position", told.get("sgposition")), ("stored", told.get("sgtime")),
        ("published", envelope.time), ("type", envelope.type), ("source", envelope.source), ("key", letter.key),
    ):  # fmt: skip
        if text is not None:
            print(f"{name}: {clean(str(text))}")
    for name, text in envelope.headers.items():
        print(f"header {clean(name)}: {clean(text)}")
    print(clean(shown), flush=True)


async def _work(
    url: str | None, topic: str, group: str | None, only: Filter, wait: float | None, dry_run: bool, json: bool
) -> None:
    """Replay, or drop where there is nothing to wait for."""
    from switchgear.redriving import drop, replay

    from .progress import progress

    verb = "dropped" if wait is None else "replayed"
    async with _places(url, topic, group) as (bus, places):
        grave, whose = await _one(bus, places, topic, group)
        if dry_run:
            count = 0
            async for _ in _letters(bus, [(grave, whose)], only, whose):
                count += 1
            _say(json, {"topic": topic, "group": whose, "would_be": count}, f"{count:,} would be {verb}")
            return
        with progress("dead letters", None) as advance:
            told = 0

            def tell(looked: int, taken: int) -> None:
                nonlocal told
                told += taken
                advance(looked, f"{told:,} {verb}")

            def claimed(by: str) -> None:
                note(f"{by} worked on these dead letters a moment ago: waiting whether it goes on")

            if wait is None:
                summary = await drop(bus, grave, whose, only, progress=tell, waiting=claimed)
            else:
                summary = await replay(bus, grave, whose, only, wait=wait, progress=tell, waiting=claimed)
    _report(topic, whose, summary, verb, json)


async def _one(bus: Bus, places: list[tuple[str, str | None]], topic: str, group: str | None) -> tuple[str, str]:
    """The one topic and group that are meant. Raises ConfigurationError where there are several."""
    from switchgear.errors import ConfigurationError
    from switchgear.letters import Filter

    if group is not None:
        return places[0][0], group
    found: dict[str, str] = {}
    for grave, owner in places:
        if owner is not None:
            found[owner] = grave
            continue
        async for letter in _letters(bus, [(grave, None)], Filter(), None):
            found[letter.group] = grave
    if len(found) > 1:
        raise ConfigurationError(
            f"{topic} has dead letters of several groups: give --group: {', '.join(sorted(found))}"
        )
    if not found:
        raise ConfigurationError(f"{topic} holds no dead letter that tells its group: give --group")
    [(whose, grave)] = found.items()
    return grave, whose


def _report(topic: str, group: str, summary: Summary, verb: str, json: bool) -> None:
    def text(key: bytes) -> str:
        return key.decode("utf-8", "backslashreplace")

    if summary.left:
        note(f"{summary.left:,} belong to parked keys, which go as a whole: give --key alone, or no filter")
    for key, why in summary.kept.items():
        note(f"key {clean(text(key))!r} stays parked: {why}")
    freed = f"; parked no more: {', '.join(clean(text(key)) for key in summary.freed)}" if summary.freed else ""
    told: dict[str, object] = {
        "topic": topic, "group": group, verb: summary.taken, "left": summary.left,
        "freed": [text(key) for key in summary.freed], "parked": {text(k): why for k, why in summary.kept.items()},
    }  # fmt: skip
    _say(json, told, f"{summary.taken:,} {verb}{freed}")
    if summary.kept:
        raise typer.Exit(FAILED)


def _say(json: bool, value: dict[str, object], text: str) -> None:
    from .output import print_json

    print_json(value) if json else print(text)


async def _export(url: str | None, topic: str, group: str | None, only: Filter, output: Path | None) -> None:
    import sys
    from contextlib import nullcontext

    import msgspec

    from switchgear.errors import ConfigurationError

    count = 0
    async with _places(url, topic, group) as (bus, places):
        try:
            opened = nullcontext(sys.stdout) if output is None else output.open("x", encoding="utf-8")
        except OSError as error:
            raise ConfigurationError(f"--output {output}: {error.strerror}") from None
        with opened as file:
            async for letter in _letters(bus, places, only, group):
                file.write(msgspec.json.encode(_record(letter), enc_hook=str).decode() + "\n")
                count += 1
    if output is not None:
        note(f"{count:,} written to {output}")
