"""How messages lie in a stream, and what is made of foreign entries."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from switchgear.driver import Delivery, Outgoing
from switchgear_redis import entries

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
HEADERS = st.lists(st.tuples(TEXT, st.binary()), max_size=5)


@given(HEADERS)
def test_headers_round_trip_and_are_text(headers: list[tuple[str, bytes]]) -> None:
    packed = entries.pack(headers)
    packed.decode()
    assert entries.unpack(packed) == headers


def test_text_headers_show_in_redis_cli() -> None:
    assert entries.pack([("ce-id", b"7"), ("x", b"\xff")]) == b'[["ce-id","7"],["x","/w==","base64"]]'
    assert entries.pack([]) == b""


def test_nonsense_in_the_field_of_headers_is_no_header() -> None:
    for text in (b"{}", b"[", b'["a"]', b'[["a"]]', b'[["a","!","base64"]]', b"\xff", b'[["a","\\ud800"]]'):
        assert entries.unpack(text) == []


def fields(message: Outgoing) -> list[bytes]:
    """As the script writes them."""
    f = [b"b", message.body or b"", b"h", entries.pack(message.headers), b"t", message.media or b""]
    kind = entries.kind(message)
    if "k" in kind:
        f += [b"k", message.key or b""]
    if "m" in kind:
        f += [b"m", b"1"]
    return f


@given(st.binary(), st.none() | st.binary(min_size=1), st.none() | st.binary(), HEADERS, st.booleans())
def test_both_ways_of_reading_agree(
    body: bytes, media: bytes | None, key: bytes | None, headers: list[tuple[str, bytes]], marked: bool
) -> None:
    sent = Outgoing(topic="t", body=body, media=media, key=key, headers=headers, marked=marked)
    slow = entries.one("t", "", ("t", b"1-0"), fields(sent), 1, 5.0, 0)
    quick: list[Delivery] = []
    entries.deliver(quick, "t", "", [(b"1-0", fields(sent))], alone=False, until=5.0, fence=0)
    assert quick == [slow]
    assert (slow.body, slow.media, slow.key, slow.marked) == (body, media, key, marked)
    assert entries.headers(slow) == headers


def foreign(*f: bytes) -> Delivery:
    return entries.one("t", "", b"1-0", list(f), 1, 0.0, 0)


def test_foreign_body_field_and_headers() -> None:
    d = foreign(
        b"trace", b"1", b"data", b'{"a": 1}', b"content-type", b"application/json", b"key", b"k", b"trace", b"2"
    )
    assert (d.body, d.media, d.key, d.marked) == (b'{"a": 1}', b"application/json", b"k", True)
    assert entries.headers(d) == [("trace", b"1"), ("trace", b"2")]


def test_foreign_fields_are_a_json_object() -> None:
    d = foreign(b"sensor", b"a", b"degrees", b"21.5", b"raw", b"\xff")
    assert json.loads(d.body or b"") == {"sensor": "a", "degrees": "21.5", "raw": "�"}
    assert d.media == b"application/json"
    assert entries.headers(d) == []


def test_foreign_entry_that_looks_like_ours() -> None:
    d = foreign(b"b", b"body")
    assert (d.body, entries.headers(d)) == (b"body", [])
    out: list[Delivery] = []
    six = [b"b", b"1", b"h", b"2", b"other", b"3"]
    entries.deliver(out, "t", "", [(b"1-0", six)], alone=True, until=0.0, fence=0)
    assert (out[0].body, out[0].media) == (b"1", None)
    assert entries.headers(out[0]) == [("h", b"2"), ("other", b"3")]


@given(st.lists(st.binary(), min_size=2, max_size=12).filter(lambda f: len(f) % 2 == 0))
def test_no_entry_raises(f: list[bytes]) -> None:
    entries.headers(foreign(*f))
