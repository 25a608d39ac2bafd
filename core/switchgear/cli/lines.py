"""Reading what `publish` sends: JSON Lines or CSV, from a file or a pipe, in chunks, with flat memory."""

from __future__ import annotations

import asyncio
import csv
import os
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import msgspec

from switchgear.errors import ConfigurationError

from .fields import dig

CHUNK = 1 << 18  # bytes
LONGEST = 64 << 20  # bytes of one line; without a bound a file without line ends would fill the memory


class Record(msgspec.Struct, gc=False):
    """One value to publish, or the reason why it cannot be."""

    line: int
    """Where it begins in the input, from 1."""
    text: bytes
    """As it stands in the input, without its line end."""
    body: bytes = b""
    """JSON. Of JSON Lines it is the line itself, byte for byte."""
    key: str | None = None
    reason: str = ""
    """Why it cannot be published; "" when it can."""


async def chunks(fd: int) -> AsyncIterator[bytes]:
    """What arrives on a file descriptor; a pipe that is silent blocks nobody."""
    while chunk := await _read(fd):
        yield chunk


async def _read(fd: int) -> bytes:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    try:
        loop.add_reader(fd, ready.set)
    except (PermissionError, NotImplementedError):  # a regular file is always readable and cannot be waited for
        return os.read(fd, CHUNK)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)
    return os.read(fd, CHUNK)


async def lines(source: AsyncIterator[bytes]) -> AsyncIterator[list[bytes]]:
    """Whole lines without their newline; a byte order mark at the start is dropped."""
    begun: list[bytes] = []  # of the line that the last chunk left open
    size, first = 0, True
    async for chunk in source:
        if first:
            chunk, first = chunk.removeprefix(b"\xef\xbb\xbf"), False
        head, newline, tail = chunk.partition(b"\n")
        begun.append(head)
        size += len(head)
        if size > LONGEST:
            raise ConfigurationError(
                f"a line of the input is longer than {LONGEST >> 20} MiB: is it JSON Lines or CSV?"
            )
        if newline:
            *whole, rest = tail.split(b"\n")
            yield [b"".join(begun), *whole]
            begun, size = [rest], len(rest)
    if size:
        yield [b"".join(begun)]


async def json_records(
    source: AsyncIterator[list[bytes]],
    key_field: str | None,
    heading: Callable[[bytes], object],  # noqa: ARG001  # JSON Lines have none
) -> AsyncIterator[Sequence[Record]]:
    """A record for each line that is not blank."""
    number = 0
    async for batch in source:
        found: list[Record] = []
        for text in batch:
            number += 1
            if text.strip():
                found.append(json_record(number, text.removesuffix(b"\r"), key_field))
        yield found


def json_record(number: int, text: bytes, key_field: str | None) -> Record:
    """The record of one JSON text, which is published as it stands."""
    try:
        return _keyed(Record(number, text, text), msgspec.json.decode(text), key_field)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return Record(number, text, reason=f"not JSON: {error}")


async def csv_records(
    source: AsyncIterator[list[bytes]], key_field: str | None, heading: Callable[[bytes], object]
) -> AsyncIterator[Sequence[Record]]:
    """A record for each row under the header: an object of the header's names and the row's texts."""
    header: list[str] | None = None
    number, begun, pending = 0, 0, b""
    async for batch in source:
        found: list[Record] = []
        for text in batch:
            number += 1
            if not pending and not text.strip():
                continue
            begun = begun if pending else number
            pending = pending + b"\n" + text if pending else text
            if pending.count(b'"') % 2:  # within quotes, so the row goes on in the next line (RFC 4180, 2.6)
                if len(pending) > LONGEST:
                    raise ConfigurationError(
                        f"line {begun}: a quote is opened and not closed within {LONGEST >> 20} MiB"
                    )
                continue
            row, pending = pending.removesuffix(b"\r"), b""
            if header is None:
                header = _header(row)
                heading(row)
            else:
                found.append(_csv_record(begun, row, header, key_field))
        yield found
    if pending:
        yield [Record(begun, pending, reason="a quote is opened and not closed")]


def _header(text: bytes) -> list[str]:
    try:
        names = _cells(text)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigurationError(f"line 1: no CSV header: {error}") from None
    if len(set(names)) < len(names) or not all(names):
        raise ConfigurationError(f"line 1: a CSV header needs names that differ, found {', '.join(names)}")
    return names


def _csv_record(number: int, text: bytes, header: list[str], key_field: str | None) -> Record:
    try:
        cells = _cells(text)
    except (UnicodeDecodeError, csv.Error) as error:
        return Record(number, text, reason=f"not CSV: {error}")
    if len(cells) != len(header):
        return Record(number, text, reason=f"{len(cells)} cells under a header of {len(header)}")
    value = dict(zip(header, cells, strict=True))
    return _keyed(Record(number, text, msgspec.json.encode(value)), value, key_field)


def _cells(text: bytes) -> list[str]:
    return next(csv.reader([text.decode()], strict=True))


def _keyed(record: Record, value: Any, key_field: str | None) -> Record:
    if key_field is None:
        return record
    try:
        key = dig(value, key_field)
    except KeyError:
        record.reason = f"no field {key_field!r} to take the key from"
        return record
    if isinstance(key, str):
        record.key = key
    elif key is None or isinstance(key, (dict, list)):
        record.reason = f"field {key_field!r} is no text or number: it cannot be a key"
    else:
        record.key = msgspec.json.encode(key).decode()
    return record


Reader = Callable[[AsyncIterator[list[bytes]], str | None, Callable[[bytes], object]], AsyncIterator[Sequence[Record]]]
"""From lines, the key's field and what is told the heading, to records."""
FORMATS: dict[str, Reader] = {"jsonl": json_records, "csv": csv_records}
