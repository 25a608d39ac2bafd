"""CloudEvents 1.0: a message's attributes as headers (binary mode), as one JSON document (structured mode), or not at
all (plain messages of foreign producers).

An attribute's header is the broker's prefix and the attribute's name: `ce-id`, on Kafka `ce_id`. The content type is
none of them, it travels as the broker's own (`Outgoing.media`). Instants are RFC 3339 in UTC. A header that is no
attribute is the user's.
"""

from __future__ import annotations

import math
import re
import time as _time
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Callable, Container, Mapping
from datetime import datetime, timedelta
from typing import Any

import msgspec

from .driver import HeaderLimits, Headers
from .errors import CodecError, ConfigurationError, Refused

ATTRIBUTES = frozenset((
    "specversion", "id", "source", "type", "time", "datacontenttype", "dataschema", "subject",
    "partitionkey", "traceparent", "tracestate",
))  # fmt: skip
"""Of CloudEvents 1.0 and its registered extensions."""
OURS = frozenset((
    "expirytime", "priority", "correlationid", "causationid", "replyto",
    "sgattempt", "sgfirstfailure", "sgdue", "sgtarget",
    "sgreason", "sgtopic", "sggroup", "sgposition", "sgkey", "sgtime",
))  # fmt: skip
"""Our extensions: of any message, of copies, of dead letters."""
ACTED_ON = frozenset(("expirytime", "replyto", "sgattempt", "sgdue", "sgfirstfailure", "sgreason", "sgtarget"))
"""Attributes that the core has to know before the handler: a message with one of them is `marked`."""
RESERVED = ATTRIBUTES | OURS | {"content-type"}
"""Names that a user's header may not have, nor any that starts with `ce-`, `ce_` or `sg`."""
REASON_BYTES = 512

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, section 5.6.2
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_INSTANT = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:)(\d\d)(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_END_OF_TIME = 253402300799.0  # 9999-12-31T23:59:59Z, the last that RFC 3339 can write


class Envelope(msgspec.Struct):
    """What is known of a message beside its body. All None for a plain message."""

    id: str | None = None
    source: str | None = None
    type: str | None = None
    time: datetime | None = None
    subject: str | None = None
    dataschema: str | None = None
    key: str | None = None
    """partitionkey"""
    traceparent: str | None = None
    tracestate: str | None = None
    expires: float | None = None
    """expirytime, unix seconds"""
    priority: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    reply_to: str | None = None
    attempt: int | None = None
    """sgattempt: of a copy the number of the handler's next call; of a dead letter the calls made."""
    first_failure: float | None = None
    """sgfirstfailure, unix seconds"""
    due: float | None = None
    """sgdue, unix seconds"""
    target: str | None = None
    """sgtarget: the logical topic to which a waiting message goes when it is due; a group's return address marks its
    copies for good"""
    headers: dict[str, str] = {}
    """User headers; of a repeated name the last; bytes that are not UTF-8 as surrogate escapes."""
    extensions: dict[str, str] = {}
    """Attributes that have no field here, without prefix: those of foreign producers, and `sgreason` and its like."""
    structured: bool = False
    data: bytes | None = None
    """Structured mode: the value's bytes; None where the event has none."""
    media: bytes | None = None
    """Structured mode: the value's content type."""


# ---- instants -------------------------------------------------------------------------------------------------------


def parse_time(text: str) -> datetime:
    """An RFC 3339 instant. Raises ValueError for anything else, an instant without offset included."""
    found = _INSTANT.fullmatch(text)
    if found is None:
        raise ValueError("it is no RFC 3339 instant such as 2030-01-31T12:00:00Z")
    day, minute, second, fraction, offset = found.groups(default="")
    leap = second == "60"  # datetime knows no leap second: the instant after it is the same
    value = datetime.fromisoformat(f"{day}T{minute}{'59' if leap else second}{fraction[:7]}{offset.upper()}")
    return value + timedelta(seconds=1) if leap else value


def rfc3339(unix: float) -> bytes:
    """Unix seconds as RFC 3339 in UTC with milliseconds. Raises ConfigurationError outside the years 1970 to 9999."""
    if not 0 <= unix <= _END_OF_TIME:
        raise ConfigurationError(f"{unix!r} is no instant in unix seconds between the years 1970 and 9999")
    return _instant(min(round(unix * 1000), int(_END_OF_TIME) * 1000))


def _instant(milliseconds: int) -> bytes:
    whole, rest = divmod(milliseconds, 1000)
    return b"%b.%03dZ" % (_time.strftime("%Y-%m-%dT%H:%M:%S", _time.gmtime(whole)).encode(), rest)


class Stamp:
    """The present instant as RFC 3339, formatted at most once a millisecond."""

    __slots__ = ("_at", "_now", "_text")

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._at = -1
        self._text = b""

    def __call__(self) -> bytes:
        at = int(self._now() * 1000)
        if at != self._at:
            self._text = _instant(at)
            self._at = at
        return self._text


# ---- reading --------------------------------------------------------------------------------------------------------


def _specversion(text: str) -> str:
    if not text.startswith("1."):
        raise ValueError("only CloudEvents 1.x is understood")
    return text


def _required(text: str) -> str:
    if not text:
        raise ValueError("it is empty")
    return text


def _unix(text: str) -> float:
    return parse_time(text).timestamp()


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise ValueError("it is no whole number")
    return int(text)


_FIELDS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "specversion": ("", _specversion),
    "id": ("id", _required),
    "source": ("source", _required),
    "type": ("type", _required),
    "time": ("time", parse_time),
    "subject": ("subject", str),
    "dataschema": ("dataschema", str),
    "partitionkey": ("key", str),
    "traceparent": ("traceparent", str),
    "tracestate": ("tracestate", str),
    "expirytime": ("expires", _unix),
    "priority": ("priority", str),
    "correlationid": ("correlation_id", str),
    "causationid": ("causation_id", str),
    "replyto": ("reply_to", str),
    "sgattempt": ("attempt", _count),
    "sgfirstfailure": ("first_failure", _unix),
    "sgdue": ("due", _unix),
    "sgtarget": ("target", str),
}
_HEADERS = {prefix + name: name for prefix in ("ce-", "ce_") for name in _FIELDS}  # the quick way: no lower(), no slice


def attribute_name(header: str, binding: str) -> str | None:
    """The attribute that a header carries (`ce-id`, `ce_ID`, or `binding` as prefix: "id"); None for a user header."""
    known = _HEADERS.get(header)
    if known is not None:
        return known
    low = header.lower()
    if low.startswith(("ce-", "ce_")):
        return low[3:]
    return low[len(binding) :] if binding and low.startswith(binding.lower()) else None


def read(headers: Headers, binding: str, only: Container[str] | None = None) -> Envelope:
    """The envelope of a binary or plain message; `only` these of its attributes, and then no user header.

    Raises CodecError naming an attribute whose value is malformed.
    """
    fields: dict[str, Any] = {}
    extensions: dict[str, str] = {}
    user: dict[str, str] = {}
    for header, value in headers:
        name = attribute_name(header, binding)
        if only is not None and (name is None or name not in only):
            continue
        if name is not None:
            _set(fields, extensions, name, _text(name, value))
        elif len(header) != 12 or header.lower() != "content-type":
            user[header] = value.decode("utf-8", "surrogateescape")
    return Envelope(**fields, headers=user, extensions=extensions)


def is_structured(media: bytes) -> bool:
    """Whether this content type says that the body is a whole event as JSON."""
    return media.partition(b";")[0].strip().lower() == b"application/cloudevents+json"


def read_structured(body: bytes) -> Envelope:
    """The envelope of a structured event, its value in `data`. Raises CodecError where it is no CloudEvents JSON."""
    try:
        document = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CodecError(f"structured CloudEvent: the body is no JSON object: {error}") from error
    data = document.pop("data", None)
    base64 = document.pop("data_base64", None)
    fields: dict[str, Any] = {}
    extensions: dict[str, str] = {}
    for name, raw in document.items():
        text = _json_text(name, raw)
        if text is not None:
            _set(fields, extensions, name, text)
    for name in ("specversion", "id", "source", "type"):
        if name not in document:
            raise CodecError(f"structured CloudEvent: the attribute {name!r} is missing")
    media = extensions.pop("datacontenttype", None)
    value = _structured_data(data, base64, media)
    if media is None and data is not None:
        media = "application/json"
    return Envelope(
        **fields,
        extensions=extensions,
        structured=True,
        data=value,
        media=None if media is None else media.encode(),
    )


def _structured_data(data: msgspec.Raw | None, base64: msgspec.Raw | None, media: str | None) -> bytes | None:
    if base64 is not None:
        if data is not None:
            raise CodecError("structured CloudEvent: both 'data' and 'data_base64' are there")
        try:
            return b64decode(msgspec.json.decode(base64, type=str), validate=True)
        except (msgspec.DecodeError, Base64Error, ValueError) as error:
            raise CodecError(f"structured CloudEvent: 'data_base64' is not Base64: {error}") from error
    if data is None:
        return None
    raw = bytes(data).strip()
    if media is None or is_json(media):
        return raw
    try:
        return msgspec.json.decode(raw, type=str).encode()
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CodecError(f"structured CloudEvent: 'data' of content type {media!r} is no string") from error


def is_json(media: str) -> bool:
    """Whether a content type is JSON or one of the types that are written in it (`+json`)."""
    base = media.partition(";")[0].strip().lower()
    return base in ("application/json", "text/json") or base.endswith("+json")


def _json_text(name: str, raw: msgspec.Raw) -> str | None:
    try:
        value = msgspec.json.decode(raw, type=str | bool | int | None)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CodecError(f"CloudEvents attribute {name!r} is malformed: {error}") from error
    if isinstance(value, bool):
        return "true" if value else "false"
    return None if value is None else str(value)


def _text(name: str, value: bytes) -> str:
    if name == "partitionkey":  # a key is whatever bytes the producer hashed
        return value.decode("utf-8", "surrogateescape")
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise CodecError(f"CloudEvents attribute {name!r} is malformed: it is not UTF-8") from error


def _set(fields: dict[str, Any], extensions: dict[str, str], name: str, text: str) -> None:
    known = _FIELDS.get(name)
    if known is None:
        extensions[name] = text
        return
    field, parse = known
    try:
        value = parse(text)
    except (ValueError, OverflowError) as error:
        raise CodecError(f"CloudEvents attribute {name!r} is malformed: {error}") from None
    if field:
        fields[field] = value


# ---- writing --------------------------------------------------------------------------------------------------------


def attribute(name: str, value: str, *, text: bool = False) -> bytes:
    """An attribute's value (an id, a key, a priority) as bytes of a header; `name` is for the error.

    Surrogate escapes, as `Message.headers` and `Message.key` have them, become bytes again, unless it must be `text`.
    Raises Refused for those and other lone surrogates, and for control characters, which could inject into a protocol.
    """
    if _CONTROL.search(value):
        raise Refused(f"{name} contains a control character such as a line break: remove it, nothing was sent")
    try:
        return value.encode("utf-8", "strict" if text else "surrogateescape")
    except UnicodeEncodeError:
        raise Refused(f"{name} is not Unicode text (it has a lone surrogate): nothing was sent") from None


def static(binding: str, *, source: str, type: str, dataschema: str | None = None) -> Headers:
    """The headers that all messages of one topic and application share. Raises Refused for control characters."""
    headers = [
        (f"{binding}specversion", b"1.0"),
        (f"{binding}source", attribute("the CloudEvents source", source)),
        (f"{binding}type", attribute("the CloudEvents type", type)),
    ]
    if dataschema is not None:
        headers.append((f"{binding}dataschema", attribute("the CloudEvents dataschema", dataschema)))
    return headers


def user_headers(headers: Mapping[str, str], limits: HeaderLimits, binding: str) -> Headers:
    """A user's headers, checked and encoded.

    Names are tokens of RFC 9110, not reserved; values are text without control characters. Raises Refused naming the
    header and the rule; nothing was sent.
    """
    encoded: Headers = []
    for name, value in headers.items():
        if not _TOKEN.fullmatch(name):
            raise Refused(
                f"header name {name!r} is no token: ASCII letters, digits and !#$%&'*+.^_`|~- only; nothing was sent"
            )
        if name.lower() in RESERVED or attribute_name(name, binding) is not None or name.lower().startswith("sg"):
            raise Refused(
                f"header {name!r} is reserved (CloudEvents attributes, 'ce-', 'ce_', 'sg', content-type): "
                "choose another name; nothing was sent"
            )
        if not isinstance(value, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise Refused(f"header {name!r} is {type(value).__name__}, not str: convert it to text; nothing was sent")
        encoded.append((name, attribute(f"header {name!r}", value, text=limits.text)))
    check_limits(encoded, limits)
    return encoded


def check_limits(headers: Headers, limits: HeaderLimits) -> None:
    """Raises Refused when the headers, taken together, are beyond what the broker keeps."""
    if len(headers) > limits.count:
        raise Refused(f"{len(headers)} headers, this broker keeps at most {limits.count}; nothing was sent")
    total = 0
    for name, value in headers:
        if len(name) > limits.name:
            raise Refused(
                f"header name {name[:40]!r}… has {len(name)} bytes, this broker keeps at most {limits.name}; "
                "nothing was sent"
            )
        if len(value) > limits.value:
            raise Refused(
                f"header {name!r} has {len(value)} bytes, this broker keeps at most {limits.value}; nothing was sent"
            )
        total += len(name) + len(value)
    if total > limits.total:
        raise Refused(f"headers of {total} bytes in all, this broker keeps at most {limits.total}; nothing was sent")


def with_attributes(headers: Headers, binding: str, attributes: Mapping[str, bytes | None]) -> Headers:
    """A copy's headers: these attributes replaced (None: taken away), all else kept, byte by byte and in order."""
    kept = [header for header in headers if attribute_name(header[0], binding) not in attributes]
    return kept + [(binding + name, value) for name, value in attributes.items() if value is not None]


def acted_on(headers: Headers, binding: str) -> bool:
    """Whether an attribute is among them that the core acts on; see `driver.Outgoing.marked`."""
    return any(attribute_name(name, binding) in ACTED_ON for name, _ in headers)


def due_time(unix: float) -> bytes:
    """The attribute `sgdue`: to the millisecond after, never before."""
    return rfc3339(math.ceil(unix * 1000) / 1000)


def dead_letter(
    headers: Headers,
    binding: str,
    limits: HeaderLimits,
    *,
    reason: str,
    attempts: int,
    topic: str,
    group: str,
    position: str,
    key: bytes | None,
    time: float,
    first_failure: float | None = None,
) -> Headers:
    """The headers of a dead letter: all of the original's, and why, when and from where it came.

    `attempts` counts the calls of the handler (0: it was never called), `topic` is logical, `time` (unix seconds) is
    when the original was stored. `reason` is cut to 512 bytes; control characters in it, in `position` and in the key
    become spaces, bytes of the key that are not UTF-8 an escape: the exact key is the dead letter's own. What an
    earlier dead letter said is replaced.

    Where the broker's limits do not hold everything, user headers go, the largest first, then attributes of foreign
    producers, then the reason is cut further. The rest is never given up, so a broker may still refuse it.
    """
    ours: dict[str, bytes | None] = {
        "sgreason": _clip(reason, min(REASON_BYTES, limits.value)),
        "sgattempt": b"%d" % attempts,
        "sgtopic": _clip(topic, limits.value),
        "sggroup": _clip(group, limits.value),
        "sgposition": _clip(position, limits.value),
        "sgkey": None if key is None else _clip(key.decode("utf-8", "backslashreplace"), limits.value),
        "sgtime": rfc3339(time),
        "sgfirstfailure": None if first_failure is None else rfc3339(first_failure),
        "sgdue": None,
        "sgtarget": None,
    }
    letter = with_attributes(headers, binding, ours)
    return _fit(letter, binding, limits)


def _fit(headers: Headers, binding: str, limits: HeaderLimits) -> Headers:
    names = [attribute_name(name, binding) for name, _ in headers]
    sizes = [len(name) + len(value) for name, value in headers]
    count, total = len(headers), sum(sizes)
    user = [i for i, name in enumerate(names) if name is None]
    foreign = [i for i, name in enumerate(names) if name is not None and name not in RESERVED]
    dropped: set[int] = set()
    for i in [*sorted(user, key=lambda i: -sizes[i]), *sorted(foreign, key=lambda i: -sizes[i])]:
        if count <= limits.count and total <= limits.total:
            break
        dropped.add(i)
        count, total = count - 1, total - sizes[i]
    fitting = [header for i, header in enumerate(headers) if i not in dropped]
    if total <= limits.total:
        return fitting
    spare = limits.total - total
    return [
        (name, _clip(value.decode(), max(0, len(value) + spare))) if name == f"{binding}sgreason" else (name, value)
        for name, value in fitting
    ]


def _clip(text: str, size: int) -> bytes:
    """At most `size` bytes of UTF-8, whole characters, no control characters."""
    data = _CONTROL.sub(" ", text).encode("utf-8", "replace")
    return data if len(data) <= size else data[:size].decode("utf-8", "ignore").encode()
