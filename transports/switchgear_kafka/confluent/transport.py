"""The engine on confluent-kafka, and a transport with it."""

from __future__ import annotations

from msgspec.structs import replace

from switchgear.driver import Capabilities, Revoked, Subscription
from switchgear_kafka.cluster import Reader
from switchgear_kafka.transport import KafkaTransport
from switchgear_kafka.tuning import Settings

from .broadcast import BroadcastSource
from .cluster import ConfluentCluster
from .producing import Producer
from .source import GroupSource


class ConfluentEngine:
    """librdkafka, through its client for Python."""

    def __init__(self, settings: Settings) -> None:
        self.cluster = ConfluentCluster(settings)
        self.producer = Producer(self.cluster)

    def adapted(self, capabilities: Capabilities) -> Capabilities:
        """All of them, and transactions."""
        return replace(capabilities, transactions=True)

    def reader(self, capabilities: Capabilities, subscription: Subscription, revoked: Revoked) -> Reader:
        """A source that has yet to join."""
        if subscription.group is None:
            return BroadcastSource(self.cluster, capabilities, subscription)
        return GroupSource(self.cluster, capabilities, subscription, revoked)

    async def close(self) -> None:
        """Close every connection."""
        await self.producer.close()
        await self.cluster.close()


def opened(settings: Settings) -> KafkaTransport:
    """A transport that is not connected yet."""
    return KafkaTransport(ConfluentEngine(settings))
