"""How a consumer of confluent-kafka is set up."""

from __future__ import annotations

from typing import Any

from switchgear_kafka.cluster import FETCH_BYTES, STALE

from .cluster import ConfluentCluster

HEARTBEAT = 1.0  # seconds between two
QUEUED = 5000  # messages of a partition that the client keeps ready: of small ones the bytes allow too many
MARGIN = 10.0  # seconds between two reads, beside what handlers may take of a rebalance


def consuming(cluster: ConfluentCluster, group: str, lease: float) -> dict[str, Any]:
    """The configuration of a consumer that commits nothing by itself and goes nowhere where it has no position."""
    tuning = cluster.settings.tuning
    found: dict[str, Any] = {
        "group.id": group, "enable.auto.commit": False, "enable.auto.offset.store": False,
        "auto.offset.reset": "error", "isolation.level": "read_committed", "fetch.max.bytes": FETCH_BYTES,
        "queued.max.messages.kbytes": FETCH_BYTES >> 10, "queued.min.messages": QUEUED,
        "fetch.queue.backoff.ms": 10, "fetch.wait.max.ms": 500,
        "socket.timeout.ms": round(STALE * 1000),
        "topic.metadata.refresh.interval.ms": 10_000,
        "max.poll.interval.ms": round(1000 * (max(tuning.rebalance, lease) + MARGIN)),
    }  # fmt: skip
    if tuning.group_protocol == "consumer":
        found["group.protocol"] = "consumer"
    else:
        found |= {
            "partition.assignment.strategy": "roundrobin,range", "session.timeout.ms": round(lease * 1000),
            "heartbeat.interval.ms": round(heartbeat(lease) * 1000),
        }  # fmt: skip
    if tuning.group_instance_id is not None:
        found["group.instance.id"] = tuning.group_instance_id
    if tuning.client_rack is not None:
        found["client.rack"] = tuning.client_rack
    return found


def heartbeat(lease: float) -> float:
    """Seconds between two heartbeats."""
    return min(HEARTBEAT, lease / 5)
