"""Reading what is stored in an internal topic: dead letters above all."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from switchgear import Bus
from switchgear.driver import Browsable, Delivery, Start
from switchgear.envelope import Envelope, is_structured, read, read_structured
from switchgear.errors import CodecError, NotFound, Unsupported
from switchgear.names import physical
from switchgear.plugins import redact

from .stored import connected, stored_topics
from .tail import body, printable


@dataclass(frozen=True)
class Stored:
    """A stored message with its envelope."""

    topic: str
    delivery: Delivery
    envelope: Envelope

    @property
    def reason(self) -> str | None:
        return self.envelope.extensions.get("sgreason")

    @property
    def key(self) -> str | None:
        key = self.delivery.key
        return None if key is None else key.decode("utf-8", "backslashreplace")

    def record(self, value: Any, kind: str) -> dict[str, object]:
        """What `--json` prints."""
        import msgspec

        envelope, data = self.envelope, self.delivery.body
        return {
            "topic": self.topic,
            "id": envelope.id,
            "time": envelope.time,
            "type": envelope.type,
            "key": self.key,
            "reason": self.reason,
            "attempts": envelope.attempt,
            "from": {
                name.removeprefix("sg"): text
                for name, text in envelope.extensions.items()
                if name in ("sgtopic", "sggroup", "sgposition", "sgtime")
            },
            "headers": {name: printable(text) for name, text in envelope.headers.items()},
            "body": msgspec.Raw(data) if kind == "json" and data else value,
            "encoding": kind,
        }

    def line(self, value: Any, kind: str) -> str:
        """When, key, body and reason."""
        shown = (self.delivery.body or b"").decode() if kind == "json" else f"({kind}) {value}"
        at = (self.envelope.time or datetime.fromtimestamp(0, UTC)).astimezone()
        reason = f"  [{self.reason}; attempts: {self.envelope.attempt}]" if self.reason else ""
        clean = "".join(c if c.isprintable() else repr(c)[1:-1] for c in f"{self.key or '-'}  {shown}{reason}")
        return f"{at:%Y-%m-%d %H:%M:%S}  {clean}"


async def stored_messages(bus: Bus, name: str, start: str | datetime | None) -> AsyncIterator[tuple[Stored, Any, str]]:
    """What an internal topic keeps, oldest first, to its present end.

    Raises NotFound with what there is, Unsupported where the broker cannot be read without a group.
    """
    transport = await connected(bus)
    if not isinstance(transport, Browsable):
        raise Unsupported(f"{redact(bus.url)}: this transport cannot be read without a group")
    names = [info.name for info in await stored_topics(bus, "sg.") or ()]
    if name not in names:
        there = f"; there are: {', '.join(names)}" if names else "; there is no internal topic yet"
        raise NotFound(f"there is no topic {name!r} on {redact(bus.url)}{there}")
    caps = transport.capabilities
    where = physical(caps.names, bus.namespace, name)
    begin: Start = start.timestamp() if isinstance(start, datetime) else "earliest"
    async for delivery, headers in transport.browse(where, begin, None):
        try:
            if delivery.media is not None and delivery.body is not None and is_structured(delivery.media):
                envelope = read_structured(delivery.body)
            else:
                envelope = read(headers, caps.binding)
        except CodecError:  # dead letters may be undecodable: that is why they are here
            envelope = Envelope(extensions=dict(reasons(headers, caps.binding)))
        value, kind = body(delivery.body)
        yield Stored(name, delivery, envelope), value, kind


def reasons(headers: list[tuple[str, bytes]], binding: str) -> list[tuple[str, str]]:
    """Our own attributes of a dead letter whose others cannot be read."""
    return [
        (name.removeprefix(binding), value.decode("utf-8", "backslashreplace"))
        for name, value in headers
        if name.startswith(f"{binding}sg")
    ]
