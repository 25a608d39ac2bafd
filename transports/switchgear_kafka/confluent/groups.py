"""Groups and their members, by confluent-kafka's admin client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from confluent_kafka import ConsumerGroupState, ConsumerGroupTopicPartitions, KafkaError
from confluent_kafka import TopicPartition as Native

from switchgear.errors import Lost, SwitchgearError
from switchgear_kafka.cluster import Refusals, TopicPartition

from .asking import Asking
from .failures import GONE, failure

_STOPPED: Final = frozenset({ConsumerGroupState.EMPTY, ConsumerGroupState.DEAD})


class Groups:
    """All groups, from outside."""

    def __init__(self, asking: Asking) -> None:
        self._asking, self._at = asking, asking.at

    async def place(self, group: str, offsets: Mapping[TopicPartition, int]) -> Refusals:
        """Commit as nobody."""
        asked = ConsumerGroupTopicPartitions(group, [Native(*tp, offset) for tp, offset in offsets.items()])
        at = f"{self._at}: group {group!r}"

        def ours(error: KafkaError) -> SwitchgearError:
            return Lost(f"{at} has members") if error.code() in GONE else failure(at, error)

        found = (await self._asking.ask(
            lambda client, timeout: client.alter_consumer_group_offsets([asked], request_timeout=timeout),
            f"group {group!r}",
        ))[group]  # fmt: skip
        if isinstance(found, KafkaError):
            return {tp: ours(found) for tp in offsets}
        return {
            TopicPartition(one.topic, one.partition): ours(one.error)
            for one in found.topic_partitions if one.error is not None
        }  # fmt: skip

    async def members(self, group: str) -> list[str]:
        """Clients and hosts."""
        found = (await self._asking.ask(
            lambda client, timeout: client.describe_consumer_groups([group], request_timeout=timeout),
            f"group {group!r}",
        ))[group]  # fmt: skip
        if isinstance(found, KafkaError):
            if found.code() == KafkaError.GROUP_ID_NOT_FOUND:
                return []
            raise failure(f"{self._at}: group {group!r}", found)
        if found.state in _STOPPED:
            return []
        return [f"{one.client_id}{one.host}" for one in found.members] or ["a member that is joining"]

    async def names(self) -> list[str]:
        """Of all brokers."""
        found = await self._asking.one(
            lambda client, timeout: client.list_consumer_groups(request_timeout=timeout), "its groups"
        )
        return sorted(one.group_id for one in found.valid)
