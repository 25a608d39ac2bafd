"""Everything but the way of a message: registry, seek, lag, browse, provisioning."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from typing import cast

from switchgear.driver import Delivery, Drift, Headers, Resource, Row, Start, TopicInfo
from switchgear.errors import ConfigurationError, NotFound, Refused

from .broker import Broker


def read(broker: Broker, prefix: str) -> dict[str, Row]:
    """Live rows whose names start with `prefix`."""
    now = broker.clock.monotonic()
    for name in [name for name, (_, ends) in broker.rows.items() if ends <= now]:
        del broker.rows[name]
    return {name: row for name, (row, _) in sorted(broker.rows.items()) if name.startswith(prefix)}


def write(broker: Broker, name: str, value: bytes | None, expect: int | None, ttl: float | None) -> int | None:
    """Compare and set; revisions come from one counter, so that they rise over expiry and deletion too."""
    now = broker.clock.monotonic()
    row, ends = broker.rows.get(name, (None, math.inf))
    if row is not None and ends <= now:
        row = None
    found = row.revision if row is not None else 0
    if expect is not None and expect != found:
        return None
    if value is None:
        broker.rows.pop(name, None)
        return found
    revision = found if row is not None and row.value == value else broker.revision()
    broker.rows[name] = Row(value, revision), math.inf if ttl is None else now + ttl
    return revision


def seek(broker: Broker, topic: str, group: str, to: Start | str) -> None:
    """Begin again at `to`, among what is kept. Raises NotFound, Refused while the group is read."""
    place = broker.topics.get(topic)
    found = place.groups.get(group) if place is not None else None
    if place is None or found is None:
        raise NotFound(f"memory://{broker.name} has no group {group!r} of topic {topic!r}")
    if found.members:
        raise Refused(f"group {group!r} of topic {topic!r} is being read by {len(found.members)}: stop it, then seek")
    found.replace(place.kept(_place(to)))
    place.let_in(len(place.senders))


def _place(to: Start | str) -> Start | int:
    if not isinstance(to, str):
        return float(to)
    if to == "new" or to == "earliest":
        return cast("Start", to)
    try:
        return int(to)
    except ValueError:
        raise ConfigurationError(
            f"{to!r} is no position of memory://: expected 'new', 'earliest', a time or a number"
        ) from None


def lag(broker: Broker, topics: Sequence[str], group: str) -> dict[str, int]:
    """Unsettled messages by topic."""
    read = {name: broker.topics[name].groups for name in topics if name in broker.topics}
    return {name: len(groups[group]) for name, groups in read.items() if group in groups}


async def browse(
    broker: Broker, topic: str, start: Start, end: float | None
) -> AsyncIterator[tuple[Delivery, Headers]]:
    """What some group has not settled, in stored order."""
    place = broker.topics.get(topic)
    for s in place.kept(start) if place is not None else ():
        if end is not None and s.time > end:
            return
        m = s.message
        yield (
            Delivery(m.topic, m.body, m.media, m.key, "", s.position, None, native=s, marked=m.marked),
            m.headers,
        )


def provision(broker: Broker, wanted: Sequence[Resource], apply: bool) -> list[Drift]:
    """Differences; with `apply` they are mended. Raises ConfigurationError for a group without a topic."""
    drifts: list[Drift] = []
    for resource in wanted:
        if resource.kind == "topic":
            topic = broker.topics.get(resource.name)
            if topic is None:
                drifts.append(Drift(resource=resource, field="exists", wanted=True, found=False, applied=apply))
            elif topic.retention == resource.retention:
                continue
            else:
                drifts.append(
                    Drift(
                        resource=resource, field="retention", wanted=resource.retention, found=topic.retention,
                        applied=apply,
                    )
                )  # fmt: skip
            if apply:
                topic = broker.topic(resource.name)
                topic.retention = resource.retention
                for group in topic.readers:
                    group.retention = resource.retention
        elif resource.topic is None:
            raise ConfigurationError(f"group {resource.name!r} is to be made without saying of which topic")
        else:
            place = broker.topics.get(resource.topic)
            if place is None or resource.name not in place.groups:
                drifts.append(Drift(resource=resource, field="exists", wanted=True, found=False, applied=apply))
                if apply:
                    broker.group(resource.topic, resource.name, resource.order, resource.start)
    return drifts


def topics(broker: Broker, prefix: str) -> list[TopicInfo]:
    """Topics by name, with how much of each is kept."""
    return [
        TopicInfo(name=name, messages=len(topic.kept("earliest")), groups=tuple(sorted(topic.groups)))
        for name, topic in sorted(broker.topics.items())
        if name.startswith(prefix)
    ]
