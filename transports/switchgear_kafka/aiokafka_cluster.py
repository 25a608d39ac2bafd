"""`Cluster` on aiokafka: the requests that a `Wire` sends beside those for offsets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from aiokafka import errors as kafka
from aiokafka.protocol.admin import (
    AlterConfigsRequest,
    ApiVersionRequest,
    CreatePartitionsRequest,
    CreateTopicsRequest,
    DeleteRecordsRequest,
    DescribeConfigsRequest,
    DescribeGroupsRequest,
    ListGroupsRequest,
)
from aiokafka.protocol.metadata import MetadataRequest

from switchgear.driver import Delivery, Headers
from switchgear.errors import ConfigurationError, Lost, NotFound, Refused, SwitchgearError

from . import log, records
from .cluster import EARLIEST, FENCED, Committed, Configured, OutOfRange, Refusals, TopicPartition, lane
from .failures import CONNECT, failure, for_code
from .tuning import Settings
from .wire import NOBODY, Wire, by_topic, raise_for

TOPIC, BROKER = 2, 4  # kinds of configured things
DYNAMIC = 1  # where a value comes from: set for this topic
PRODUCE, FETCH = 0, 1
OLDEST: Final = {PRODUCE: 7, FETCH: 10}
"""What brokers of Apache Kafka 2.1 speak, the first that take zstd (KIP-110)."""
STOPPED: Final = ("Empty", "Dead")
GONE: Final = (kafka.UnknownMemberIdError, kafka.IllegalGenerationError, kafka.RebalanceInProgressError)
"""The group has gone on without us."""


class AiokafkaCluster:
    """One connected client."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.wire = Wire(settings)
        self.at = self.wire.at
        self.patience = self.wire.patience
        self.soon = self.wire.soon
        self.close = self.wire.close
        self.partitions = self.wire.partitions
        self.offsets = self.wire.offsets
        self.committed = self.wire.committed

    async def connect(self, deadline: float) -> None:
        """Reach a broker that is not too old. Raises Unavailable, Refused, ConfigurationError."""
        await self.wire.connect(deadline)
        response = await self.wire.insist(
            lambda: self.wire.client.send(self.wire.anyone(), ApiVersionRequest()), "its versions", deadline
        )
        spoken = {key: newest for key, _, newest, *_ in response.api_versions}
        for key, wanted in OLDEST.items():
            if spoken.get(key, -1) < wanted:
                raise ConfigurationError(
                    f"{self.at} speaks version {spoken.get(key)} of request {key}, not {wanted}: the broker is too "
                    "old: Apache Kafka 2.1 or newer is needed"
                )

    def known(self, topic: str) -> int:
        """As the client has it."""
        return len(self.wire.client.cluster.partitions_for_topic(topic) or ())

    async def led(self, topic: str) -> bool:
        """Whether each partition's leader says that it is."""
        found = await self.wire.partitions(topic, fresh=True)
        leaders = [self.wire.client.cluster.leader_for_partition(tp) for tp in found]
        if not found or any(leader is None or leader == -1 for leader in leaders):
            return False
        try:
            await self.wire.offsets(dict.fromkeys(found, EARLIEST))
        except NotFound:
            return False
        return True

    async def replicas(self, topic: str) -> int:
        """As the last answer about the topic said."""
        return len(self.wire.client.cluster._partitions[topic][0].replicas)

    async def names(self) -> list[str]:
        """All but internal topics."""

        async def ask() -> list[str]:
            response = await self.wire.client.send(self.wire.anyone(), MetadataRequest(None, False))
            return [name for _, name, internal, _ in response.topics if not internal]

        return await self.wire.insist(ask, "its topics")

    async def place(self, group: str, offsets: Mapping[TopicPartition, int]) -> Refusals:
        """Commit as nobody."""
        refused = await self.wire.commit(group, NOBODY, {tp: Committed(offset, "") for tp, offset in offsets.items()})
        at = f"{self.at}: group {group!r}"
        return {
            tp: Lost(f"{at} has members") if issubclass(error, GONE) else failure(f"{at}, {lane(tp)}", error())
            for tp, error in refused.items()
        }

    async def members(self, group: str) -> list[str]:
        """Clients and hosts."""

        async def ask() -> list[str]:
            response = await self.wire.coordinator(group, DescribeGroupsRequest([group]))
            for code, _, state, _, _, found, *_ in response.groups:
                raise_for(code, group)
                if state not in STOPPED:
                    return [f"{client}{host}" for _, client, host, *_ in found] or ["a member that is joining"]
            return []

        return await self.wire.insist(ask, f"group {group!r}")

    async def groups(self) -> list[str]:
        """Of all brokers."""

        async def ask() -> list[str]:
            found: set[str] = set()
            for broker in self.wire.client.cluster.brokers():
                response = await self.wire.client.send(broker.nodeId, ListGroupsRequest())
                raise_for(response.error_code, "its groups")
                found.update(name for name, *_ in response.groups)
            return sorted(found)

        return await self.wire.insist(ask, "its groups")

    async def create(self, topic: str, partitions: int, replicas: int, config: Mapping[str, str]) -> bool:
        """Ask the controller."""

        async def ask() -> bool:
            request = CreateTopicsRequest(
                [(topic, partitions, replicas, [], list(config.items()))], round(self.patience * 1000), False
            )
            response = await self.wire.controller(request)
            for _, code, *said in response.topic_errors:
                if kafka.for_code(code) is kafka.TopicAlreadyExistsError:
                    return False
                why = said[0] if said and said[0] else topic
                if kafka.for_code(code) is kafka.InvalidReplicationFactorError and FENCED in why:
                    raise kafka.LeaderNotAvailableError(why)  # which passes
                raise_for(code, why)
            return True

        return await self.wire.insist(ask, f"creating topic {topic!r}")

    async def grow(self, topic: str, partitions: int) -> None:
        """Ask the controller."""

        async def ask() -> None:
            request = CreatePartitionsRequest([(topic, (partitions, None))], round(self.patience * 1000), False)
            response = await self.wire.controller(request)
            for _, code, said, *_ in response.topic_errors:
                raise_for(code, said or topic)

        await self.wire.insist(ask, f"adding partitions to topic {topic!r}")

    async def broker_config(self, names: Iterable[str]) -> Mapping[str, Configured]:
        """Of some broker."""
        node = self.wire.anyone()
        try:
            return await self._describe(BROKER, str(node), list(names), node)
        except Refused:
            return {}

    async def topic_config(self, topic: str) -> Mapping[str, Configured]:
        """All settings of a topic."""
        return await self._describe(TOPIC, topic, None, None)

    async def _describe(
        self, kind: int, name: str, names: list[str] | None, node: int | None
    ) -> Mapping[str, Configured]:
        async def ask() -> Mapping[str, Configured]:
            to = self.wire.anyone() if node is None else node
            response = await self.wire.client.send(to, DescribeConfigsRequest([(kind, name, names)]))
            found: dict[str, Configured] = {}
            for code, said, _, _, entries in response.resources:
                raise_for(code, said or name)
                for key, value, _, source, *_ in entries:
                    found[key] = Configured(value, source == DYNAMIC)
            return found

        return await self.wire.insist(ask, f"the configuration of {name!r}")

    async def configure(self, topic: str, wanted: Mapping[str, str]) -> None:
        """The request replaces all that is set, so that what is set already goes with it."""
        settings = {name: found.value for name, found in (await self.topic_config(topic)).items() if found.own}
        settings.update(wanted)
        entries = [(name, value) for name, value in settings.items() if value is not None]

        async def ask() -> None:
            request = AlterConfigsRequest([(TOPIC, topic, entries)])
            response: Any = await self.wire.client.send(self.wire.anyone(), request)
            for code, said, *_ in response.resources:
                raise_for(code, said or topic)

        await self.wire.insist(ask, f"configuring topic {topic!r}")

    async def delete(self, offsets: Mapping[TopicPartition, int]) -> Refusals:
        """Ask each leader once."""
        by_leader: dict[int, list[TopicPartition]] = defaultdict(list)
        for tp in offsets:
            leader = self.wire.client.cluster.leader_for_partition(tp)
            if leader is not None and leader != -1:
                by_leader[leader].append(tp)
        refused: dict[TopicPartition, SwitchgearError] = {}
        for leader, tps in by_leader.items():
            request = DeleteRecordsRequest(
                by_topic(tps, lambda tp: (tp.partition, offsets[tp])), round(self.patience * 1000)
            )
            try:
                response = await self.wire.client.send(leader, request)
            except CONNECT as error:
                refused.update(dict.fromkeys(tps, failure(self.at, error)))
                continue
            for topic, partitions, *_ in response.topics:
                for partition, _, code, *_ in partitions:
                    if code:
                        tp = TopicPartition(topic, partition)
                        refused[tp] = failure(f"{self.at}: {lane(tp)}", for_code(code)())
        return refused

    async def read(self, tp: TopicPartition, offset: int) -> tuple[Sequence[Delivery], int]:
        """One answer of the partition's leader."""
        try:
            found, after = await log.read(self.wire, tp, offset)
        except Refused as error:
            if isinstance(error.__cause__, kafka.OffsetOutOfRangeError):
                raise OutOfRange(f"{lane(tp)} has no offset {offset}") from error
            raise
        return records.deliveries(tp, found), after

    def headers(self, delivery: Delivery) -> Headers:
        """As they were sent, without the content type."""
        return records.headers(delivery)

    def time(self, delivery: Delivery) -> float:
        """The record's timestamp."""
        return records.time(delivery)
