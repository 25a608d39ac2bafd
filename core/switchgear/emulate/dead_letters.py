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
        dedup=f"{message.id}/{reading.group}/dlq/{attempts}{reading.place(message)}",
        private=True,
        marked=True,
    )


class Parked:
    """Keys whose later messages follow a dead letter unhandled, in registry rows so that every member knows.

    While an operator replays or drops what is parked of a key, its row says so: what comes back by the return address
    is handled, what is new is parked as before. If the key fails again it is parked as at first.
    """

    def __init__(self, registry: Registry, prefix: str, topic: str, group: str) -> None:
        self._registry = registry
        self._prefix = prefix
        self._topic, self._group = topic, group
        self._keys: frozenset[bytes] = frozenset()
        self._emptied: frozenset[bytes] = frozenset()
        """Those of them that an operator empties."""
        self._mine: set[bytes] = set()

    def __contains__(self, key: bytes | None) -> bool:
        return key is not None and key in self._keys

    def holds(self, key: bytes | None, returned: bool) -> bool:
        """Whether a message of this key is to be parked; `returned`: it came by the return address."""
        return key is not None and key in self._keys and not (returned and key in self._emptied)

    async def refresh(self) -> None:
        """Read the rows. Called after every receive and before anything of it may be handled: a key's next message
        comes after its row was written."""
        before = set(self._mine)
        rows = await self._registry.read(self._prefix + parked_prefix(self._topic, self._group))
        self._mine -= before  # the rows tell of these
        found = dict(map(parked_key, (row.value for row in rows.values())))
        self._keys = frozenset(found) | self._mine
        self._emptied = frozenset(key for key, turn in found.items() if turn is not None) - self._mine

    async def park(self, key: bytes) -> None:
        """Hold a key back, before its dead letter is written."""
        await self._registry.write(self._name(key), key, expect=None, ttl=None)
        self._mine.add(key)
        self._keys |= {key}
        self._emptied -= {key}

    async def stored(self, key: bytes) -> None:
        """A message of this key was parked: whoever empties the key at this moment has to look again, and where it is
        free already it is parked anew, since nothing of the key was handled since."""
        name = self._name(key)
        while True:
            row = (await self._registry.read(name)).get(name)
            if row is None:
                if await self._registry.write(name, key, expect=0, ttl=None) is not None:
                    return
                continue
            turn = parked_key(row.value)[1]
            if turn is None:
                return
            if await self._registry.write(name, emptied(key, turn + 1), expect=row.revision, ttl=None) is not None:
                return

    def _name(self, key: bytes) -> str:
        return self._prefix + parked_row(self._topic, self._group, key)


_EMPTIED = b"\0emptied\0"


def emptied(key: bytes, turn: int) -> bytes:
    """The value of a parked key's row while the key is emptied; `turn` rises with each message parked meanwhile."""
    return b"%b%d\0%b" % (_EMPTIED, turn, key)


def parked_key(value: bytes) -> tuple[bytes, int | None]:
    """The key of a row, and the turn while it is emptied."""
    if value.startswith(_EMPTIED):
        turn, _, key = value.removeprefix(_EMPTIED).partition(b"\0")
        if turn.isdigit():
            return key, int(turn)
    return value, None


async def begin_emptying(registry: Registry, name: str, key: bytes) -> None:
    """Let what is replayed of a parked key be handled. Raises TransportError."""
    while True:
        row = (await registry.read(name)).get(name)
        if row is None or parked_key(row.value)[1] is not None:
            return
        if await registry.write(name, emptied(key, 0), expect=row.revision, ttl=None) is not None:
            return
