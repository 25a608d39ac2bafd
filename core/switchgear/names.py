"""Names on the broker: escaped to what the broker admits, cut to its length, internal ones marked with `sg.`.

Logical names are what users and logs see (`orders`, `sg.retry.orders.billing`); `physical` makes of each what the
broker stores. Group names hold no dot, so the last dot of an internal name divides topic and group.
"""

from __future__ import annotations

import re
from hashlib import sha256

from .driver import NameRules

REGISTRY = "sg.registry"
"""The topic that keeps registry rows where the broker has no store of its own for them."""

DELAY_GROUP = "sg.delay"
"""Who reads the delay topics: one group for each namespace, of which every serving bus is a member."""

DELAY_LETTERS = "sg.dlq.delay"
"""Where messages of the delay topics go that cannot be forwarded."""

USES = "sg.uses."
"""What the names of rows start with that tell which emulations are in use."""

_DIGEST = 20  # hexadecimal digits of SHA-256: 80 bits


def physical(rules: NameRules, namespace: str, name: str) -> str:
    """The broker's name of `namespace + name`, the same in every process and for good.

    ASCII letters, digits and `rules.extra` stay. Every other character becomes `__x<hex of its code point>_`, and so
    does the first underscore of a literal `__x` or `__h`: two names never share an escaped form. What is longer than
    `rules.length` is cut and ends in `__h` and 20 hexadecimal digits of the whole name's SHA-256. A broker that does
    not admit the underscore gets the same marks with `-`, `.` or, at worst, `Z` in its place.
    """
    mark = next((c for c in "_-." if c in rules.extra), "Z")
    whole = namespace + name
    outside = rf"[^A-Za-z0-9{re.escape(rules.extra)}]|{re.escape(mark)}(?={re.escape(mark)}[xh])"
    escaped = re.sub(outside, lambda found: f"{mark}{mark}x{ord(found[0]):x}{mark}", whole)
    if len(escaped) <= rules.length:
        return escaped
    tail = f"{mark}{mark}h{_digest(whole)}"
    return escaped[: max(0, rules.length - len(tail))] + tail


def partition(name: str, n: int) -> str:
    """The logical name of a topic's partition; no topic of a user contains `__`."""
    return f"{name}__{n}"


def retry_topic(topic: str, group: str) -> str:
    """A group's return address: what comes back to this group alone."""
    return f"sg.retry.{topic}.{group}"


def delay_topic(tier: str) -> str:
    """Where messages wait for so long that are due later."""
    return f"sg.delay.{tier}"


def dead_letter_topic(topic: str, group: str) -> str:
    """Where a group's dead letters of a topic go by default."""
    return f"sg.dlq.{topic}.{group}"


def reply_topic(bus: str) -> str:
    """Where answers to an application's requests arrive."""
    return f"sg.reply.{bus}"


def owner(name: str) -> tuple[str, str] | None:
    """Topic and group of a logical return address or dead-letter topic; None for any other name."""
    for prefix in ("sg.retry.", "sg.dlq."):
        if name.startswith(prefix):
            topic, dot, group = name.removeprefix(prefix).rpartition(".")
            return (topic, group) if dot and topic and group else None
    return None


def plan_row(topic: str) -> str:
    """The registry row of a topic's plan: order, partitions, hash."""
    return f"sg.plan.{_short(topic)}"


def lease_row(topic: str, group: str) -> str:
    """The registry row by which one member of a group holds a topic, or a partition of it."""
    return f"sg.lease.{_short(f'{topic}.{group}')}"


def uses_row(name: str) -> str:
    """The registry row that says that something is in use: a return address, or `DELAY_GROUP`."""
    return USES + _short(name)


def ledger_row(topic: str) -> str:
    """The registry row of what has been done with the letters of a dead-letter topic."""
    return f"sg.ledger.{_short(topic)}"


def parked_prefix(topic: str, group: str) -> str:
    """What the names of a group's parked keys start with, and those of no other group."""
    return f"sg.parked.{_short(f'{topic}.{group}')}:"


def parked_row(topic: str, group: str, key: str | bytes) -> str:
    """The registry row of one parked key. It holds the key's hash: the key itself belongs into the row's value."""
    return parked_prefix(topic, group) + _digest(key)


def _short(name: str) -> str:
    """At most 100 characters, so that no row name is cut a second time: cutting would lose a prefix to read by."""
    return name if len(name) <= 100 else f"{name[:77]}__h{_digest(name)}"


def _digest(text: str | bytes) -> str:
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return sha256(data).hexdigest()[:_DIGEST]
