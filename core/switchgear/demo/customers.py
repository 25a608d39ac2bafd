"""Who buys what: the same shelves and the same purchases for the same seed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

LAST = "last-teapot"
"""One in stock, and two customers who want it."""
ITEMS = ("mug", "kettle", "strainer", "tin", "tray")


@dataclass(frozen=True, slots=True)
class Day:
    """One day's trade."""

    items: list[tuple[str, int, int]]
    """Name, price in cents, how many."""
    purchases: list[dict[str, Any]]
    poison: frozenset[str]
    """Ids of purchases that nobody can handle."""


def day(orders: int, seed: int) -> Day:
    """A day of `orders` purchases: most are good, some ask for more than there is, one in ten is poison."""
    dice = random.Random(seed)
    poison: set[str] = set()
    purchases: list[dict[str, Any]] = []
    for n in range(orders):
        purchase: dict[str, Any] = {"id": f"p-{n}", "sku": dice.choice(ITEMS), "quantity": dice.randint(1, 3)}
        if n in (0, 1):
            purchase.update(sku=LAST, quantity=1)
        elif n % 20 == 2:
            purchase["quantity"] = "a few"  # does not decode
        elif n % 20 == 12:
            purchase["sku"] = "unicorn"  # the handler rejects it
        if purchase["sku"] == "unicorn" or purchase["quantity"] == "a few":
            poison.add(purchase["id"])
        purchases.append(purchase)
    share = max(1, orders * 3 // 10)  # of each item: about three quarters of what will be asked for
    items = [(sku, dice.randint(200, 5000), share) for sku in ITEMS]
    return Day([*items, (LAST, 9900, 1)], purchases, frozenset(poison))
