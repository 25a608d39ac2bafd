"""The shop. Purchases are published; inventory decides them; billing and notification act on what it decided.

Run it like any application, with the shop's books in the file that `SHOP_DB` names:

    SHOP_DB=shop.db switchgear run switchgear.demo.shop:create --url sqlite:///broker.db
"""

from __future__ import annotations

import os
from typing import Annotated, Any

import msgspec

from switchgear import Bus, Depends, Reject, Retry, Router, Topic

from .flaky import flaky
from .store import Conflict, Store


class Purchase(msgspec.Struct):
    id: str
    sku: str
    quantity: int


class Order(msgspec.Struct):
    """A purchase that was decided."""

    id: str
    sku: str
    quantity: int
    amount: int
    """Cents."""
    accepted: bool


# No order is asked for: the version of an item decides who gets the last one, whoever comes first. So any number of
# workers may share the work on every broker.
purchases = Topic("shop.purchases", Purchase, order="none")
orders = Topic("shop.orders", Order, order="none")
dead = Topic("shop.dead", dict[str, Any], order="none")

router = Router()
again = Retry(attempts=None, base=0.02, cap=1.0)  # as often as it takes; Reject and what does not decode end at once


def open_store() -> Store:
    return Store(os.environ["SHOP_DB"])


Books = Annotated[Store, Depends(open_store, scope="bus")]


@router.subscribe(purchases, group="inventory", to=orders, retry=again, dead_letter=dead.name)
def reserve(purchase: Purchase, store: Books) -> Order:
    item = store.item(purchase.sku)
    if item is None:
        raise Reject(f"no such item: {purchase.sku}")
    if not (decided := store.decision(purchase.id)):
        decided = purchase.quantity * item.price, purchase.quantity <= item.left
        try:
            store.decide(purchase.id, item, purchase.quantity, accepted=decided[1])
        except Conflict:
            store.event("conflicts")
            raise  # the retry policy reads the item anew
    return Order(purchase.id, purchase.sku, purchase.quantity, *decided)


@router.subscribe(orders, group="billing", retry=again, dead_letter=dead.name)
def bill(order: Order, store: Books) -> None:
    if order.accepted:
        store.charge(order.id, order.amount)


@router.subscribe(orders, group="notification", retry=again, dead_letter=dead.name)
def notify(order: Order, store: Books) -> None:
    store.notify(order.id, f"{order.quantity} x {order.sku}: {'on its way' if order.accepted else 'sold out'}")


@router.subscribe(dead, group="office", retry=again)
def bury(letter: dict[str, Any], store: Books) -> None:
    store.bury(letter["id"])


def create() -> Bus:
    """The shop's bus; `SHOP_FAILURE_RATE` and `SHOP_SEED` say how often handlers fail at random."""
    store = open_store()
    rate, seed = float(os.environ.get("SHOP_FAILURE_RATE", "0")), os.environ.get("SHOP_SEED", "0")
    worker = os.environ.get("SWITCHGEAR_WORKER", "1")
    bus = Bus(name="shop", middleware=[flaky(rate, f"{seed}/{worker}", lambda: store.event("failures"))])
    bus.include(router)
    return bus
