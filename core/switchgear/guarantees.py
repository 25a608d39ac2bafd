"""What was asked, what the broker gives, and what the core adds: every need is native, emulated or refused at start."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from .config import CODE, DEFAULT, Config, Settings
from .driver import Advising, Capabilities, Order, Registry, Transactional, Transport
from .emulate.retry_topics import returns_all
from .errors import Unsupported
from .names import delay_topic, retry_topic
from .plans import PARTITIONS, Plan
from .plugins import tunes
from .topic import ORDERS, Topic

if TYPE_CHECKING:
    from .bus import Bus

How = Literal["native", "emulated", "refused"]


@dataclass(frozen=True, slots=True)
class Need:
    """One guarantee of one subscription (or topic) and how it is met."""

    topic: str
    group: str | None
    need: str
    asked: str
    origin: str
    how: How
    detail: str = ""
    """What is done and what it costs; for a refusal, what to change."""


@dataclass(slots=True)
class Explanation:
    """What `switchgear explain` prints."""

    needs: list[Need] = field(default_factory=list[Need])
    names: list[tuple[str, str, str]] = field(default_factory=list[tuple[str, str, str]])
    """Logical name, physical name, kind (topic, group, dead letters)."""
    settings: list[tuple[str, object, str]] = field(default_factory=list[tuple[str, object, str]])
    """Path, value, origin."""


def negotiate(
    topic: Topic[Any], group: str | None, settings: Settings, origins: Mapping[str, str], plan: Plan,
    transport: Transport, scheme: str, order: Order,
) -> list[Need]:  # fmt: skip
    """How each need of a subscription is met on this transport; nothing is raised here."""
    caps = transport.capabilities
    needs: list[Need] = []

    def need(name: str, asked: object, how: How, detail: str = "", origin: str | None = None) -> None:
        found = origin or origins.get(name.partition(" ")[0], "default")
        needs.append(Need(topic.name, group, name, str(asked), str(found), how, detail))

    def machinery(name: str, value: object, instead: str) -> None:
        if value is not None:
            need(name, type(value).__name__, "refused", f"{name}= has no machinery yet; {instead}")

    _delivery(settings, transport, group, scheme, need)
    _order(plan, order, transport, group, scheme, need)
    if group is None:
        how: How = "native" if caps.broadcast else "refused"
        need("group", "broadcast", how, "" if caps.broadcast else f"{scheme}:// has no broadcast; give a group")
    elif not caps.groups:
        need("group", group, "refused", f"{scheme}:// has no groups; use group=None")
    else:
        need("group", group, "native")
    _start(settings, caps, scheme, need)
    _retry(settings, caps, order, group, need)
    if group is not None and caps.groups:
        _delay(caps, need)
    if settings.dead_letter is not None and group is not None:
        after = settings.dead_letter.after
        if after != "continue" and order is Order.NONE:
            need(
                "dead_letter", f"after={after}", "refused",
                "after= says what becomes of a key whose order is kept; declare order='key' on the topic, or omit it",
            )  # fmt: skip
        elif after == "park" and not isinstance(transport, Registry):
            need("dead_letter", "after=park", "refused", f"{scheme}:// keeps no registry rows; use after='continue'")
        else:
            need("dead_letter", f"after={after}", "emulated", "a copy with the reason, confirmed before the ack")
    if 0 < caps.lease_cap < settings.lease:
        need(
            "lease", f"{settings.lease:g} s", "refused", f"{scheme}:// leases up to {caps.lease_cap:g} s; lower lease="
        )
    machinery("breaker", settings.breaker, "leave it out for now")
    machinery("rate", settings.rate, "lower concurrency= for now")
    machinery("inbox", settings.inbox, "use switchgear_sql.first_time in a transaction of your own")
    for tuning in settings.tuning:
        if tunes(tuning.scheme, scheme):
            need("tuning", type(tuning).__name__, "refused", "a subscription has none yet; give it to Bus(tuning=[…])")
    if topic.priorities:
        need("priorities", list(topic.priorities), "refused", "priorities= has no machinery yet; use a topic for each")
    return needs


def _delivery(settings: Settings, transport: Transport, group: str | None, scheme: str, need: Any) -> None:
    if settings.delivery == "exactly_once":
        reason = _no_transaction(settings, transport, group, scheme)
        detail = reason or "what the handler returns, dead letters and copies are stored with the acknowledgement"
        need("delivery", "exactly_once", "refused" if reason else "native", detail)
    elif settings.delivery == "at_most_once":
        need(
            "delivery", "at_most_once", "emulated", "acknowledged before the handler runs; a failed one is not retried"
        )
    else:
        need("delivery", "at_least_once", "native")


def _no_transaction(settings: Settings, transport: Transport, group: str | None, scheme: str) -> str:
    """Why there is no exactly once, and what to do; "" where there is."""
    if not (transport.capabilities.transactions and isinstance(transport, Transactional)):
        advice = transport.advice("exactly_once") if isinstance(transport, Advising) else ""
        return (
            f"{scheme}:// does not store output and acknowledgement in one transaction as it is opened here; "
            f"{advice or 'use at_least_once with idempotent handlers'}"
        )
    if group is None:
        return "a broadcast subscriber acknowledges nothing with which output could be stored; give a group"
    if settings.dead_letter is not None and settings.dead_letter.after != "continue":
        after = settings.dead_letter.after
        return f"after={after!r} goes by dead letters that are stored before the acknowledgement; use after='continue'"
    return ""


def _order(plan: Plan, order: Order, transport: Transport, group: str | None, scheme: str, need: Any) -> None:
    asked = ORDERS[order]
    if order is Order.NONE:
        need("order", asked, "native")
    elif order <= transport.capabilities.order:
        need("order", asked, "native", "", "topic")
    elif group is None:
        need("order", asked, "emulated", f"{len(plan.physical)} partitions, each in order, read by everyone", "topic")
    elif isinstance(transport, Registry):
        need(
            "order", asked, "emulated",
            f"{len(plan.physical)} partitions; one member of the group is active by a lease, further ones are standby",
            "topic",
        )  # fmt: skip
    else:
        need("order", asked, "refused", f"{scheme}:// keeps no order and no leases; declare order='none'", "topic")


def _start(settings: Settings, caps: Capabilities, scheme: str, need: Any) -> None:
    start = settings.start if isinstance(settings.start, str) else "time"
    if start in caps.starts:
        need("start", start, "native")
    else:
        have = ", ".join(sorted(caps.starts))
        need("start", start, "refused", f"a new group on {scheme}:// can start at: {have}")


def _retry(settings: Settings, caps: Capabilities, order: Order, group: str | None, need: Any) -> None:
    attempts = settings.retry.attempts
    asked = f"{attempts} attempts" if attempts is not None else "no limit"
    if settings.delivery == "at_most_once":
        return
    if order > Order.NONE:
        need("retry", asked, "emulated", f"held in the process, keeps its key; window={settings.window}")
    elif group is None:
        need("retry", asked, "emulated", "held in the process")
    elif not returns_all(caps):
        need(
            "retry",
            asked,
            "emulated",
            f"{_returned(caps)}copied to the group's return address; no more than a "
            "second is waited for in the process",
        )
    else:
        exact = "attempts counted exactly" if caps.counting == "exact" else "attempts counted by deliveries"
        need("retry", asked, "native", f"returned by the broker when due; {exact}")


def _returned(caps: Capabilities) -> str:
    """What of it the broker does by itself, where that is not all."""
    if caps.retry_delay is None or caps.counting == "none":
        return ""
    most = "" if caps.waiting == sys.maxsize else f" {caps.waiting} messages at once"
    until = "" if caps.retry_delay == math.inf else f" within {caps.retry_delay:g} s"
    return f"returned by the broker{most}{until}, else "


def _delay(caps: Capabilities, need: Any) -> None:
    """Messages that are due later, also those that wait for another attempt."""
    if caps.delay < math.inf:
        native = f"beyond {caps.delay:g} s " if caps.delay else ""
        need("delay", "any", "emulated", f"{native}in delay topics, forwarded by every serving bus")


def refuse(needs: Sequence[Need]) -> None:
    """Raise Unsupported for what is refused, all of it at once."""
    refused = [n for n in needs if n.how == "refused"]
    if refused:
        lines = [f"{n.topic} → {n.group or 'broadcast'}: {n.need} ({n.asked}): {n.detail}" for n in refused]
        raise Unsupported("; ".join(lines))


async def explain(bus: Bus) -> Explanation:
    """How the bus's needs are met by the broker that its URL names; connects, subscribes to nothing, writes nothing.

    Raises Unavailable when the broker cannot be reached.
    """
    from .emulate.delay import TIERS

    async with bus._core() as core:
        if not core.link.up:
            raise core.link.unavailable()
        found = Explanation()
        for path, value, origin in bus._settings():
            found.settings.append((path, value, origin))
        seen: set[tuple[str, str]] = set()
        topics: set[str] = set()
        for assembled in await core.assemble(bus._all(), write=False, refused=True):
            if assembled.topic.name not in topics:
                topics.add(assembled.topic.name)
                found.settings += _topic_settings(assembled.topic, assembled.plan, core.config)
            found.needs.extend(assembled.needs)
            program = assembled.program
            rows = [(program.topic, name, "topic") for name in program.physical]
            if program.group is not None and program.physical_group is not None:
                rows.append((program.group, program.physical_group, "group"))
                if program.copies and program.returns is not None:
                    rows.append((retry_topic(program.topic, program.group), program.returns, "retry"))
                if core.delays.emulated:
                    rows += [(name, core.physical(name), "delay") for name in map(delay_topic, TIERS)]
                if assembled.settings.dead_letter is not None:
                    rows.append((f"{program.topic}.{program.group}", program.dead_letters, "dead letters"))
            for row in rows:
                if row[:2] not in seen:
                    seen.add(row[:2])
                    found.names.append(row)
            prefix = f'subscriptions."{program.topic}.{program.group}"'
            for name, origin in assembled.origins.items():
                found.settings.append((f"{prefix}.{name}", getattr(assembled.settings, name, None), str(origin)))
        return found


def _topic_settings(topic: Topic[Any], plan: Plan, config: Config) -> list[tuple[str, object, str]]:
    """What a topic comes to: the code goes before the file, the file before the plan that the broker has stored."""
    configured = config.topic(topic.name)
    found: list[tuple[str, object, str]] = []
    for key, code, value, default in (
        ("order", topic.order, ORDERS[plan.order], ORDERS[0]),
        ("partitions", topic.partitions, plan.partitions, PARTITIONS),
        ("retention", topic.retention, configured.get("retention"), None),
    ):
        if code is not None:
            value, origin = code, CODE
        elif key in configured:
            origin = config.topic_origin(topic.name)
        else:
            origin = DEFAULT if value == default else "stored plan"
        found.append((f'topics."{topic.name}".{key}', value, origin))
    return found
