"""What this transport promises."""

from __future__ import annotations

from switchgear.driver import Capabilities, Dedup, NameRules, Order

from .store import DEDUP_WINDOW

BODY = 1_000_000  # bytes
FOREVER = float("inf")

CAPABILITIES = Capabilities(
    order=Order.TOTAL,
    sends=1,
    send_order=True,
    batch=500,
    body=BODY,
    names=NameRules(length=200),
    groups=True,
    broadcast=True,
    persistent=True,
    ack_durable=True,
    starts=frozenset({"new", "earliest", "time"}),
    retry_delay=FOREVER,
    delay=FOREVER,
    counting="exact",
    dedup=Dedup("topic", DEDUP_WINDOW),
    lease_cap=FOREVER,
    fencing=True,
    transactions=True,
)
