"""Headers of a record: the content type apart, as the CloudEvents binding for Kafka has it."""

from __future__ import annotations

from typing import Final

from switchgear.driver import Headers, Outgoing

CONTENT_TYPE: Final = "content-type"
ACTED_ON: Final = frozenset(
    f"{prefix}{name}"
    for prefix in ("ce_", "ce-")
    for name in (
        "expirytime", "replyto", "sgattempt", "sgdue", "sgfirstfailure", "sgreason", "sgtarget", "specversion",
    )
)  # fmt: skip
"""Attributes on which the core acts before the handler: messages without one are not marked."""
KNOWN: Final = b"1.0"
"""The version of CloudEvents that is no reason to look; no other of these attributes has such a value alone."""


def written(message: Outgoing) -> Headers:
    """The headers of the record for a message; the message's own list where there is nothing to add."""
    if message.media is None:
        return message.headers
    return [*message.headers, (CONTENT_TYPE, message.media)]
