from __future__ import annotations

import enum
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import EntryPoint, EntryPoints
from typing import Annotated, Any, Literal, NewType, TypedDict

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field
from pydantic.dataclasses import dataclass as pydantic_dataclass

from switchgear.codec import DECODE_ERRORS, Decoders, admits_none, codec, encode_failed, schema_name
from switchgear.errors import CodecError, ConfigurationError
from switchgear.plugins import hookimpl


class Colour(enum.Enum):
    RED = "red"


class Order(msgspec.Struct):
    id: str
    total: float = 0.0
    colour: Colour = Colour.RED


class Paid(msgspec.Struct, tag=True):
    id: str


class Sent(msgspec.Struct, tag=True):
    id: str


@dataclass
class Point:
    x: int


class Row(TypedDict):
    x: int


class Customer(BaseModel):
    name: str
    age: int = Field(default=0, alias="years")
    since: datetime | None = None


class Strict(BaseModel, strict=True):
    when: datetime


@pydantic_dataclass
class Place:
    town: str


class Shop(msgspec.Struct):
    owner: Customer


class Unknown:
    pass


OrderId = NewType("OrderId", str)

VALUES: list[tuple[Any, Any]] = [
    (Any, {"a": [1, 2.5, None, "x", True]}),
    (Order, Order("1", 2.5)),
    (Order | None, None),
    (list[Order], [Order("1")]),
    (Paid | Sent, Sent("1")),
    (Point, Point(3)),
    (Row, {"x": 1}),
    (OrderId, OrderId("7")),
    (dict[str, int], {"a": 1}),
    (Customer, Customer(name="Ann", years=30)),
    (list[Customer], [Customer(name="Ann")]),
    (Customer | None, None),
    (Customer | Place, Place("Bonn")),
    (Strict, Strict(when=datetime.fromisoformat("2030-01-01T00:00:00+00:00"))),
    (Shop, Shop(Customer(name="Ann"))),
]


@pytest.mark.parametrize("content_type", ["application/json", "application/msgpack"])
@pytest.mark.parametrize(("schema", "value"), VALUES)
def test_values_survive_the_round_trip(content_type: str, schema: Any, value: Any) -> None:
    chosen = codec(content_type)
    body = chosen.encoder(schema)(value)
    assert isinstance(body, bytes)
    assert chosen.decoder(schema)(body) == value


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(json_values, st.sampled_from(["application/json", "application/msgpack"]))
def test_plain_values_survive_the_round_trip(value: Any, content_type: str) -> None:
    chosen = codec(content_type)
    assert chosen.decoder(Any)(chosen.encoder(Any)(value)) == value


@given(st.binary(), st.text())
def test_bytes_and_text_survive_as_they_are(data: bytes, text: str) -> None:
    raw, plain = codec("application/octet-stream"), codec("text/plain")
    assert raw.decoder(bytes)(raw.encoder(bytes)(data)) == data == raw.encoder(bytes)(data)
    assert plain.decoder(str)(plain.encoder(str)(text)) == text


def test_nothing_stands_between_a_caller_and_msgspec() -> None:
    json = codec("application/json")
    assert type(json.encoder(Order)) is type(msgspec.json.Encoder().encode)
    assert type(json.decoder(Order)) is type(msgspec.json.Decoder().decode)


def test_a_model_is_written_with_its_aliases_wherever_it_stands() -> None:
    json = codec("application/json")
    ann = Customer(name="Ann", years=30)
    text = b'{"name":"Ann","years":30,"since":null}'
    assert json.encoder(Customer)(ann) == text
    assert json.encoder(Any)([ann]) == b"[" + text + b"]"
    assert json.encoder(Shop)(Shop(ann)) == b'{"owner":' + text + b"}"
    assert json.encoder(Any)(Place("Bonn")) == b'{"town":"Bonn"}'


def test_pydantic_is_not_imported_for_others() -> None:
    code = """
import sys, dataclasses, typing
from switchgear.codec import codec
@dataclasses.dataclass
class Point: x: int
json = codec("application/json")
assert json.decoder(Point)(json.encoder(Point)(Point(1))) == Point(1)
try: json.encoder(typing.Any)(object())
except TypeError: pass
assert not {"pydantic", "tomllib", "difflib"} & set(sys.modules), sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- content types ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "Application/JSON; charset=UTF-8",
        "application/vnd.shop.order+json",
        'text/json;charset="utf-8"',
    ],
)
def test_json_by_any_of_its_names(content_type: str) -> None:
    found = codec(content_type)
    assert found.content_type == content_type
    assert found.encoder(Any)([1]) == b"[1]"


@pytest.mark.parametrize("content_type", ["application/msgpack", "application/x-msgpack", "application/vnd.msgpack"])
def test_messagepack_by_any_of_its_names(content_type: str) -> None:
    assert codec(content_type).encoder(Any)([1]) == b"\x91\x01"


def test_text_in_its_charset() -> None:
    latin = codec("text/plain; charset=iso-8859-1")
    assert latin.encoder(str)("é") == b"\xe9"
    assert latin.decoder(str)(b"\xe9") == "é"


@pytest.mark.parametrize(
    ("content_type", "said"),
    [
        ("image/png", "no codec for the content type 'image/png'; known: application/json, .*text/plain"),
        ("", "no codec for the content type ''"),
        ("application/json; charset=utf-16", "JSON is UTF-8"),
        ("text/plain; charset=klingon", "unknown charset"),
    ],
)
def test_content_types_without_a_codec(content_type: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        codec(content_type)


@pytest.mark.parametrize(
    ("content_type", "schema", "said"),
    [
        ("application/json", Unknown, "Unknown cannot be carried as application/json"),
        ("application/msgpack", list[Unknown], r"list\[Unknown\] cannot be carried as application/msgpack"),
        ("application/json", Order | Point, "cannot be carried as application/json"),
        ("application/json", "Nowhere", "cannot be carried"),
        ("application/json", Customer | Order, "mixes a pydantic model with what pydantic cannot read"),
        ("application/octet-stream", Order, "application/octet-stream carries bytes alone, not Order"),
        ("text/plain", bytes, "text/plain carries str alone, not bytes"),
    ],
)
def test_a_type_that_a_codec_cannot_carry_is_named_at_declaration(content_type: str, schema: Any, said: str) -> None:
    for make in (codec(content_type).encoder, codec(content_type).decoder):
        with pytest.raises(ConfigurationError, match=said):
            make(schema)


class Upper:
    content_type = "text/x-upper"

    def encoder(self, schema: Any) -> Callable[[Any], bytes]:
        return lambda value: value.upper().encode()

    def decoder(self, schema: Any) -> Callable[[bytes], Any]:
        return lambda body: body.decode().lower()


@hookimpl
def open_codec(content_type: str) -> Upper | None:
    return Upper() if content_type == "text/x-upper" else None


def plug(monkeypatch: pytest.MonkeyPatch, *modules: str, name: str = "text/x-upper") -> None:
    entries = EntryPoints(EntryPoint(name, module, "switchgear.codecs") for module in modules)

    def entry_points(*, group: str) -> EntryPoints:
        return entries.select(group=group)

    monkeypatch.setattr("importlib.metadata.entry_points", entry_points)


def test_a_plugin_brings_a_codec(monkeypatch: pytest.MonkeyPatch) -> None:
    plug(monkeypatch, __name__, __name__)
    assert codec("text/x-upper; charset=utf-8").encoder(str)("a") == b"A"
    decoders = Decoders(str, "text/x-upper")
    assert decoders.decode(b"AB", None) == decoders.decode(b"AB", b"text/x-upper") == "ab"
    with pytest.raises(ConfigurationError, match=r"known: .*text/x-upper"):
        codec("text/x-lower")


def test_two_plugins_for_one_content_type(monkeypatch: pytest.MonkeyPatch) -> None:
    plug(monkeypatch, __name__, "another.module")
    with pytest.raises(
        ConfigurationError, match=r"two plugins claim the content type text/x-upper: another\.module and"
    ):
        codec("text/x-upper")


def test_a_plugin_that_does_not_open_what_it_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    plug(monkeypatch, __name__, name="text/x-lower")
    with pytest.raises(ConfigurationError, match="did not open it"):
        codec("text/x-lower")


# ---- a subscription's decoders ---------------------------------------------------------------------------------------


def test_each_message_is_read_by_its_own_content_type() -> None:
    decoders = Decoders(Order, "application/json")
    order = Order("1", 2.5)
    packed = codec("application/msgpack").encoder(Order)(order)
    written = codec("application/json").encoder(Order)(order)
    assert decoders.decode(written, None) == order
    assert decoders.decode(written, b"application/json") == order
    assert decoders.decode(written, b"application/vnd.shop+json; charset=utf-8") == order
    assert decoders.decode(written, b"application/octet-stream") == order
    assert decoders.decode(packed, b"application/msgpack") == order


def test_a_topic_of_raw_bytes_takes_every_body() -> None:
    decoders = Decoders(bytes, "application/octet-stream")
    assert decoders.decode(b"{}", b"application/json") == b"{}"
    assert decoders.decode(b"\xff", b"image/png") == b"\xff"


def test_only_what_is_allowed_is_read() -> None:
    decoders = Decoders(Any, "application/json", allowed=["application/json"])
    assert decoders.decode(b"1", b"application/json;charset=utf-8") == 1
    with pytest.raises(CodecError, match="'application/msgpack' is not allowed here: this topic is application/json"):
        decoders.decode(b"\x01", b"application/msgpack")


@pytest.mark.parametrize("media", [b"image/png", b"\xff\xfe", b"x" * 5000])
def test_an_unknown_content_type(media: bytes) -> None:
    with pytest.raises(CodecError, match="is not allowed here") as caught:
        Decoders(Any, "application/json").decode(b"1", media)
    assert len(str(caught.value)) < 300


def test_a_content_type_that_cannot_carry_the_schema() -> None:
    with pytest.raises(CodecError, match="'text/plain' cannot be read here: text/plain carries str alone"):
        Decoders(Order, "application/json").decode(b"1", b"text/plain")


def test_content_types_from_outside_do_not_pile_up() -> None:
    decoders = Decoders(Any, "application/json")
    for n in range(1000):
        assert decoders.decode(b"1", b"application/json;x=%d" % n) == 1
    assert len(decoders._known) <= 64


SECRET = "s3cret"


@pytest.mark.parametrize(
    ("schema", "media", "body", "said"),
    [
        (Order, None, b'{"id": 7}', r"body is not application/json of Order: Expected `str`, got `int` - at `\$.id`"),
        (Order, None, b'{"id": "7", "colour": "s3cret"}', r"Invalid enum value '…' - at `\$.colour`"),
        (Paid | Sent, None, b'{"type": "s3cret"}', r"of Paid \| Sent: Invalid value '…' - at `\$.type`"),
        (Order, None, b"{", "Input data was truncated"),
        (Order, None, b'"s3cret"', "Expected `object`, got `str`"),
        (Any, None, b'"\xff s3cret"', "not valid Unicode"),
        (Any, None, b"[" * 100_000, "nested too deeply"),
        (Any, b"application/msgpack", b"\xc1", "body is not application/msgpack of Any"),
        (int, None, b"1" * 5000, "out of range"),
        (Customer, None, b'{"name": "x", "years": "s3cret"}', r"Customer: Input should be.* at `\$.years`"),
        (list[Customer], None, b'[{"name": ["s3cret"]}, {}]', r"at `\$\[0\].name`, and 1 more"),
        (Customer, None, b"{s3cret", "of Customer: Invalid JSON"),
        (Customer, b"application/msgpack", b"\x81", "body is not application/msgpack of Customer"),
        (Shop, None, b'{"owner": {"name": {"s3cret": 1}}}', r"of Shop: Input should be a valid string"),
    ],
)  # fmt: skip
def test_a_body_that_is_not_what_was_declared(schema: Any, media: bytes | None, body: bytes, said: str) -> None:
    with pytest.raises(CodecError, match=said) as caught:
        Decoders(schema, "application/json").decode(body, media)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


@given(st.binary(max_size=30), st.sampled_from([None, b"application/msgpack", b"text/plain"]))
def test_no_body_of_a_stranger_makes_it_fail_otherwise(body: bytes, media: bytes | None) -> None:
    decoders = Decoders(str, "application/json")
    try:
        assert isinstance(decoders.decode(body, media), str)
    except CodecError:
        return


# ---- encoding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content_type", "schema", "value", "said"),
    [
        ("application/json", Any, Unknown(), "objects of type Unknown cannot be written"),
        ("application/json", Any, "\ud800", "not valid Unicode"),
        (
            "application/json",
            Customer,
            {"name": SECRET},
            "value cannot be written as application/json of Customer: it is dict",
        ),
        ("application/msgpack", Any, 2**70, "of Any"),
        ("application/octet-stream", bytes, SECRET, "expected bytes, got str"),
        ("text/plain", str, 7, "expected str, got int"),
        ("text/plain; charset=ascii", str, "é", "not valid Unicode|of str"),
    ],
)
def test_a_value_that_cannot_be_written(content_type: str, schema: Any, value: Any, said: str) -> None:
    from switchgear.codec import ENCODE_ERRORS

    encode = codec(content_type).encoder(schema)
    with pytest.raises(ENCODE_ERRORS) as caught:
        encode(value)
    error = encode_failed(caught.value, content_type, schema)
    assert isinstance(error, CodecError)
    assert SECRET not in str(error)
    with pytest.raises(CodecError, match=said):
        raise error


def test_decoders_give_the_function_itself_with_its_errors() -> None:
    decoders = Decoders(Order, "application/json")
    decode = decoders.decoder(b"application/json")
    with pytest.raises(DECODE_ERRORS) as caught:
        decode(b"{}")
    assert "of Order: Object missing required field `id`" in str(decoders.failed(caught.value, None))


# ---- schemas ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "admits"),
    [
        (None, True), (type(None), True), (Any, True), (object, True), (Order | None, True),
        (Literal["a", None], True),  # noqa: PYI061 - people write it
        (Annotated[Order | None, "x"], True), (Annotated[int, 1] | Annotated[None, 2], True),
        (NewType("N", type(None)), True),
        (Order, False), (Paid | Sent, False), (Literal["a"], False), (list[None], False), (dict[str, Any], False),
    ],
)  # fmt: skip
def test_whether_a_schema_admits_none(schema: Any, admits: bool) -> None:
    assert admits_none(schema) is admits


@pytest.mark.parametrize(
    ("schema", "name"),
    [
        (Order, "Order"), (list[Order], "list[Order]"), (Paid | None, "Paid | None"), (Any, "Any"),
        (dict[str, list[int]], "dict[str, list[int]]"), (None, "None"),
    ],
)  # fmt: skip
def test_the_name_of_a_schema(schema: Any, name: str) -> None:
    assert schema_name(schema) == name
