"""Reading dead letters without taking them: where they lie, what they say, and which of them a filter means."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import names
from .driver import Browsable, Delivery, Headers, Provisioner, Registry, Start
from .emulate.ledger import done_of, place_of
from .envelope import Envelope, is_structured, read, read_structured
from .errors import CodecError, NotFound, Unsupported

if TYPE_CHECKING:
    from .bus import Bus


@dataclass(frozen=True, slots=True)
class Letter:
    """A stored dead letter; of a range that is replayed a stored message."""

    topic: str
    """Where it lies, logical."""
    delivery: Delivery
    headers: Headers
    envelope: Envelope
    source: str
    """The topic from which it came."""
    group: str
    """The group that failed."""

    @property
    def id(self) -> str:
        """The message's id; of a plain message its topic and position, as its handler saw it."""
        if self.envelope.id is not None:
            return self.envelope.id
        return f"{self.source}/{self.envelope.extensions.get('sgposition') or position(self.delivery)}"

    @property
    def key(self) -> str | None:
        key = self.delivery.key
        return None if key is None else key.decode("utf-8", "backslashreplace")

    @property
    def reason(self) -> str:
        return self.envelope.extensions.get("sgreason", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which letters are meant; all that is given must hold."""

    key: str | None = None
    reason: str | None = None
    """A part of it."""
    type: str | None = None
    since: float | None = None
    """When they became dead letters, unix seconds."""
    until: float | None = None

    def takes(self, letter: Letter) -> bool:
        return (
            (self.key is None or self.key == letter.key)
            and (self.reason is None or self.reason in letter.reason)
            and (self.type is None or self.type == letter.envelope.type)
        )

    @property
    def whole_keys(self) -> bool:
        """Whether of a key everything is meant, or nothing."""
        return self.reason is None and self.type is None and self.since is None and self.until is None


async def graves(bus: Bus, topic: str, group: str | None = None) -> list[tuple[str, str | None]]:
    """The topics with dead letters of a topic, and of which group; None: of several, in a topic of the user's own.

    `topic` may be such a dead-letter topic itself. Raises NotFound with what there is.
    """
    core = bus._running()
    transport = core.transport
    if not isinstance(transport, Provisioner):
        raise Unsupported(f"{core.url}: this transport cannot list topics, so that dead letters are not found")
    namespace = core.physical("")
    if group is not None:
        wanted = names.dead_letter_topic(topic, group)
        physical = core.physical(wanted)
        if any(info.name == physical for info in await transport.topics(physical)):
            return [(wanted, group)]
    found = [info.name.removeprefix(namespace) for info in await transport.topics(core.physical("sg.dlq."))]
    owned = [(name, names.owner(name)) for name in found]
    mine: list[tuple[str, str | None]] = [
        (name, owner[1]) for name, owner in owned if owner is not None and owner[0] == topic
    ]
    if group is None and mine:
        return mine
    if any(info.name == core.physical(topic) for info in await transport.topics(core.physical(topic))) and (
        topic.startswith("sg.dlq.") or await _has_letters(bus, topic)
    ):
        owner = names.owner(topic)
        return [(topic, None if owner is None else owner[1])]
    there = f"; there are dead letters in: {', '.join(found)}" if found else ""
    whose = topic if group is None else f"{topic}, group {group}"
    raise NotFound(f"there are no dead letters of {whose} on {core.url}{there}")


async def _has_letters(bus: Bus, topic: str) -> bool:
    """Whether the first that a topic holds is a dead letter."""
    async for letter in browse(bus, topic, None, None):
        return bool(letter.reason or letter.group)
    return False


async def browse(bus: Bus, grave: str, since: float | None, until: float | None) -> AsyncIterator[Letter]:
    """All letters that a topic (logical) holds, done or not, in stored order in each lane; times in unix seconds."""
    core = bus._running()
    transport = browsable(bus, "subscribe a group of its own to the dead-letter topic")
    binding = core.transport.capabilities.binding
    owner = names.owner(grave)
    begin: Start = "earliest" if since is None else since
    async for delivery, headers in transport.browse(core.physical(grave), begin, until):
        envelope = envelope_of(delivery, headers, binding)
        told = envelope.extensions
        source, group = owner or (told.get("sgtopic", ""), told.get("sggroup", ""))
        yield Letter(grave, delivery, headers, envelope, source, group)


async def waiting(bus: Bus, grave: str, only: Filter, group: str | None = None) -> AsyncIterator[Letter]:
    """The letters of a topic that are neither replayed nor dropped, and that a filter takes."""
    core = bus._running()
    done = await done_of(registry_of(bus), core.physical(names.ledger_row(grave)))
    async for letter in browse(bus, grave, only.since, only.until):
        if group is not None and letter.group != group:
            continue
        if only.takes(letter) and not done.covers(letter.delivery.lane, place_of(letter.delivery)):
            yield letter


def envelope_of(delivery: Delivery, headers: Headers, binding: str) -> Envelope:
    """As far as it can be read: dead letters may be undecodable, that is why they are here."""
    try:
        found = read(headers, binding)
        if delivery.media is not None and delivery.body is not None and is_structured(delivery.media):
            event = read_structured(delivery.body)
            event.attempt, event.first_failure = found.attempt, found.first_failure
            event.extensions = {**event.extensions, **found.extensions}
            return event
    except CodecError:
        return Envelope(extensions=dict(_ours(headers, binding)))
    return found


def _ours(headers: Headers, binding: str) -> list[tuple[str, str]]:
    """Our own attributes of a dead letter whose others cannot be read."""
    return [
        (name.removeprefix(binding), value.decode("utf-8", "backslashreplace"))
        for name, value in headers
        if name.startswith(f"{binding}sg")
    ]


def position(delivery: Delivery) -> str:
    """Where a browsed delivery lies, as `seek` takes it."""
    numbers = "-".join(map(str, place_of(delivery)))
    lane = delivery.lane.rpartition("/")[2] if delivery.lane else ""
    return f"{lane}:{numbers}" if lane else numbers


def browsable(bus: Bus, alternative: str) -> Browsable:
    """The transport. Raises Unsupported, with the alternative."""
    core = bus._running()
    if not isinstance(core.transport, Browsable):
        raise Unsupported(f"{core.url}: this transport cannot be read without a group: {alternative}")
    return core.transport


def registry_of(bus: Bus) -> Registry:
    """The transport. Raises Unsupported."""
    core = bus._running()
    if not isinstance(core.transport, Registry):
        raise Unsupported(
            f"{core.url}: this transport keeps no rows in which to remember what is done: "
            "subscribe a group of its own to the dead-letter topic"
        )
    return core.transport
