"""Where messages go that cannot be handled: a topic of the group, with the reason and the way back in the headers."""

from __future__ import annotations

from switchgear.driver import HeaderLimits, Outgoing, Registry
from switchgear.envelope import dead_letter
from switchgear.message import Message
from switchgear.names import parked_prefix, parked_row
from switchgear.reading import Reading

PARKED = "parked"


def letter(
    message: Message[object], reading: Reading, *, topic: str, reason: str, attempts: int, binding: str,
    limits: HeaderLimits,
) -> Outgoing:  # fmt: skip
    """The dead letter of a message: its body untouched; `topic` is the physical name of where it goes."""
    delivery = message._received()
    headers = dead_letter(
        reading.raw_headers(message),
        binding,
        limits,
        reason=reason,
        attempts=attempts,
        topic=reading.topic,
        group=reading.group or "",
        position=reading.position(message),
        key=delivery.key,
        time=reading.time(message),
        first_failure=reading.first_failure(message),
    )
    return Outgoing(
        topic=topic,
        body=delivery.body,
        media=delivery.media,
        headers=headers,
        key=delivery.key,
        dedup=f"{message.id}/{reading.group}/dlq/{attempts}",
        private=True,
        marked=True,
    )


class Parked:
    """Keys whose later messages follow a dead letter unhandled, in registry rows so that every member knows."""

    def __init__(self, registry: Registry, prefix: str, topic: str, group: str) -> None:
        self._registry = registry
        self._prefix = prefix
        self._topic, self._group = topic, group
        self._keys: frozenset[bytes] = frozenset()
        self._mine: set[bytes] = set()

    def __contains__(self, key: bytes | None) -> bool:
        return key is not None and key in self._keys

    async def refresh(self) -> None:
        """Read the rows. Called after every receive and before anything of it may be handled: a key's next message
        comes after its row was written."""
        before = set(self._mine)
        rows = await self._registry.read(self._prefix + parked_prefix(self._topic, self._group))
        self._mine -= before  # the rows tell of these
        self._keys = frozenset(row.value for row in rows.values()) | self._mine

    async def park(self, key: bytes) -> None:
        """Hold a key back, before its dead letter is written."""
        name = self._prefix + parked_row(self._topic, self._group, key)
        await self._registry.write(name, key, expect=None, ttl=None)
        self._mine.add(key)
        self._keys |= {key}
