from abc import ABC, abstractmethod
from collections.abc import Awaitable, Collection

from .structs import TopicPartition

class ConsumerRebalanceListener(ABC):
    @abstractmethod
    def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> Awaitable[None] | None: ...
    @abstractmethod
    def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> Awaitable[None] | None: ...

class AbstractTokenProvider(ABC):
    @abstractmethod
    async def token(self) -> str: ...
