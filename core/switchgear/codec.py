"""Values to bytes and back, chosen by content type.

Built in: JSON and MessagePack (msgspec, and pydantic for its own models), raw bytes, plain text. Others are plugins,
found by content type among the entry points `switchgear.codecs`; only the one that is named is imported.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Protocol, Union, get_args, get_origin

import msgspec

from .errors import CodecError, ConfigurationError
from .plugins import CODECS, manager

JSON = ("application/json", "text/json")
MSGPACK = ("application/msgpack", "application/x-msgpack", "application/vnd.msgpack")
RAW = "application/octet-stream"
TEXT = "text/plain"
BUILT_IN = (*JSON, *MSGPACK, RAW, TEXT)

DECODE_ERRORS: tuple[type[Exception], ...] = (msgspec.DecodeError, UnicodeDecodeError, RecursionError, CodecError)
"""What a decoder raises for bytes that are not what was declared; `decode_failed` makes a CodecError of it."""
ENCODE_ERRORS: tuple[type[Exception], ...] = (
    TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError, CodecError,
)  # fmt: skip
"""What an encoder raises for a value that it cannot write; `encode_failed` makes a CodecError of it."""

_MOST_MEDIA = 64  # content types come from outside: remember no more of them than an honest producer uses


class Codec(Protocol):
    """One way of writing values as bytes."""

    content_type: str
    """What travels with the bytes, parameters included."""

    def encoder(self, schema: Any) -> Callable[[Any], bytes]:
        """A function that writes values of this type. Raises ConfigurationError for a type that it cannot write."""
        ...

    def decoder(self, schema: Any) -> Callable[[bytes], Any]:
        """A function that reads values of this type. Raises ConfigurationError for a type that it cannot read."""
        ...


def codec(content_type: str) -> Codec:
    """The codec of a content type; parameters such as `charset=utf-8` are allowed.

    Raises ConfigurationError naming the known ones, or two plugins that claim the same.
    """
    base, charset = _parse(content_type)
    if base in JSON:
        return _utf8(_Json(content_type), charset)
    if base in MSGPACK:
        return _MsgPack(content_type)
    if base == RAW:
        return _Raw(content_type)
    if base == TEXT:
        return _Text(content_type, charset or "utf-8")
    plugged = _plugged(base)
    if plugged is not None:
        return plugged
    if base.endswith("+json"):
        return _utf8(_Json(content_type), charset)
    known = ", ".join(sorted({*BUILT_IN, *_installed()}))
    raise ConfigurationError(f"no codec for the content type {content_type!r}; known: {known}, and …+json")


class Decoders:
    """How one subscription reads bodies: by the content type of each message, from an allow-list.

    Without a content type, or with `application/octet-stream` (which says nothing), it is the topic's own. A topic of
    raw bytes takes every body as it is. `allowed` names content types without parameters; by default the topic's own
    and the built-in ones.
    """

    def __init__(self, schema: Any, content_type: str, allowed: Collection[str] | None = None) -> None:
        self._schema = schema
        self._content_type = content_type
        self._allowed = None if allowed is None else {_parse(one)[0] for one in allowed}
        self._raw = _parse(content_type)[0] == RAW
        self._default = codec(content_type).decoder(schema)
        self._known: dict[bytes | None, Callable[[bytes], Any]] = {None: self._default}

    def decode(self, body: bytes, media: bytes | None) -> Any:
        """The value. Raises CodecError that tells codec, schema and place, never the body."""
        decode = self._known.get(media)
        if decode is None:
            decode = self.decoder(media)
        try:
            return decode(body)
        except DECODE_ERRORS as error:
            raise self.failed(error, media) from None

    def decoder(self, media: bytes | None) -> Callable[[bytes], Any]:
        """The function that reads bodies of this content type; it raises DECODE_ERRORS. Raises CodecError if none."""
        decode = self._known.get(media)
        if decode is None:
            decode = self._choose(media.decode("ascii", "replace") if media else "")
            if len(self._known) < _MOST_MEDIA:
                self._known[media] = decode
        return decode

    def failed(self, error: Exception, media: bytes | None) -> CodecError:
        """What to raise when `decoder(media)` raised one of DECODE_ERRORS."""
        return decode_failed(error, media.decode("ascii", "replace") if media else self._content_type, self._schema)

    def _choose(self, media: str) -> Callable[[bytes], Any]:
        base, _ = _parse(media)
        own, _ = _parse(self._content_type)
        if self._raw or base in ("", RAW) or media == self._content_type:
            return self._default
        if self._allowed is None:
            fits = base == own or base in BUILT_IN or base.endswith("+json")
        else:
            fits = base in self._allowed
        if not fits:
            raise CodecError(f"content type {media[:80]!r} is not allowed here: this topic is {self._content_type}")
        try:
            return codec(media).decoder(self._schema)
        except ConfigurationError as error:
            raise CodecError(f"content type {media[:80]!r} cannot be read here: {error}") from None


def decode_failed(error: Exception, content_type: str, schema: Any) -> CodecError:
    """The error for a body that could not be read: codec, schema and place, never a value of the body."""
    if isinstance(error, CodecError):
        return error
    return CodecError(f"body is not {content_type[:80]} of {schema_name(schema)}: {_detail(error)}")


def encode_failed(error: Exception, content_type: str, schema: Any) -> CodecError:
    """The error for a value that could not be written: codec, schema and what is wrong, never the value."""
    if isinstance(error, CodecError):
        return error
    return CodecError(f"value cannot be written as {content_type} of {schema_name(schema)}: {_detail(error)}")


def admits_none(schema: Any) -> bool:
    """Whether None is a value of this type, so that a tombstone may be published and handled."""
    schema = _plain(schema)
    if schema is None or schema is Any or schema in (NoneType, object):
        return True
    if get_origin(schema) is Literal:
        return None in get_args(schema)
    return get_origin(schema) in (Union, UnionType) and any(admits_none(part) for part in get_args(schema))


def schema_name(schema: Any) -> str:
    """A type's name for messages: `Order`, `list[Order]`, `Created | Paid`."""
    if schema in (None, NoneType):
        return "None"
    if isinstance(schema, type) and get_origin(schema) is None:
        return schema.__qualname__
    origin, parts = get_origin(schema), get_args(schema)
    if origin in (Union, UnionType):
        return " | ".join(schema_name(part) for part in parts)
    if isinstance(origin, type) and parts:
        return f"{origin.__qualname__}[{', '.join(schema_name(part) for part in parts)}]"
    return str(schema).removeprefix("typing.")


# ---- built in -------------------------------------------------------------------------------------------------------


class _Json:
    def __init__(self, content_type: str) -> None:
        self.content_type = content_type

    def encoder(self, schema: Any) -> Callable[[Any], bytes]:
        if _is_pydantic(schema):
            return _dumper(schema, self.content_type, _adapter(schema).dump_json)
        _decoder(msgspec.json.Decoder, schema, self.content_type)  # what cannot be read back is not written
        return msgspec.json.Encoder(enc_hook=_unknown_to_msgspec).encode

    def decoder(self, schema: Any) -> Callable[[bytes], Any]:
        if _is_pydantic(schema):
            return _validator(schema, self.content_type)
        return _decoder(msgspec.json.Decoder, schema, self.content_type)


class _MsgPack:
    def __init__(self, content_type: str) -> None:
        self.content_type = content_type

    def encoder(self, schema: Any) -> Callable[[Any], bytes]:
        write = msgspec.msgpack.Encoder(enc_hook=_unknown_to_msgspec).encode
        if _is_pydantic(schema):
            dump = _dumper(schema, self.content_type, partial(_adapter(schema).dump_python, mode="json"))
            return lambda value: write(dump(value))
        _decoder(msgspec.msgpack.Decoder, schema, self.content_type)
        return write

    def decoder(self, schema: Any) -> Callable[[bytes], Any]:
        if _is_pydantic(schema):
            # By way of JSON, so that a strict model takes its dates and decimals from text here as there.
            validate = _validator(schema, self.content_type)
            to_json, read = msgspec.json.encode, msgspec.msgpack.decode
            return lambda body: validate(to_json(read(body)))
        return _decoder(msgspec.msgpack.Decoder, schema, self.content_type)


class _Raw:
    def __init__(self, content_type: str) -> None:
        self.content_type = content_type

    def encoder(self, schema: Any) -> Callable[[Any], bytes]:
        _only(schema, (bytes, bytearray, memoryview), self.content_type, "bytes")
        return _raw_bytes

    def decoder(self, schema: Any) -> Callable[[bytes], Any]:
        _only(schema, (bytes,), self.content_type, "bytes")
        return bytes


class _Text:
    def __init__(self, content_type: str, charset: str) -> None:
        self.content_type = content_type
        try:
            "".encode(charset)
        except LookupError:
            raise ConfigurationError(f"content type {content_type!r} names an unknown charset") from None
        self._charset = charset

    def encoder(self, schema: Any) -> Callable[[Any], bytes]:
        _only(schema, (str,), self.content_type, "str")
        charset = self._charset

        def encode(value: Any) -> bytes:
            if not isinstance(value, str):
                raise TypeError(f"expected str, got {type(value).__qualname__}")
            return value.encode(charset)

        return encode

    def decoder(self, schema: Any) -> Callable[[bytes], Any]:
        _only(schema, (str,), self.content_type, "str")
        charset = self._charset
        return lambda body: body.decode(charset)


def _raw_bytes(value: Any) -> bytes:
    if not isinstance(value, (bytes, bytearray, memoryview)):
        raise TypeError(f"expected bytes, got {type(value).__qualname__}")
    return bytes(value)  # pyright: ignore[reportUnknownArgumentType]


def _only(schema: Any, types: tuple[type, ...], content_type: str, name: str) -> None:
    schema = _plain(schema)
    parts = get_args(schema) if get_origin(schema) in (Union, UnionType) else (schema,)
    if not all(part is Any or part in (None, NoneType, object) or part in types for part in parts):
        raise ConfigurationError(
            f"{content_type} carries {name} alone, not {schema_name(schema)}: choose another codec"
        )


def _utf8(found: Codec, charset: str) -> Codec:
    if charset not in ("", "utf-8", "utf8", "us-ascii"):
        raise ConfigurationError(f"content type {found.content_type!r}: JSON is UTF-8 (RFC 8259), not {charset}")
    return found


# ---- msgspec --------------------------------------------------------------------------------------------------------


def _decoder(make: Callable[..., Any], schema: Any, content_type: str) -> Callable[[bytes], Any]:
    """msgspec's own decoding function. Raises ConfigurationError naming the type for which there is none."""
    from msgspec import inspect

    try:
        parts = list(_parts(inspect.type_info(schema), set()))
        plain = make(schema)
    except (TypeError, NameError, ValueError, AttributeError) as error:
        raise ConfigurationError(f"{schema_name(schema)} cannot be carried as {content_type}: {error}") from None
    foreign = [part.cls for part in parts if isinstance(part, inspect.CustomType)]
    for cls in foreign:
        if not _is_pydantic(cls):
            raise ConfigurationError(
                f"{schema_name(schema)} cannot be carried as {content_type}: {schema_name(cls)} is neither a msgspec "
                "Struct, dataclass, TypedDict, NamedTuple, enum or builtin nor a pydantic model"
            )
    decode: Callable[[bytes], Any] = (make(schema, dec_hook=_validate_part) if foreign else plain).decode
    return decode


def _parts(info: Any, seen: set[type]) -> Iterator[Any]:
    """All types within a type as msgspec describes them."""
    cls = getattr(info, "cls", None)
    if isinstance(cls, type):
        if cls in seen:
            return
        seen.add(cls)
    yield info
    for name in getattr(info, "__struct_fields__", ()):
        value: Any = getattr(info, name)
        for inner in _several(value):
            if isinstance(inner, msgspec.Struct):
                yield from _parts(inner, seen)


def _several(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)  # pyright: ignore[reportUnknownVariableType]


def _unknown_to_msgspec(value: Any) -> Any:
    """msgspec meets an object of a class that it does not know: a pydantic model within something else."""
    if not _is_pydantic(type(value)):
        raise TypeError(f"objects of type {type(value).__qualname__} cannot be written")
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json", by_alias=True)
    return _adapter(type(value)).dump_python(value, mode="json", by_alias=True)


# ---- pydantic: never imported here unless the user's own module has done so -----------------------------------------


def _is_pydantic(schema: Any) -> bool:
    if "pydantic" not in sys.modules:
        return False
    schema = _plain(schema)
    if isinstance(schema, type) and "__pydantic_core_schema__" in dir(schema):
        return True
    return any(_is_pydantic(part) for part in get_args(schema) if get_origin(schema) is not Literal)


def _adapter(schema: Any) -> Any:
    from pydantic import TypeAdapter
    from pydantic.errors import PydanticUserError

    try:
        return TypeAdapter(schema)
    except PydanticUserError as error:
        problem = error.message.splitlines()[0]
        raise ConfigurationError(
            f"{schema_name(schema)} mixes a pydantic model with what pydantic cannot read: {problem}"
        ) from None


def _dumper(schema: Any, content_type: str, dump: Callable[..., Any]) -> Callable[[Any], Any]:
    from pydantic_core import PydanticSerializationError

    def encode(value: Any) -> Any:
        try:
            return dump(value, by_alias=True, warnings="error")
        except PydanticSerializationError:  # its text shows the value
            raise CodecError(
                f"value cannot be written as {content_type} of {schema_name(schema)}: "
                f"it is {schema_name(type(value))}, or a field has another type than declared"
            ) from None

    return encode


def _validator(schema: Any, content_type: str) -> Callable[[bytes], Any]:
    from pydantic import ValidationError

    validate = _adapter(schema).validate_json

    def decode(body: bytes) -> Any:
        try:
            return validate(body)
        except ValidationError as error:
            raise CodecError(f"body is not {content_type} of {schema_name(schema)}: {_first_problem(error)}") from None

    return decode


def _validate_part(type: type, value: Any) -> Any:
    from pydantic import ValidationError

    try:
        return _adapter(type).validate_python(value)
    except ValidationError as error:
        raise ValueError(_first_problem(error)) from None


def _first_problem(error: Any) -> str:
    first: Mapping[str, Any] = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
    more = error.error_count() - 1
    return f"{first['msg']}{place and f' - at `${place}`'}{f', and {more} more' if more else ''}"


# ---- helpers --------------------------------------------------------------------------------------------------------


def _plain(schema: Any) -> Any:
    """Without Annotated, NewType and the `type` statement."""
    while True:
        if get_origin(schema) is Annotated:
            schema = get_args(schema)[0]
        elif hasattr(schema, "__supertype__"):
            schema = schema.__supertype__
        elif type(schema).__name__ == "TypeAliasType":
            schema = schema.__value__
        else:
            return schema


def _detail(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeError):
        return "its text is not valid Unicode"
    text = str(error)  # msgspec quotes a value of the body in some of its messages: a wrong tag, a wrong enum member
    first, last = text.find("'"), text.rfind("'")
    return text if first == last else f"{text[: first + 1]}…{text[last:]}"


def _parse(content_type: str) -> tuple[str, str]:
    base, *parameters = content_type.split(";")
    charset = ""
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset":
            charset = value.strip().strip('"').lower()
    return base.strip().lower(), charset


def _plugged(base: str) -> Codec | None:
    from importlib.metadata import entry_points

    claims = {entry.value: entry for entry in entry_points(group=CODECS) if entry.name.lower() == base}
    if not claims:
        return None
    if len(claims) > 1:
        raise ConfigurationError(f"two plugins claim the content type {base}: {' and '.join(sorted(claims))}")
    ((value, entry),) = claims.items()
    pm = manager()
    pm.register(entry.load())
    found: Codec | None = pm.hook.open_codec(content_type=base)
    if found is None:
        raise ConfigurationError(f"the plugin {value} is registered for the content type {base} but did not open it")
    return found


def _installed() -> set[str]:
    from importlib.metadata import entry_points

    return {entry.name for entry in entry_points(group=CODECS)}
