"""What only Kafka has to tune; needs no Kafka client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class KafkaTuning:
    """Settings for `kafka://`, ignored by every other transport."""

    acks: Literal["all", "1"] = "all"
    """Who confirms a publish: "all" in-sync replicas, or "1", the leader alone: no idempotence, less durable."""
    linger: float = 0.0
    """Seconds that a batch waits for more messages before it is sent."""
    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = "none"
    group_instance_id: str | None = None
    """Static membership: a member that comes back under this name within the session timeout keeps its partitions."""
    client_rack: str | None = None
    """Where this client is, so that it may read from the nearest replica."""
    replication: int | None = None
    """Replicas of topics that Switchgear creates; None: the broker's default."""

    @property
    def scheme(self) -> str:
        """The URL scheme that this is for."""
        return "kafka"
