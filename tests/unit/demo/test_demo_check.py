"""The demo's checks find every kind of wrong books."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from switchgear.demo.check import check
from switchgear.demo.customers import LAST, day
from switchgear.demo.store import Conflict, Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A shop whose day went well: one order accepted and one declined for the last item, one more, one poison."""
    store = Store(tmp_path / "shop.db")
    store.supply([("mug", 500, 10), (LAST, 9900, 1)])
    store.expect([("p-0", False), ("p-1", False), ("p-2", False), ("p-3", True)])
    for purchase, sku, quantity, accepted in (("p-0", LAST, 1, True), ("p-1", LAST, 1, False), ("p-2", "mug", 3, True)):
        item = store.item(sku)
        assert item is not None
        store.decide(purchase, item, quantity, accepted)
        if accepted:
            store.charge(purchase, quantity * item.price)
        store.notify(purchase, "word")
    store.bury("p-3")
    return store


def broken(store: Store) -> list[str]:
    return [invariant.name for invariant in check(store) if not invariant.holds]


def test_good_books_pass_every_check(store: Store) -> None:
    assert broken(store) == []
    assert len(check(store)) == 5
    assert store.totals().settled


STOCK = "sold + left = stock"
LAST_ONE = "the last item has one buyer"
BILLED = "each accepted order is billed exactly once"
NOTIFIED = "one notification per order"
ACCOUNTED = "every message is accounted for"


@pytest.mark.parametrize(
    ("doctor", "names"),
    [
        ("UPDATE items SET left = left - 1 WHERE sku = 'mug'", [STOCK]),
        ("UPDATE items SET left = -1, supplied = 2 WHERE sku = 'mug'", [STOCK]),
        ("UPDATE items SET sold = sold + 1, left = left - 1 WHERE sku = 'mug'", [STOCK]),
        ("UPDATE orders SET accepted = 1 WHERE id = 'p-1'", [STOCK, LAST_ONE, BILLED]),
        ("UPDATE orders SET accepted = 0 WHERE id = 'p-0'", [STOCK, LAST_ONE, BILLED]),
        ("DELETE FROM charges WHERE order_id = 'p-0'", [BILLED]),
        ("INSERT INTO charges VALUES ('p-0', 9900)", [BILLED]),
        ("INSERT INTO charges VALUES ('p-1', 9900)", [BILLED]),
        ("INSERT INTO charges VALUES ('p-9', 9900)", [BILLED]),
        ("UPDATE charges SET amount = 1 WHERE order_id = 'p-2'", [BILLED]),
        ("DELETE FROM notices WHERE order_id = 'p-1'", [NOTIFIED]),
        ("INSERT INTO notices VALUES ('p-1', 'again')", [NOTIFIED]),
        ("INSERT INTO notices VALUES ('p-9', 'who')", [NOTIFIED]),
        ("DELETE FROM dead", [ACCOUNTED]),
        ("INSERT INTO dead VALUES ('p-3')", [ACCOUNTED]),
        ("INSERT INTO dead VALUES ('p-2')", [ACCOUNTED]),
        ("INSERT INTO dead VALUES ('p-9')", [ACCOUNTED]),
        ("INSERT INTO purchases VALUES ('p-4', 0)", [ACCOUNTED]),
        ("INSERT INTO purchases VALUES ('p-4', 1)", [ACCOUNTED]),
        ("UPDATE purchases SET poison = 1 WHERE id = 'p-1'", [ACCOUNTED]),
    ],
)
def test_wrong_books_fail_the_checks_that_they_break(store: Store, doctor: str, names: list[str]) -> None:
    with store.write() as db:
        db.execute(doctor)
    assert broken(store) == names


def test_a_broken_check_names_what_is_wrong(store: Store) -> None:
    with store.write() as db:
        db.execute("DELETE FROM charges")
    [failed] = [invariant for invariant in check(store) if not invariant.holds]
    assert "p-0, p-2" in failed.detail
    assert not store.totals().settled


def test_of_two_who_read_the_last_item_one_gets_it(store: Store) -> None:
    store.supply([("rare", 100, 1)])
    item = store.item("rare")
    assert item is not None
    store.decide("a", item, 1, accepted=True)
    with pytest.raises(Conflict, match="rare"):
        store.decide("b", item, 1, accepted=True)
    assert store.decision("b") is None  # nothing of it was kept
    later = store.item("rare")
    assert later is not None
    assert (later.left, later.version) == (0, item.version + 1)


def test_one_purchase_is_decided_once(store: Store) -> None:
    item = store.item("mug")
    assert item is not None
    with pytest.raises(Conflict):
        store.decide("p-2", item, 1, accepted=True)
    assert store.decision("p-2") == (1500, True)


def test_effects_happen_once_however_often_they_are_asked_for(store: Store) -> None:
    threads = [threading.Thread(target=store.charge, args=("p-5", 1)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with store.read() as db:
        assert db.execute("SELECT count(*) FROM charges WHERE order_id = 'p-5'").fetchone() == (1,)


def test_a_day_is_the_same_for_the_same_seed_and_has_everything_in_it() -> None:
    one, same, other = day(200, 7), day(200, 7), day(200, 8)
    assert one == same
    assert one != other
    assert len(one.purchases) == 200
    assert len({p["id"] for p in one.purchases}) == 200
    assert [p["sku"] for p in one.purchases].count(LAST) == 2
    assert {sku: count for sku, _, count in one.items}[LAST] == 1
    assert 5 <= len(one.poison) <= 30
    assert any(p["quantity"] == "a few" for p in one.purchases)
    assert any(p["sku"] == "unicorn" for p in one.purchases)
