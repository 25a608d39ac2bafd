"""`switchgear publish`: one value, or a file of them."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, Literal

import typer

from .execute import FAILED, INTERRUPTED, execute, note
from .options import Json, Url

if TYPE_CHECKING:
    from .bulk import Job, Summary

Format = Literal["jsonl", "csv"]


def publish(
    topic: Annotated[str, typer.Argument(help="The topic's name.")],
    value: Annotated[
        str | None,
        typer.Argument(help="JSON, or plain text. Left out: values come from --file, or from standard input."),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", help="A file of values: JSON Lines, or CSV with a header. '-' is standard input."),
    ] = None,
    format: Annotated[
        Format | None, typer.Option("--format", help="Of the values. Default: csv for a file *.csv, else jsonl.")
    ] = None,
    key: Annotated[str | None, typer.Option("--key", help="The ordering key of all values.")] = None,
    key_field: Annotated[
        str | None,
        typer.Option(
            "--key-field",
            help="The field that holds the ordering key; dots go deeper: customer.id. "
            "A topic that does not exist yet is created with key order.",
        ),
    ] = None,
    rate: Annotated[float | None, typer.Option("--rate", min=0.001, help="At most so many messages a second.")] = None,
    timeout: Annotated[float, typer.Option("--timeout", min=0.001, help="Seconds for a message to be stored.")] = 30,
    url: Url = None,
    json: Json = False,
) -> None:
    """Publish a value, or the lines of a file or of standard input.

    A line is stored as it stands, byte for byte; a row of CSV becomes an object of texts. Lines that could not be
    stored are kept next to the input, in NAME.failed.jsonl with the reasons in NAME.failed.txt, and the exit code is 1.
    """
    from .bulk import Job

    if value is not None and file is not None:
        raise typer.BadParameter("give a VALUE or --file, not both", param_hint="VALUE")
    if key is not None and key_field is not None:
        raise typer.BadParameter("give --key or --key-field, not both", param_hint="--key")
    job = Job(url, topic, key, key_field, rate, timeout)
    if value is not None:
        execute(_one(job, value, json))
        return
    if file is not None and str(file) == "-":
        file = None
    if file is None and sys.stdin.isatty():
        raise typer.BadParameter("nothing to publish: give a VALUE, or --file, or pipe lines in", param_hint="VALUE")
    with _opened(file) as stream:
        summary = execute(_many(job, stream, file, format))
    _report(summary, job, json)


async def _one(job: Job, value: str, json: bool) -> None:
    from switchgear.errors import ConfigurationError

    from .bulk import send, session
    from .lines import json_record
    from .output import print_json

    record = json_record(1, as_json(value), job.key_field)
    if record.reason:
        raise ConfigurationError(f"VALUE: {record.reason}")
    async with session(job) as (bus, topic):
        id = await send(bus, topic, record, job)
    print_json({"topic": job.topic, "id": id}) if json else print(id)


async def _many(job: Job, stream: BinaryIO, file: Path | None, format: Format | None) -> Summary:
    from .bulk import Sender, session
    from .kept import Kept
    from .lines import FORMATS, chunks, lines
    from .progress import progress

    kind = format or ("csv" if file is not None and file.suffix.lower() == ".csv" else "jsonl")
    kept = Kept(file if file is not None else Path(f"{job.topic}.{kind}"))
    size = os.fstat(stream.fileno()).st_size or None  # a pipe has no size
    async with session(job) as (bus, topic):
        sender = Sender(bus, topic, job, kept)
        with progress("publishing", size) as advance:

            async def counted() -> AsyncIterator[bytes]:
                async for chunk in chunks(stream.fileno()):
                    yield chunk
                    advance(len(chunk), sender.summary.text)

            with kept:
                return await sender.run(FORMATS[kind](lines(counted()), job.key_field, kept.heading))


def as_json(value: str) -> bytes:
    """The value as JSON text: itself if it is JSON, or looks as if it were meant to be, else a JSON string."""
    import msgspec

    try:
        msgspec.json.decode(value)
    except msgspec.DecodeError:
        if not value.lstrip().startswith(("{", "[", '"')):
            return msgspec.json.encode(value)
    return value.encode("utf-8", "surrogateescape")


def _opened(file: Path | None) -> contextlib.AbstractContextManager[BinaryIO]:
    if file is None:
        return contextlib.nullcontext(sys.stdin.buffer)
    try:
        return file.open("rb", buffering=0)
    except OSError as error:
        raise typer.BadParameter(f"{file}: {error.strerror}", param_hint="--file") from None


def _report(summary: Summary, job: Job, json: bool) -> None:
    from .output import print_json

    for reason in summary.reasons:
        note(reason)
    if summary.failed > len(summary.reasons):
        note(f"… and {summary.failed - len(summary.reasons)} more")
    if summary.failed:
        note(f"the lines that failed are in {summary.lines_file}, the reasons in {summary.reasons_file}")
    if summary.stopped:
        note(f"stopped: {summary.stopped}; lines from {summary.line + 1} on were not tried")
    if json:
        print_json({"topic": job.topic, **summary.as_dict()})
    else:
        print(f"{job.topic}: {summary.text}")
    if summary.interrupted:
        raise typer.Exit(INTERRUPTED)
    if summary.failed or summary.stopped:
        raise typer.Exit(FAILED)
