"""Another attempt where the broker can't return a message: a copy to the group's return address, which it reads."""

from __future__ import annotations

import math
import sys

from switchgear.config import Settings
from switchgear.driver import Capabilities, Order, Outgoing
from switchgear.envelope import attribute, check_limits, due_time, rfc3339, with_attributes
from switchgear.message import Message
from switchgear.names import retry_topic
from switchgear.reading import Reading


def needed(settings: Settings, capabilities: Capabilities, order: Order, group: str | None) -> bool:
    """Whether failed messages of a subscription may have to be copied: nothing is ordered, and the broker does not
    return them itself, or not all of them, or does not count."""
    if group is None or order > Order.NONE or settings.delivery == "at_most_once":
        return False
    return not returns_all(capabilities)


def returns_all(capabilities: Capabilities) -> bool:
    """Whether the broker returns any message after any delay, and counts that."""
    longest = capabilities.retry_delay
    return longest == math.inf and capabilities.counting != "none" and capabilities.waiting == sys.maxsize


def copy(
    message: Message[object], reading: Reading, capabilities: Capabilities, *, topic: str, attempt: int, due: float,
    now: float,
) -> Outgoing:  # fmt: skip
    """The message for its group alone, at `due` (unix seconds), when it will be handled as attempt `attempt`.

    `topic` is the return address, physical. What is told of the original stays, from copy to copy: topic, position and
    time, the id of a plain message, the first failure. Raises Refused where the broker does not take so many headers.
    """
    delivery, group = message._received(), reading.group or ""
    envelope = message._attributes()
    ours: dict[str, bytes | None] = {
        "sgattempt": b"%d" % attempt,
        "sgfirstfailure": rfc3339(reading.first_failure(message) or now),
        "sgdue": due_time(due) if due > now else None,
        "sgtarget": attribute("sgtarget", retry_topic(reading.topic, group)),
    }
    if envelope.id is None:
        ours["id"] = attribute("id", message.id)
    if "sgreason" not in envelope.extensions:  # else they tell of what is in the dead letter
        ours["sgtopic"] = attribute("sgtopic", reading.topic)
        ours["sgposition"] = attribute("sgposition", reading.position(message))
        ours["sgtime"] = rfc3339(reading.time(message))
    headers = with_attributes(reading.raw_headers(message), capabilities.binding, ours)
    check_limits(headers, capabilities.headers)
    return Outgoing(
        topic=topic,
        body=delivery.body,
        media=delivery.media,
        headers=headers,
        key=delivery.key,
        dedup=f"{message.id}/{group}/retry/{attempt}{reading.place(message)}",
        due=due if due > now else None,
        expires=envelope.expires,
        private=True,
        marked=True,
    )
