"""What `publish` reads, and what it keeps of lines that failed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from switchgear.cli.fields import condition, dig, matches
from switchgear.cli.kept import Kept
from switchgear.cli.lines import CHUNK, FORMATS, Record, chunks, lines
from switchgear.cli.publish import as_json
from switchgear.errors import ConfigurationError


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def read(kind: str, *parts: bytes, key_field: str | None = None) -> list[Record]:
    headings: list[bytes] = []
    found: list[Record] = []
    async for batch in FORMATS[kind](lines(pieces(*parts)), key_field, headings.append):
        found.extend(batch)
    assert len(headings) == (kind == "csv")
    return found


async def test_a_json_line_is_published_byte_for_byte() -> None:
    exact = b' {"a":1.0,"big":123456789012345678901234567890,"a":2, "u":"\\u00e9"}'
    [record] = await read("jsonl", exact + b"\r\n")
    assert record.body == exact
    assert (record.line, record.key, record.reason) == (1, None, "")


async def test_lines_are_numbered_as_in_the_file_and_blank_ones_are_no_messages() -> None:
    found = await read("jsonl", b"\xef\xbb\xbf1\n\n  \n2\nnope\n3")
    assert [(r.line, r.body, bool(r.reason)) for r in found] == [
        (1, b"1", False), (4, b"2", False), (5, b"", True), (6, b"3", False),
    ]  # fmt: skip
    assert found[2].reason.startswith("not JSON")
    assert found[2].text == b"nope"


@settings(deadline=None)
@given(st.lists(st.binary(max_size=20)), st.lists(st.integers(0, 400)))
def test_lines_are_the_same_however_the_chunks_fall(wanted: list[bytes], cuts: list[int]) -> None:
    wanted = [line.replace(b"\n", b" ") for line in wanted if not line.startswith(b"\xef\xbb\xbf")]
    whole = b"".join(line + b"\n" for line in wanted)
    edges = sorted({0, len(whole), *(cut for cut in cuts if cut < len(whole))})
    parts = [whole[a:b] for a, b in pairwise(edges)]

    async def collect() -> list[bytes]:
        return [line async for batch in lines(pieces(*parts)) for line in batch]

    with pytest.raises(StopIteration) as end:
        collect().send(None)  # nothing in it waits
    assert end.value.value == wanted


async def test_a_csv_row_is_an_object_of_texts() -> None:
    found = await read("csv", b'id,note\r\n007,"a ""b"", c"\r\n1.50,"two\r\nlines"\r\n\r\nx,\r\n')
    assert [msgspec.json.decode(r.body) for r in found] == [
        {"id": "007", "note": 'a "b", c'},
        {"id": "1.50", "note": "two\r\nlines"},
        {"id": "x", "note": ""},
    ]
    assert [r.line for r in found] == [2, 3, 6]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"1", "1 cells under a header of 2"),
        (b"1,2,3", "3 cells under a header of 2"),
        (b"\xff,2", "not CSV"),
        (b'1,"2', "a quote is opened and not closed"),
        (b'1,"2"x', "not CSV"),
    ],
)
async def test_a_wrong_csv_row_has_a_reason(row: bytes, reason: str) -> None:
    good, bad = await read("csv", b"a,b\n1,2\n" + row + b"\n")
    assert not good.reason
    assert reason in bad.reason
    assert bad.line == 3


@pytest.mark.parametrize("header", [b"a,a", b"a,,b", b"\xff\xfe"])
async def test_a_wrong_csv_header_ends_it(header: bytes) -> None:
    with pytest.raises(ConfigurationError, match="line 1"):
        await read("csv", header + b"\n1,2\n")


@pytest.mark.parametrize(
    ("text", "key", "reason"),
    [
        (b'{"c":{"id":"ann"}}', "ann", ""),
        (b'{"c":{"id":42}}', "42", ""),
        (b'{"c":{"id":true}}', "true", ""),
        (b'{"c":{}}', None, "no field 'c.id'"),
        (b"[]", None, "no field 'c.id'"),
        (b'{"c":{"id":null}}', None, "cannot be a key"),
        (b'{"c":{"id":{}}}', None, "cannot be a key"),
    ],
)
async def test_keys_come_from_a_field(text: bytes, key: str | None, reason: str) -> None:
    [record] = await read("jsonl", text, key_field="c.id")
    assert record.key == key
    assert reason in record.reason
    assert bool(reason) == bool(record.reason)


async def test_a_pipe_that_is_silent_blocks_nobody() -> None:
    out, into = os.pipe()
    source = chunks(out)
    first = asyncio.ensure_future(anext(source))
    await asyncio.sleep(0)
    assert not first.done()
    os.write(into, b"hello")
    assert await first == b"hello"
    os.close(into)
    with pytest.raises(StopAsyncIteration):
        await anext(source)
    os.close(out)


async def test_a_file_is_read_in_chunks(tmp_path: Path) -> None:
    path = tmp_path / "big"
    path.write_bytes(b"x" * (CHUNK + 1))
    with path.open("rb") as file:
        assert [len(chunk) async for chunk in chunks(file.fileno())] == [CHUNK, 1]


def test_fields() -> None:
    value = {"a": {"b": [10, {"c": "x"}]}, "d.e": 1}
    assert dig(value, "a.b.1.c") == "x"
    for missing in ("z", "a.b.2", "a.b.x", "a.b.0.c", "a.b.-1"):
        with pytest.raises(KeyError):
            dig(value, missing)


@pytest.mark.parametrize(
    ("value", "text", "matching"),
    [
        ({"n": 42}, "n=42", True),
        ({"n": 42}, "n=42.0", True),
        ({"n": "42"}, "n=42", True),
        ({"n": 42}, "n=x", False),
        ({"n": True}, "n=true", True),
        ({"n": True}, "n=1", False),
        ({"n": 1}, "n=true", False),
        ({"n": None}, "n=null", True),
        ({"n": ["a"]}, 'n=["a"]', True),
        ({"n": "a=b"}, "n=a=b", True),
        ({}, "n=1", False),
        (["x"], "0=x", True),
    ],
)
def test_where(value: object, text: str, matching: bool) -> None:
    assert matches(value, *condition(text)) is matching


@pytest.mark.parametrize("text", ["", "x", "=1"])
def test_a_condition_needs_a_field_and_a_value(text: str) -> None:
    with pytest.raises(ConfigurationError, match="FIELD=VALUE"):
        condition(text)


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("Ada", b'"Ada"'),
        ("5", b"5"),
        ('{"a": 1.0}', b'{"a": 1.0}'),
        ('{"a": 1', b'{"a": 1'),  # meant as JSON: refused later, not sent as text
        ("null", b"null"),
        ("", b'""'),
    ],
)
def test_a_value_is_json_or_text(given: str, sent: bytes) -> None:
    assert as_json(given) == sent


def test_nothing_is_kept_when_nothing_failed(tmp_path: Path) -> None:
    with Kept(tmp_path / "orders.jsonl"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_failed_lines_are_kept_as_they_were_and_never_over_others(tmp_path: Path) -> None:
    for n in range(3):
        with Kept(tmp_path / "orders.csv") as kept:
            kept.heading(b"id,total")
            kept.add(7, b"1,\xff" + str(n).encode(), "not CSV")
    assert (tmp_path / "orders.failed.csv").read_bytes() == b"id,total\n1,\xff0\n"
    assert (tmp_path / "orders.failed.txt").read_text() == "line 7: not CSV\n"
    assert (tmp_path / "orders.failed-2.csv").read_bytes() == b"id,total\n1,\xff1\n"
    assert (tmp_path / "orders.failed-3.txt").exists()


def test_the_reasons_of_a_txt_file_have_a_name_of_their_own(tmp_path: Path) -> None:
    with Kept(tmp_path / "orders.txt") as kept:
        kept.add(1, b"x", "why")
    assert (tmp_path / "orders.failed.txt").read_bytes() == b"x\n"
    assert (tmp_path / "orders.failed.reasons.txt").read_text() == "line 1: why\n"
