"""The message of every workload: a small order as JSON, written and read by msgspec on each side."""

from __future__ import annotations

import msgspec

NOTE = "please ring twice, leave it at the door if nobody answers; thank you"
CUSTOMERS = 1000


class Order(msgspec.Struct):
    id: str
    customer: str
    total: float
    items: list[str]
    note: str


def order(n: int) -> Order:
    """The n-th order, about 190 bytes of JSON."""
    return Order(f"o-{n:06d}", f"c-{n % CUSTOMERS}", 12.5 + n % 100, ["sku-1111", "sku-2222", "sku-3333"], NOTE)


def customer(order: Order) -> str:
    return order.customer


encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(Order).decode
