from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from switchgear import envelope
from switchgear.driver import HeaderLimits, Headers
from switchgear.envelope import Envelope
from switchgear.errors import CodecError, ConfigurationError, Refused

NO_LIMITS = HeaderLimits()

# ---- reading ---------------------------------------------------------------------------------------------------------


def test_a_plain_message_has_an_empty_envelope() -> None:
    assert envelope.read([], "ce-") == Envelope()


@pytest.mark.parametrize("binding", ["ce-", "ce_"])
def test_what_is_written_is_read(binding: str) -> None:
    headers = [
        *envelope.static(binding, source="/shop", type="order.v1", dataschema="https://example.org/order"),
        (f"{binding}id", b"7"),
        (f"{binding}time", envelope.rfc3339(1_700_000_000.25)),
        (f"{binding}partitionkey", "änn".encode()),
        (f"{binding}subject", b"s"),
        (f"{binding}traceparent", b"00-a-b-01"),
        (f"{binding}tracestate", b"x=1"),
        (f"{binding}expirytime", envelope.rfc3339(1_700_000_060)),
        (f"{binding}priority", b"high"),
        (f"{binding}correlationid", b"c"),
        (f"{binding}causationid", b"d"),
        (f"{binding}replyto", b"sg.reply.shop"),
        (f"{binding}sgattempt", b"3"),
        (f"{binding}sgfirstfailure", envelope.rfc3339(1_700_000_001)),
        (f"{binding}sgdue", envelope.rfc3339(1_700_000_002)),
        (f"{binding}sgtarget", b"orders"),
        ("tenant", b"north"),
    ]
    assert envelope.read(headers, binding) == Envelope(
        id="7",
        source="/shop",
        type="order.v1",
        time=datetime(2023, 11, 14, 22, 13, 20, 250_000, tzinfo=UTC),
        subject="s",
        dataschema="https://example.org/order",
        key="änn",
        traceparent="00-a-b-01",
        tracestate="x=1",
        expires=1_700_000_060.0,
        priority="high",
        correlation_id="c",
        causation_id="d",
        reply_to="sg.reply.shop",
        attempt=3,
        first_failure=1_700_000_001.0,
        due=1_700_000_002.0,
        target="orders",
        headers={"tenant": "north"},
    )


@pytest.mark.parametrize("header", ["ce-id", "ce_id", "CE-ID", "Ce-Id", "ce_Id"])
def test_either_prefix_in_any_case_is_an_attribute(header: str) -> None:
    assert envelope.read([(header, b"7")], "ce-").id == "7"


def test_a_binding_of_its_own_is_read_too() -> None:
    assert envelope.read([("cloudEvents:id", b"7")], "cloudEvents:").id == "7"


def test_attributes_of_foreign_producers_are_extensions() -> None:
    found = envelope.read([("ce-Tenant", b"north"), ("ce-sgreason", b"why")], "ce-")
    assert found.extensions == {"tenant": "north", "sgreason": "why"}
    assert found.headers == {}


def test_user_headers_keep_case_take_the_last_and_escape_bytes() -> None:
    found = envelope.read([("X-A", b"1"), ("X-A", b"2"), ("raw", b"\xff"), ("id", b"x"), ("Content-Type", b"y")], "ce-")
    assert found.headers == {"X-A": "2", "raw": "\udcff", "id": "x"}
    assert found.id is None


def test_a_key_may_be_any_bytes() -> None:
    key = envelope.read([("ce-partitionkey", b"\xff\x00")], "ce-").key
    assert key is not None
    assert key.encode("utf-8", "surrogateescape") == b"\xff\x00"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("id", b""), ("id", b"\xff"), ("source", b""), ("type", b""), ("specversion", b"0.3"), ("time", b"yesterday"),
        ("time", b"2030-01-01T00:00:00"), ("time", b"2030-02-30T00:00:00Z"), ("expirytime", b"1700000000"),
        ("sgattempt", b""), ("sgattempt", b"-1"), ("sgattempt", b"1.5"), ("sgattempt", b"1" * 5000),
        ("sgattempt", "²".encode()), ("sgdue", b""), ("sgfirstfailure", b"9999-12-31T23:59:60Z"),
    ],
)  # fmt: skip
def test_a_malformed_attribute_is_named(name: str, value: bytes) -> None:
    with pytest.raises(CodecError, match=f"attribute '{name}' is malformed"):
        envelope.read([(f"ce-{name}", value)], "ce-")


@given(st.lists(st.tuples(st.text(max_size=8) | st.sampled_from(["ce-id", "ce_time", "ce-"]), st.binary(max_size=8))))
def test_no_header_of_a_stranger_makes_it_fail_otherwise(headers: Headers) -> None:
    try:
        found = envelope.read(headers, "ce-")
    except CodecError:
        return
    assert isinstance(found, Envelope)


# ---- instants --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "unix"),
    [
        ("1970-01-01T00:00:00Z", 0.0),
        ("1970-01-01t00:00:01z", 1.0),
        ("1970-01-01 01:00:00+01:00", 0.0),
        ("1970-01-01T00:00:00.5Z", 0.5),
        ("1970-01-01T00:00:00.123456789Z", 0.123456),
        ("2016-12-31T23:59:60Z", 1483228800.0),
    ],
)
def test_rfc_3339_is_read(text: str, unix: float) -> None:
    assert envelope.parse_time(text).timestamp() == unix


@pytest.mark.parametrize(
    "text", ["", "20300101", "2030-01-01", "2030-W01-1", "2030-01-01T00:00:00", "٢030-01-01T00:00:00Z"]
)
def test_other_dates_are_no_instants(text: str) -> None:
    with pytest.raises(ValueError, match="RFC 3339"):
        envelope.parse_time(text)


@given(st.integers(0, 253402300799_000))
def test_an_instant_survives_the_round_trip_to_the_millisecond(milliseconds: int) -> None:
    text = envelope.rfc3339(milliseconds / 1000).decode()
    assert round(envelope.parse_time(text).timestamp() * 1000) == milliseconds


@pytest.mark.parametrize("unix", [-1.0, float("nan"), float("inf"), 1e18])
def test_an_instant_that_cannot_be_written(unix: float) -> None:
    with pytest.raises(ConfigurationError, match="between the years 1970 and 9999"):
        envelope.rfc3339(unix)


def test_a_stamp_is_formatted_once_a_millisecond() -> None:
    now = [1_700_000_000.0001]
    stamp = envelope.Stamp(lambda: now[0])
    first = stamp()
    assert first == b"2023-11-14T22:13:20.000Z"
    now[0] += 0.0005
    assert stamp() is first
    now[0] += 0.0005
    assert stamp() == b"2023-11-14T22:13:20.001Z"


# ---- structured mode -------------------------------------------------------------------------------------------------

EVENT: dict[str, Any] = {"specversion": "1.0", "id": "7", "source": "/s", "type": "t"}


def structured(**members: Any) -> Envelope:
    return envelope.read_structured(msgspec.json.encode({**EVENT, **members}))


@pytest.mark.parametrize(
    ("media", "found"),
    [
        (b"application/cloudevents+json", True),
        (b"Application/CloudEvents+JSON; charset=utf-8", True),
        (b"application/cloudevents-batch+json", False),
        (b"application/json", False),
        (b"\xff", False),
    ],
)
def test_structured_mode_is_told_by_the_content_type(media: bytes, found: bool) -> None:
    assert envelope.is_structured(media) is found


def test_a_structured_event_carries_its_attributes_and_its_value() -> None:
    body = b'{"specversion":"1.0","id":"7","source":"/s","type":"t","time":"1970-01-01T00:00:01Z","data": {"a": 1.50} }'
    found = envelope.read_structured(body)
    assert (found.id, found.source, found.type, found.structured) == ("7", "/s", "t", True)
    assert found.time == datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)
    assert (found.data, found.media) == (b'{"a": 1.50}', b"application/json")


@pytest.mark.parametrize(
    ("members", "data", "media"),
    [
        ({}, None, None),
        ({"data": None}, b"null", b"application/json"),
        ({"data": "text", "datacontenttype": "text/plain"}, b"text", b"text/plain"),
        ({"data": "text"}, b'"text"', b"application/json"),
        (
            {"data_base64": "/wA=", "datacontenttype": "application/octet-stream"},
            b"\xff\x00",
            b"application/octet-stream",
        ),
        ({"data_base64": "/wA="}, b"\xff\x00", None),
        ({"data": [1], "datacontenttype": "application/vnd.shop+json"}, b"[1]", b"application/vnd.shop+json"),
    ],
)
def test_the_value_of_a_structured_event(members: dict[str, Any], data: bytes | None, media: bytes | None) -> None:
    found = structured(**members)
    assert (found.data, found.media) == (data, media)


def test_numbers_truths_and_nulls_are_attributes_too() -> None:
    found = structured(sgattempt=2, flag=True, absent=None, subject=None)
    assert found.attempt == 2
    assert found.extensions == {"flag": "true"}
    assert found.subject is None


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "no JSON object"),
        (b"[]", "no JSON object"),
        (b'{"a": \xff}', "no JSON object|malformed"),
        (b'{"specversion":"1.0","id":"7","source":"/s"}', "'type' is missing"),
        (b'{"specversion":"1.0","id":7.5,"source":"/s","type":"t"}', "attribute 'id' is malformed"),
        (b'{"specversion":"1.0","id":"7","source":"/s","type":"t","x":{}}', "attribute 'x' is malformed"),
        (b'{"specversion":"1.0","id":"7","source":"/s","type":"t","time":"x"}', "attribute 'time' is malformed"),
        (b'{"specversion":"1.0","id":"7","source":"/s","type":"t","data_base64":"?"}', "'data_base64' is not Base64"),
        (b'{"specversion":"1.0","id":"7","source":"/s","type":"t","data_base64":"","data":1}', "both"),
        (b'{"specversion":"1.0","id":"7","source":"/s","type":"t","data":1,"datacontenttype":"a/b"}', "no string"),
    ],
)
def test_a_malformed_structured_event(body: bytes, said: str) -> None:
    with pytest.raises(CodecError, match=said):
        envelope.read_structured(body)


@given(st.binary(max_size=40))
def test_no_structured_body_of_a_stranger_makes_it_fail_otherwise(body: bytes) -> None:
    with pytest.raises(CodecError):
        envelope.read_structured(body)


# ---- writing ---------------------------------------------------------------------------------------------------------


def test_user_headers_are_encoded_in_order() -> None:
    found = envelope.user_headers({"Tenant": "nörd", "x!#$%&'*+.^_`|~-9": ""}, NO_LIMITS, "ce-")
    assert found == [("Tenant", "nörd".encode()), ("x!#$%&'*+.^_`|~-9", b"")]


def test_headers_of_a_received_message_can_be_sent_on() -> None:
    received = envelope.read([("raw", b"\xff\xfe")], "ce-").headers
    assert envelope.user_headers(received, NO_LIMITS, "ce-") == [("raw", b"\xff\xfe")]
    with pytest.raises(Refused, match="'raw' is not Unicode"):
        envelope.user_headers(received, HeaderLimits(text=True), "ce-")


@pytest.mark.parametrize("name", ["", "a b", "a:b", "ä", "a\r\nb", 'a"b'])
def test_a_header_name_that_is_no_token(name: str) -> None:
    with pytest.raises(Refused, match="is no token"):
        envelope.user_headers({name: "x"}, NO_LIMITS, "ce-")


@pytest.mark.parametrize("name", [*sorted(envelope.RESERVED), "ce-x", "CE_x", "Content-Type", "sgx", "SGX", "ID"])
def test_a_reserved_header_name(name: str) -> None:
    with pytest.raises(Refused, match=f"header '{name}' is reserved"):
        envelope.user_headers({name: "x"}, NO_LIMITS, "ce-")


@pytest.mark.parametrize("value", ["a\r\nb", "\n", "\0", "\t", "\x7f", "\x85"])
def test_a_control_character_in_a_value(value: str) -> None:
    with pytest.raises(Refused, match="header 'tenant' contains a control character"):
        envelope.user_headers({"tenant": value}, NO_LIMITS, "ce-")


@pytest.mark.parametrize("value", [b"x", 1, None])
def test_a_value_that_is_no_text(value: Any) -> None:
    with pytest.raises(Refused, match=f"header 'tenant' is {type(value).__name__}, not str"):
        envelope.user_headers({"tenant": value}, NO_LIMITS, "ce-")


def test_a_lone_surrogate_is_no_text() -> None:
    with pytest.raises(Refused, match="the id is not Unicode"):
        envelope.attribute("the id", "\ud800")


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (HeaderLimits(count=1), "2 headers, this broker keeps at most 1"),
        (HeaderLimits(name=3), "'long'.*4 bytes.*at most 3"),
        (HeaderLimits(value=4), "header 'long' has 5 bytes.*at most 4"),
        (HeaderLimits(total=10), "headers of 11 bytes in all.*at most 10"),
    ],
)
def test_limits_of_the_broker(limits: HeaderLimits, said: str) -> None:
    headers = {"a": "1", "long": "valüe"[:4]}
    assert envelope.user_headers(headers, HeaderLimits(2, 4, 5, 11), "ce-")
    with pytest.raises(Refused, match=said):
        envelope.user_headers(headers, limits, "ce-")


def test_a_topic_type_with_a_line_break_is_refused() -> None:
    with pytest.raises(Refused, match="CloudEvents type"):
        envelope.static("ce-", source="/s", type="a\nb")


# ---- copies and dead letters -----------------------------------------------------------------------------------------

ORIGINAL: Headers = [("ce-id", b"7"), ("X", b"\xff"), ("X", b"2"), ("ce_SGattempt", b"2"), ("ce-sgdue", b"d")]


def test_a_copy_replaces_our_attributes_and_keeps_all_else() -> None:
    copied = envelope.with_attributes(ORIGINAL, "ce-", {"sgattempt": b"3", "sgdue": None})
    assert copied == [("ce-id", b"7"), ("X", b"\xff"), ("X", b"2"), ("ce-sgattempt", b"3")]


def letter(headers: Headers, limits: HeaderLimits = NO_LIMITS, **options: Any) -> Headers:
    given: dict[str, Any] = {
        "reason": "broken", "attempts": 5, "topic": "orders", "group": "billing", "position": "17-0", "key": b"ann",
        "time": 1_700_000_000.0, "first_failure": 1_700_000_001.0,
    }  # fmt: skip
    return envelope.dead_letter(headers, "ce-", limits, **{**given, **options})


def test_a_dead_letter_says_why_and_whence_and_keeps_the_original() -> None:
    assert letter(ORIGINAL) == [
        ("ce-id", b"7"),
        ("X", b"\xff"),
        ("X", b"2"),
        ("ce-sgreason", b"broken"),
        ("ce-sgattempt", b"5"),
        ("ce-sgtopic", b"orders"),
        ("ce-sggroup", b"billing"),
        ("ce-sgposition", b"17-0"),
        ("ce-sgkey", b"ann"),
        ("ce-sgtime", b"2023-11-14T22:13:20.000Z"),
        ("ce-sgfirstfailure", b"2023-11-14T22:13:21.000Z"),
    ]


def test_a_second_dead_letter_replaces_the_first() -> None:
    twice = letter(letter(ORIGINAL), reason="again", key=None, first_failure=None)
    found = envelope.read(twice, "ce-")
    assert found.extensions["sgreason"] == "again"
    assert "sgkey" not in found.extensions
    assert found.first_failure is None
    assert len(twice) == len(letter(ORIGINAL)) - 2


@given(st.text(max_size=700), st.binary(max_size=20))
def test_a_reason_is_short_clean_utf_8(reason: str, key: bytes) -> None:
    found = dict(letter([], reason=reason, key=key))
    assert len(found["ce-sgreason"]) <= envelope.REASON_BYTES
    for name in ("ce-sgreason", "ce-sgkey"):
        text = found[name].decode()
        assert not any(c < " " or "\x7f" <= c <= "\x9f" for c in text)


def test_a_reason_is_cut_between_characters() -> None:
    reason = dict(letter([], reason="a" + "€" * 200))["ce-sgreason"]
    assert reason.decode() == "a" + "€" * 170


def test_beyond_the_limits_the_largest_user_header_goes_first_then_strangers() -> None:
    headers = [("ce-id", b"7"), ("small", b"1"), ("large", b"1" * 50), ("ce-foreign", b"1")]
    names = [name for name, _ in letter(headers, HeaderLimits(count=11))]
    assert names[:3] == ["ce-id", "small", "ce-foreign"]
    names = [name for name, _ in letter(headers, HeaderLimits(count=10))]
    assert names[:2] == ["ce-id", "ce-foreign"]
    names = [name for name, _ in letter(headers, HeaderLimits(count=9))]
    assert names[:2] == ["ce-id", "ce-sgreason"]


def test_beyond_the_total_the_reason_is_cut_further() -> None:
    whole = letter([("ce-id", b"7")], reason="r" * 100)
    size = sum(len(name) + len(value) for name, value in whole)
    cut = letter([("ce-id", b"7"), ("user", b"x")], HeaderLimits(total=size - 40), reason="r" * 100)
    assert dict(cut)["ce-sgreason"] == b"r" * 60
    assert [name for name, _ in cut] == [name for name, _ in whole]


def test_single_values_fit_the_broker() -> None:
    found = letter([], HeaderLimits(value=24), reason="r" * 100, key="€".encode() * 20, position="p" * 100)
    assert max(len(value) for _, value in found) <= 24
    assert dict(found)["ce-sgkey"].decode() == "€" * 8
