"""What the server can do and how it is set up: asked, never assumed from a version."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace
from redis.exceptions import ResponseError

from switchgear.driver import Capabilities
from switchgear.errors import Refused, Unsupported

from . import scripts
from .tuning import Settings
from .wire import Wire, refusal


async def probe(wire: Wire, settings: Settings, most: Capabilities, deadline: float) -> Capabilities:
    """What this server gives. What the user may not ask counts as absent. Raises Refused, Unsupported."""
    needed = ["XAUTOCLAIM", *(["WAITAOF"] if settings.waitaof is not None else [])]
    ping, commands, replication, persistence, saves, aof, policy, *loaded = await wire.ask(
        [
            ("PING",), ("COMMAND", "INFO", *needed), ("INFO", "replication"), ("INFO", "persistence"),
            ("CONFIG", "GET", "save"), ("CONFIG", "GET", "appendonly"), ("CONFIG", "GET", "appendfsync"),
            *(("SCRIPT", "LOAD", text) for text in scripts.TEXT.values()),
        ],
        deadline,
    )  # fmt: skip
    if isinstance(ping, ResponseError):
        raise refusal(wire.address, ping) from ping
    for reply in loaded:
        if isinstance(reply, ResponseError):
            raise refusal(wire.address, reply) from reply
    if not isinstance(commands, ResponseError):
        for name, known in zip(needed, commands, strict=True):
            if not known:
                raise Unsupported(f"{wire.address}: the server lacks {name}: Redis 6.2 is needed, 7.2 for waitaof")
    told = _info(replication)
    if told.get("role") == "slave" and told.get("slave_read_only") != "0":
        raise Refused(f"{wire.address}: it is a read-only replica: let the URL name the primary")
    on = _info(persistence).get("aof_enabled") == "1" or _setting(aof) == "yes"
    return replace(most, persistent=on or bool(_setting(saves)), ack_durable=on and _setting(policy) == "always")


def _info(reply: Any) -> dict[str, str]:
    if not isinstance(reply, bytes):
        return {}
    return dict(line.split(":", 1) for line in reply.decode(errors="replace").splitlines() if ":" in line)


def _setting(reply: Any) -> str:
    return "" if isinstance(reply, ResponseError) or len(reply) != 2 else str(reply[1].decode())
