from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from switchgear.errors import ConfigurationError
from switchgear.topic import Topic, check_group_name, check_topic_name


@pytest.mark.parametrize("name", ["abc", "orders", "shop.order_v1-b", "A" * 80, "a.b.c"])
def test_topic_names_within_the_grammar(name: str) -> None:
    assert Topic(name).name == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "ab",
        "A" * 81,
        "1abc",
        "_abc",
        "a b",
        "a/b",
        "ordérs",
        "orders*",
        "orders\n",
        "a__b",
        "a_.b",
        "a._b",
        "sg.x",
        7,
    ],
)
def test_topic_names_outside_the_grammar(name: Any) -> None:
    with pytest.raises(ConfigurationError, match="topic name"):
        Topic(name)


@pytest.mark.parametrize("name", ["a", "billing", "g-1_b", "g" * 80])
def test_group_names_within_the_grammar(name: str) -> None:
    assert check_group_name(name) == name


@pytest.mark.parametrize("name", ["", "a.b", "1", "a__b", "g" * 81, "a b", None])
def test_group_names_outside_the_grammar(name: Any) -> None:
    with pytest.raises(ConfigurationError, match="group name"):
        check_group_name(name)


@given(st.text(max_size=6))
def test_a_name_is_accepted_or_refused_and_never_changed(name: str) -> None:
    try:
        found = check_topic_name(name)
    except ConfigurationError as error:
        found = name if repr(name) in str(error) else str(error)
    assert found == name


def test_order_follows_from_a_key() -> None:
    assert Topic("orders").order is None
    assert Topic("orders", dict[str, str], key=lambda order: order["id"]).order == "key"
    assert Topic("orders", dict[str, str], key=lambda order: order["id"], order="none").order == "none"
    assert Topic("orders", order="total").order == "total"


def test_retention_is_seconds() -> None:
    assert Topic("orders", retention=timedelta(days=1)).retention == 86400.0
    assert Topic("orders").retention is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"order": "keys"}, "order is 'keys'"),
        ({"envelope": "plain"}, "envelope is 'plain'"),
        ({"partitions": 0}, "partitions is 0"),
        ({"retention": -1}, "retention is -1; expected more than 0 seconds"),
        ({"retention": "1h"}, "seconds as a number"),
    ],
)
def test_wrong_options_name_the_option(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        Topic("orders", **options)


def test_a_topic_shows_its_name() -> None:
    assert repr(Topic("orders")) == "Topic('orders')"
