"""The engine on aiokafka."""

from __future__ import annotations

from switchgear.driver import Capabilities, Revoked, Subscription

from .aiokafka_cluster import AiokafkaCluster
from .broadcast import BroadcastSource
from .cluster import Reader
from .producing import Producer
from .source import GroupSource
from .transport import KafkaTransport
from .tuning import Settings


class AiokafkaEngine:
    """aiokafka with produce requests of our own."""

    def __init__(self, settings: Settings) -> None:
        self.cluster = AiokafkaCluster(settings)
        self.producer = Producer(self.cluster.wire)

    def adapted(self, capabilities: Capabilities) -> Capabilities:
        """All of them."""
        return capabilities

    def reader(self, capabilities: Capabilities, subscription: Subscription, revoked: Revoked) -> Reader:
        """A source that has yet to join."""
        if subscription.group is None:
            return BroadcastSource(self.cluster, capabilities, subscription)
        return GroupSource(self.cluster, capabilities, subscription, revoked)

    async def close(self) -> None:
        """Close every connection."""
        await self.cluster.close()


def opened(settings: Settings) -> KafkaTransport:
    """A transport that is not connected yet."""
    return KafkaTransport(AiokafkaEngine(settings))
