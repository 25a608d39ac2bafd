"""How a message lies in a stream, and how entries of foreign producers are read.

Our own entries have the fields `b` body, `h` headers (JSON text, `[["name", "value"], …]`; a value that is no UTF-8
text is `["name", "…", "base64"]`), `t` content type, `k` key where there is one, `m` = 1 where a header concerns the
core. Few fields in one order: Redis then stores each name once a block.

An entry of somebody else's: a field `body`, `data`, `payload`, `message` or `b` (the first that is there) is the
body, `content-type` its type, `key` its key, and all other fields are headers. Without such a field, the body is a
JSON object of all fields, as text.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Sequence
from typing import TypeAlias, cast

import msgspec

from switchgear.driver import Delivery, Headers, Outgoing

Fields: TypeAlias = list[bytes]
"""Names and values in turn, as Redis replies them."""

BODIES = (b"body", b"data", b"payload", b"message", b"b")
TYPE, KEY = b"content-type", b"key"

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(list[list[str]]).decode


def pack(headers: Headers) -> bytes:
    """Headers as JSON text. Raises UnicodeEncodeError for a name that is no text."""
    if not headers:
        return b""
    try:
        return _encode([(name, value.decode()) for name, value in headers])
    except UnicodeDecodeError:
        return _encode([_pair(name, value) for name, value in headers])


def _pair(name: str, value: bytes) -> tuple[str, ...]:
    try:
        return name, value.decode()
    except UnicodeDecodeError:
        return name, b64encode(value).decode(), "base64"


def unpack(text: bytes) -> Headers:
    """What `pack` wrote; nothing for what it never wrote."""
    if not text:
        return []
    try:
        return [(h[0], h[1].encode() if len(h) == 2 else b64decode(h[1], validate=True)) for h in _decode(text)]
    except (msgspec.DecodeError, UnicodeDecodeError, IndexError, ValueError):
        return []


def kind(message: Outgoing) -> str:
    """Which of the fields "k" and "m" it has."""
    return ("k" if message.key is not None else "") + ("m" if message.marked else "")


def deliver(
    out: list[Delivery], topic: str, lane: str, entries: Sequence[tuple[bytes, Fields | None]], *, alone: bool,
    until: float, fence: int,
) -> None:  # fmt: skip
    """Append a first delivery of each entry; `alone`: ids need no topic beside them to be unique."""
    add = out.append
    for id, f in entries:
        if f is None:
            continue  # trimmed
        token = id if alone else (topic, id)
        size = len(f)
        if size == 8 and f[0] == b"b" and f[2] == b"h" and f[4] == b"t" and f[6] == b"k":
            add(Delivery(topic, f[1], f[5] or None, f[7], lane, token, 1, until, fence, f, False))
        elif size == 6 and f[0] == b"b" and f[2] == b"h" and f[4] == b"t":
            add(Delivery(topic, f[1], f[5] or None, None, lane, token, 1, until, fence, f, False))
        else:
            add(one(topic, lane, token, f, 1, until, fence))


def one(topic: str, lane: str, token: object, f: Fields, deliveries: int | None, until: float, fence: int) -> Delivery:
    """One entry of any kind. `native` is the client's: the fields, names and values in turn."""
    if _ours(f):
        key = f[7] if len(f) > 6 and f[6] == b"k" else None
        marked = f[-2] == b"m"
        return Delivery(topic, f[1], f[5] or None, key, lane, token, deliveries, until, fence, f, marked)
    body, media, key = foreign(f)
    return Delivery(topic, body, media, key, lane, token, deliveries, until, fence, f)


def _ours(f: Fields) -> bool:
    return len(f) >= 6 and f[0] == b"b" and f[2] == b"h" and f[4] == b"t"


def foreign(f: Fields) -> tuple[bytes, bytes | None, bytes | None]:
    """Body, content type and key of a foreign entry."""
    values = dict(zip(f[::2], f[1::2], strict=True))
    for name in BODIES:
        if name in values:
            return values[name], values.get(TYPE), values.get(KEY)
    text = {_text(name): _text(value) for name, value in values.items()}
    return _encode(text), b"application/json", None


def fields(delivery: Delivery) -> Fields:
    """The entry as the client replied it."""
    return cast("Fields", delivery.native)


def headers(delivery: Delivery) -> Headers:
    """The headers of a delivery from its `native`."""
    f = fields(delivery)
    if _ours(f):
        return unpack(f[3])
    names = f[::2]
    body = next((name for name in BODIES if name in names), None)
    if body is None:
        return []
    taken = (body, TYPE, KEY)
    return [(_text(name), value) for name, value in zip(names, f[1::2], strict=True) if name not in taken]


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")
