"""What the tests send."""

from __future__ import annotations

from typing import Literal, cast

import msgspec

from switchgear import Topic

TOPIC, GROUP = "jobs", "crew"


class Job(msgspec.Struct):
    id: str
    """`key/number`."""
    key: str
    pad: str = ""


def key_of(job: Job) -> str:
    return job.key


def jobs(order: str) -> Topic[Job]:
    """The topic, in "none", "key" or "total" order."""
    return Topic(
        TOPIC, Job, key=None if order == "none" else key_of, order=cast(Literal["none", "key", "total"], order)
    )
