"""What this cluster admits, asked rather than assumed."""

from __future__ import annotations

from dataclasses import replace

from aiokafka.protocol.admin import ApiVersionRequest

from switchgear.driver import Capabilities
from switchgear.errors import ConfigurationError

from .topics import broker_config
from .wire import Wire

OVERHEAD = 512  # bytes of a record batch and its record that are not body, key or headers
NOTE, MESSAGE = "offset.metadata.max.bytes", "message.max.bytes"


PRODUCE, FETCH = 0, 1
OLDEST = {PRODUCE: 7, FETCH: 10}
"""What brokers of Apache Kafka 2.1 speak, the first that take zstd (KIP-110)."""


async def probe(wire: Wire, capabilities: Capabilities) -> Capabilities:
    """The capabilities as this cluster has them. What this user may not ask is taken to be as it comes.

    Raises ConfigurationError for a broker that is too old.
    """
    await _check_age(wire)
    found = await broker_config(wire, (NOTE, MESSAGE))
    note, message = found.get(NOTE), found.get(MESSAGE)
    if note is not None and note.value:
        capabilities = replace(capabilities, note=int(note.value))
    if message is not None and message.value:
        capabilities = replace(capabilities, body=max(1, int(message.value) - OVERHEAD))
    return capabilities


async def _check_age(wire: Wire) -> None:
    response = await wire.insist(lambda: wire.client.send(wire.anyone(), ApiVersionRequest()), "its versions")
    spoken = {key: newest for key, _, newest, *_ in response.api_versions}
    for key, wanted in OLDEST.items():
        if spoken.get(key, -1) < wanted:
            raise ConfigurationError(
                f"{wire.at} speaks version {spoken.get(key)} of request {key}, not {wanted}: the broker is too "
                "old: Apache Kafka 2.1 or newer is needed"
            )
