"""Everything but the way of a message: registry, delayed messages, seek, lag, browse, provisioning."""

from __future__ import annotations

import math
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, cast

from redis.exceptions import ResponseError

from switchgear.driver import Delivery, Drift, Headers, Resource, Row, Start, TopicInfo
from switchgear.errors import ConfigurationError, NotFound, Refused

from . import entries, scripts
from .stream import GRAIN, row_key, start_ids
from .wire import Command, Wire, call, refusal, vanished

DELAYED = "switchgear:delayed"
DELAYED_MESSAGES = "switchgear:delayed:messages"
ROWS = "switchgear:rows"
REVISION = "switchgear:revision"
PAGE = 100  # entries that browsing reads at once
SILENT = 5000  # ms without a sign of life after which a member counts as gone


async def read(wire: Wire, prefix: str) -> dict[str, Row]:
    """Live rows whose names start with `prefix`."""
    rows = await wire.one(*call(scripts.READ, (ROWS,), prefix, row_key("")))
    return {name.decode(): Row(value, int(revision)) for name, value, revision in rows}


async def write(wire: Wire, name: str, value: bytes | None, expect: int | None, ttl: float | None) -> int | None:
    """Compare and set."""
    found: int | None = await wire.one(
        *call(
            scripts.WRITE, (row_key(name), REVISION, ROWS), name, "" if value is None else "1", value or b"",
            "" if expect is None else expect, "" if ttl is None else max(int(ttl * 1000), 1),
        )
    )  # fmt: skip
    return found


async def promote(wire: Wire, limit: int) -> float | None:
    """Move what is due. Raises the first refusal met, after moving the rest."""
    left, failed = await wire.one(*call(scripts.PROMOTE, (DELAYED, DELAYED_MESSAGES), limit))
    if failed:
        raise refusal(wire.address, failed.decode(errors="replace"))
    return None if left < 0 else left / 1e6


async def cancel(wire: Wire, topic: str, dedup: str) -> bool:
    """Take back one that is not due yet."""
    return bool(await wire.one(*call(scripts.CANCEL, (DELAYED, DELAYED_MESSAGES), f"{topic}\0{dedup}")))


async def seek(wire: Wire, topic: str, group: str, to: Start | str) -> None:
    """Move a stopped group. Raises NotFound, Refused while a member reads, ConfigurationError for no position."""
    if not isinstance(to, str) or to in ("new", "earliest"):
        id = (await start_ids(wire, [topic], cast("Start", to)))[0]
    else:
        if not re.fullmatch(r"\d{1,20}-\d{1,20}", to):
            raise ConfigurationError(
                f"{to!r} is no position of redis://: expected an entry's id such as 1700000000000-0"
            )
        ms, seq = map(int, to.split("-"))
        id = f"{ms}-{seq - 1}" if seq else f"{max(ms - 1, 0)}-{18446744073709551615 if ms else 0}"
    move = call(scripts.SEEK, (topic, scripts.waiting(topic, group)), group, id, SILENT)
    reply = (await wire.ask([move], wire.soon()))[0]
    if isinstance(reply, ResponseError):
        if vanished(reply):
            raise NotFound(f"{wire.address} has no group {group!r} of topic {topic!r}") from reply
        raise refusal(wire.address, reply) from reply
    if reply is not None:
        raise Refused(f"group {group!r} of topic {topic!r} is being read by {reply.decode()}: stop it, then seek")


async def _groups(wire: Wire, topics: Sequence[str]) -> list[dict[str, dict[bytes, Any]]]:
    """Groups by name of each topic; none of an absent one."""
    out: list[dict[str, dict[bytes, Any]]] = []
    for reply in await wire.ask([("XINFO", "GROUPS", name) for name in topics], wire.soon()) if topics else ():
        found: dict[str, dict[bytes, Any]] = {}
        if not isinstance(reply, ResponseError):
            for row in reply:
                group: dict[bytes, Any] = dict(zip(row[::2], row[1::2], strict=True))
                found[group[b"name"].decode()] = group
        elif "no such key" not in str(reply) and "WRONGTYPE" not in str(reply):
            raise refusal(wire.address, reply) from reply
        out.append(found)
    return out


async def lag(wire: Wire, topics: Sequence[str], group: str) -> dict[str, int]:
    """Pending and not yet delivered. Redis does not know the latter after some trims; then it is counted."""
    out: dict[str, int] = {}
    for name, groups in zip(topics, await _groups(wire, topics), strict=True):
        if (row := groups.get(group)) is None:
            continue
        unread = row.get(b"lag")
        if unread is None:
            unread, last = 0, row[b"last-delivered-id"].decode()
            while page := await wire.one("XRANGE", name, f"({last}", "+", "COUNT", 1000):
                unread, last = unread + len(page), page[-1][0].decode()
        out[name] = row[b"pending"] + unread
    return out


async def trimmed(wire: Wire, topics: Sequence[str]) -> dict[str, int]:
    """Messages that were trimmed before they were handled."""
    asked: list[Command] = [("HGET", scripts.settings(name), "lost") for name in topics]
    replies = await wire.ask(asked, wire.soon()) if asked else []
    return {name: int(reply) for name, reply in zip(topics, replies, strict=True) if isinstance(reply, bytes)}


async def browse(wire: Wire, topic: str, start: Start, end: float | None) -> AsyncIterator[tuple[Delivery, Headers]]:
    """What the stream keeps, in order, up to what it holds now."""
    newest = await wire.one("XREVRANGE", topic, "+", "-", "COUNT", 1)
    if not newest:
        return
    to = newest[0][0].decode() if end is None else f"{math.floor(end * 1000 + GRAIN)}"
    after = (await start_ids(wire, [topic], start))[0]
    while page := await wire.one("XRANGE", topic, f"({after}", to, "COUNT", PAGE):
        for id, fields in page:
            delivery = entries.one(topic, "", (topic, id), fields, None, math.inf, 0)
            yield delivery, entries.headers(delivery)
        after = page[-1][0].decode()


async def create_group(wire: Wire, topic: str, group: str, after: str) -> None:
    """Make the group, and the stream where it is missing; another process may be doing the same at this moment."""
    reply = (await wire.ask([("XGROUP", "CREATE", topic, group, after, "MKSTREAM")], wire.soon()))[0]
    if isinstance(reply, ResponseError) and "BUSYGROUP" not in str(reply):
        raise refusal(wire.address, reply) from reply


async def provision(wire: Wire, wanted: Sequence[Resource], apply: bool) -> list[Drift]:
    """Differences; with `apply` they are mended. Raises ConfigurationError for a group without a topic."""
    drifts: list[Drift] = []
    for r in wanted:
        topic = r.name if r.kind == "topic" else r.topic
        if topic is None:
            raise ConfigurationError(f"group {r.name!r} is to be made without saying of which topic")
        there = (await _groups(wire, [topic]))[0]
        if r.kind == "group":
            if r.name not in there:
                drifts.append(Drift(resource=r, field="exists", wanted=True, found=False, applied=apply))
                if apply:
                    id = (await start_ids(wire, [topic], r.start))[0]
                    await create_group(wire, topic, r.name, id)
            continue
        kind = await wire.one("TYPE", topic)
        if kind not in (b"none", b"stream"):
            raise Refused(f"{wire.address}: the key {topic!r} exists and is a {kind.decode()}, no stream")
        if kind == b"none":
            drifts.append(Drift(resource=r, field="exists", wanted=True, found=False, applied=apply))
            if apply:  # an empty stream is what remains of a group that was the first
                await create_group(wire, topic, "switchgear:provision", "$")
                await wire.one("XGROUP", "DESTROY", topic, "switchgear:provision")
        stored = await wire.one("HGET", scripts.settings(topic), "retention")
        found = None if stored is None else float(stored)
        if found != r.retention:
            if kind != b"none":
                drifts.append(Drift(resource=r, field="retention", wanted=r.retention, found=found, applied=apply))
            if apply and r.retention is None:
                await wire.one("HDEL", scripts.settings(topic), "retention")
            elif apply:
                await wire.one("HSET", scripts.settings(topic), "retention", repr(r.retention))
    return drifts


async def topics(wire: Wire, prefix: str) -> list[TopicInfo]:
    """Streams whose names start with `prefix`."""
    names: set[str] = set()
    pattern = re.sub(r"([*?\[\]\\])", r"\\\1", prefix) + "*"
    cursor: bytes = b"0"
    while True:
        cursor, page = await wire.one("SCAN", cursor, "MATCH", pattern, "COUNT", 1000, "TYPE", "stream")
        names.update(name.decode(errors="replace") for name in page)
        if cursor == b"0":
            break
    found = sorted(names)
    lengths = await wire.ask([("XLEN", name) for name in found], wire.soon()) if found else []
    groups: Sequence[Mapping[str, object]] = await _groups(wire, found)
    return [
        TopicInfo(name=name, messages=length if isinstance(length, int) else None, groups=tuple(sorted(of)))
        for name, length, of in zip(found, lengths, groups, strict=True)
    ]
