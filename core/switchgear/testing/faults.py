"""What a test may ask the broker in memory to do wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Faults:
    """Seeded misbehaviour. It has no machinery yet: anything but the defaults is refused as Unsupported."""

    drop: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    imitate: Literal["kafka", "redis", "nats", "pulsar", "pubsub", "sns", "sqlite"] | None = None
    seed: int = 0
