from __future__ import annotations

from string import ascii_letters, digits

import pytest
from hypothesis import given
from hypothesis import strategies as st

from switchgear import names
from switchgear.driver import NameRules
from switchgear.topic import GROUP_NAME, TOPIC_NAME

topics = st.from_regex(TOPIC_NAME, fullmatch=True).filter(lambda name: "__" not in name)
groups = st.from_regex(GROUP_NAME, fullmatch=True).filter(lambda name: "__" not in name)
rules = st.builds(NameRules, extra=st.sampled_from(["_.-", "-", ".", "_", "", "~%+"]), length=st.just(10_000))
texts = st.text(st.sampled_from("_-.Zxh2e:aé/"), max_size=12) | st.text(max_size=12)


def test_a_name_that_the_broker_admits_stays_as_it_is() -> None:
    assert names.physical(NameRules(), "prod.", "sg.dlq.orders.billing") == "prod.sg.dlq.orders.billing"


def test_the_form_of_an_escape_is_fixed_for_good() -> None:
    assert names.physical(NameRules(extra="_-"), "prod.", "orders") == "prod__x2e_orders"
    assert names.physical(NameRules(), "", "a__x2e_b") == "a__x5f__x2e_b"
    assert names.physical(NameRules(extra=""), "", "o-x") == "oZZx2dZx"


def test_the_form_of_a_cut_name_is_fixed_for_good() -> None:
    assert names.physical(NameRules(length=40), "", "o" * 41) == "ooooooooooooooooo__hdced45793b136329cc55"
    assert names.parked_row("orders", "billing", "ann") == "sg.parked.orders.billing:49915e0d7d4b402e3017"


@given(rules, texts, texts)
def test_two_names_never_share_a_physical_name(rules: NameRules, one: str, other: str) -> None:
    same = names.physical(rules, "", one) == names.physical(rules, "", other)
    assert same == (one == other)


@given(rules, texts)
def test_only_admitted_characters_are_left(rules: NameRules, name: str) -> None:
    assert set(names.physical(rules, "ns/", name)) <= set(ascii_letters + digits + rules.extra)


@given(topics, st.integers(20, 60))
def test_a_long_name_is_cut_to_the_limit_and_still_tells_names_apart(name: str, length: int) -> None:
    limits = NameRules(length=length + 23)
    long, longer = name + "a" * length, name + "a" * length + "b"
    cut = [names.physical(limits, "", one) for one in (long * 2, longer * 2)]
    assert all(len(one) == limits.length for one in cut)
    assert cut[0] != cut[1]


def test_a_name_that_looks_cut_is_escaped() -> None:
    limits = NameRules(length=60)
    cut = names.physical(limits, "", "o" * 100)
    assert names.physical(limits, "", cut) != cut


@given(topics, groups, topics, groups)
def test_topic_and_group_of_an_internal_name_are_unambiguous(t1: str, g1: str, t2: str, g2: str) -> None:
    assert names.owner(names.retry_topic(t1, g1)) == (t1, g1)
    assert names.owner(names.dead_letter_topic(t2, g2)) == (t2, g2)
    if (t1, g1) != (t2, g2):
        assert names.retry_topic(t1, g1) != names.retry_topic(t2, g2)
        assert not names.parked_prefix(t2, g2).startswith(names.parked_prefix(t1, g1))


def test_a_prefix_does_not_reach_a_topic_that_continues_the_group() -> None:
    assert not names.parked_row("shop.orders", "billing", "k").startswith(names.parked_prefix("shop", "orders"))


@pytest.mark.parametrize("name", ["orders", "sg.registry", "sg.dlq.", "sg.dlq.orders", "sg.reply.app"])
def test_no_other_name_has_an_owner(name: str) -> None:
    assert names.owner(name) is None


@given(topics, groups, st.text())
def test_a_parked_row_is_found_by_its_prefix_on_every_broker(topic: str, group: str, key: str) -> None:
    limits = NameRules(length=200)
    row = names.physical(limits, "tenant-17.", names.parked_row(topic, group, key))
    assert row.startswith(names.physical(limits, "tenant-17.", names.parked_prefix(topic, group)))
    assert names.parked_row(topic, group, key) == names.parked_row(topic, group, key.encode("utf-8", "surrogatepass"))


def test_rows_of_the_longest_names_are_short() -> None:
    topic, group = "t" * 80, "g" * 80
    assert max(map(len, (names.lease_row(topic, group), names.parked_row(topic, group, "k")))) <= 150
    assert names.lease_row(topic, group) != names.lease_row(topic, "g" * 79)


def test_names_of_partitions_and_internal_topics() -> None:
    assert names.partition("orders", 3) == "orders__3"
    assert names.retry_topic("orders", "billing") == "sg.retry.orders.billing"
    assert names.dead_letter_topic("orders", "billing") == "sg.dlq.orders.billing"
    assert names.reply_topic("shop") == "sg.reply.shop"
    assert names.plan_row("orders") == "sg.plan.orders"
    assert names.lease_row("orders__3", "billing") == "sg.lease.orders__3.billing"
