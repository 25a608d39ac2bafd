"""What this cluster admits, asked rather than assumed."""

from __future__ import annotations

from msgspec.structs import replace

from switchgear.driver import Capabilities

from .cluster import Cluster

OVERHEAD = 512  # bytes of a record batch and its record that are not body, key or headers
NOTE, MESSAGE = "offset.metadata.max.bytes", "message.max.bytes"


async def probe(cluster: Cluster, capabilities: Capabilities) -> Capabilities:
    """The capabilities as this cluster has them. What this user may not ask is taken to be as it comes."""
    found = await cluster.broker_config((NOTE, MESSAGE))
    note, message = found.get(NOTE), found.get(MESSAGE)
    if note is not None and note.value:
        capabilities = replace(capabilities, note=int(note.value))
    if message is not None and message.value:
        capabilities = replace(capabilities, body=max(1, int(message.value) - OVERHEAD))
    return capabilities
