"""`Cluster` on confluent-kafka: its admin client, whose answers are futures, and a consumer that reads logs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

from confluent_kafka import IsolationLevel, KafkaError, KafkaException
from confluent_kafka import TopicPartition as Native
from confluent_kafka.admin._config import AlterConfigOpType, ConfigEntry, ConfigResource, ConfigSource
from confluent_kafka.admin._listoffsets import OffsetSpec
from confluent_kafka.admin._resource import ResourceType
from confluent_kafka.cimpl import NewPartitions, NewTopic

from switchgear.driver import Delivery, Headers
from switchgear.errors import Refused, Unavailable
from switchgear_kafka.cluster import EARLIEST, FENCED, LATEST, Configured, OutOfRange, Refusals, TopicPartition, lane
from switchgear_kafka.tuning import Settings

from . import records
from .asking import PAUSE, Asking
from .connection import connection, made
from .failures import PASSING, failure
from .groups import Groups
from .log import Log
from .positions import Positions

STARTING = 2.0  # seconds in which a broker that has just come up may not know a topic that it has
_OLD: Final = frozenset({KafkaError.FENCED_LEADER_EPOCH, KafkaError.UNKNOWN_LEADER_EPOCH})
_MISSING: Final = frozenset({KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC})


class ConfluentCluster:
    """One connected admin client."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.asking = asking = Asking(settings)
        self.at, self.patience = asking.at, asking.patience
        self.soon, self.connect, self.reachable, self.ask = asking.soon, asking.connect, asking.reachable, asking.ask
        groups = Groups(asking)
        self.place, self.members, self.groups = groups.place, groups.members, groups.names
        self._positions = Positions(settings, asking)
        self.committed = self._positions.committed
        self._log: Log | None = None
        self._threads = ThreadPoolExecutor(1, "switchgear-kafka-log")
        self._counts: dict[str, int] = {}

    async def close(self) -> None:
        """Close every connection; what is under way fails."""
        await self.asking.close()
        await self._positions.close()
        log, self._log = self._log, None
        self._counts.clear()
        if log is not None:
            await asyncio.wait([asyncio.get_running_loop().run_in_executor(self._threads, log.close)], timeout=2.0)
        self._threads.shutdown(wait=False)
        self._threads = ThreadPoolExecutor(1, "switchgear-kafka-log")

    # ---- topics ---------------------------------------------------------------------------------------------------

    async def partitions(self, topic: str, *, fresh: bool = False) -> list[TopicPartition]:
        """The topic's partitions; none where there is no such topic."""
        count = 0 if fresh else self._counts.get(topic, 0)
        if not count:
            described = await self._topic(topic)
            count = len(described.partitions) if described is not None else 0
            if count:
                self._counts[topic] = count
            else:
                self._counts.pop(topic, None)
        return [TopicPartition(topic, n) for n in range(count)]

    async def _topic(self, topic: str) -> Any:
        what, loop = f"topic {topic!r}", asyncio.get_running_loop()
        until = loop.time() + STARTING if topic in self._counts else 0.0
        deadline = self.soon()
        while True:
            try:
                found = (await self.asking.about(topic, deadline)).topics[topic]
            except KafkaException as error:
                raise failure(f"{self.at}: {what}", error) from error
            if found.error is None:
                return found
            code = found.error.code()
            if code in _MISSING and loop.time() >= until:
                return None
            if code not in _MISSING and (code not in PASSING or loop.time() + PAUSE >= deadline):
                raise failure(f"{self.at}: {what}", found.error)
            await asyncio.sleep(PAUSE)

    def known(self, topic: str) -> int:
        """As the last answer about the topic said."""
        _ = self.asking.client
        return self._counts.get(topic, 0)

    async def led(self, topic: str) -> bool:
        """Whether each partition's leader says that it is."""
        tps = await self.partitions(topic, fresh=True)
        found = await self._offsets(dict.fromkeys(tps, EARLIEST))
        return bool(tps) and not any(isinstance(one, KafkaError) for one in found.values())

    async def replicas(self, topic: str) -> int:
        """Of its first partition."""
        found = await self._topic(topic)
        return len(found.partitions[0].replicas)

    async def names(self) -> list[str]:
        """All but internal topics."""
        client, run = self.asking.client, asyncio.get_running_loop().run_in_executor
        try:
            found = await run(self._threads, lambda: client.list_topics(timeout=self.patience))
        except KafkaException as error:
            raise failure(f"{self.at}: its topics", error) from error
        return [name for name in found.topics if not name.startswith("__")]

    async def create(self, topic: str, partitions: int, replicas: int, config: Mapping[str, str]) -> bool:
        """Ask the controller."""
        new = NewTopic(topic, partitions, replicas, config=dict(config))
        what, until, loop = f"creating topic {topic!r}", self.soon(), asyncio.get_running_loop()
        while True:
            found = (await self.ask(
                lambda client, timeout: client.create_topics([new], request_timeout=timeout), what
            ))[topic]  # fmt: skip
            if not isinstance(found, KafkaError):
                return True
            if found.code() == KafkaError.TOPIC_ALREADY_EXISTS:
                return False
            passes = found.code() == KafkaError.INVALID_REPLICATION_FACTOR and FENCED in found.str()
            if not passes or loop.time() + PAUSE >= until:
                raise failure(f"{self.at}: {what}", found)
            await asyncio.sleep(PAUSE)

    async def grow(self, topic: str, partitions: int) -> None:
        """Ask the controller."""
        await self.asking.one(
            lambda client, timeout: client.create_partitions(
                [NewPartitions(topic, partitions)], request_timeout=timeout
            )[topic],
            f"adding partitions to topic {topic!r}",
        )

    async def broker_config(self, names: Iterable[str]) -> Mapping[str, Configured]:
        """Of some broker."""
        wanted = frozenset(names)
        try:
            cluster = await self.asking.about(self.settings.tuning.registry, self.soon())
        except KafkaException as error:
            raise failure(f"{self.at}: its brokers", error) from error
        some = next(iter(cluster.brokers), None)
        if some is None:
            raise Unavailable(f"{self.at}: a server answers that knows of no broker: is it starting?")
        try:
            found = await self._config(ResourceType.BROKER, str(some))
        except Refused:
            return {}
        return {name: value for name, value in found.items() if name in wanted}

    async def topic_config(self, topic: str) -> Mapping[str, Configured]:
        """All settings of a topic."""
        return await self._config(ResourceType.TOPIC, topic)

    async def _config(self, kind: ResourceType, name: str) -> Mapping[str, Configured]:
        resource = ConfigResource(kind, name)
        found = await self.asking.one(
            lambda client, timeout: client.describe_configs([resource], request_timeout=timeout)[resource],
            f"the configuration of {name!r}",
        )
        own = ConfigSource.DYNAMIC_TOPIC_CONFIG.value
        return {key: Configured(entry.value, entry.source == own) for key, entry in found.items()}

    async def configure(self, topic: str, wanted: Mapping[str, str]) -> None:
        """Change these and no others."""
        entries = [
            ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET) for name, value in wanted.items()
        ]
        resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)
        await self.asking.one(
            lambda client, timeout: client.incremental_alter_configs([resource], request_timeout=timeout)[resource],
            f"configuring topic {topic!r}",
        )

    # ---- records -------------------------------------------------------------------------------------------------

    async def offsets(self, times: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
        """The offset of the first record at or after a time, LATEST or EARLIEST."""
        found = await self._offsets(times)
        for tp, answer in found.items():
            if isinstance(answer, KafkaError):
                raise failure(f"{self.at}: offsets of {lane(tp)}", answer)
        late = {tp: LATEST for tp, answer in found.items() if answer.offset < 0}
        return {
            **{tp: answer.offset for tp, answer in found.items()}, **(await self.offsets(late) if late else {})
        }  # fmt: skip

    async def _offsets(self, times: Mapping[TopicPartition, int]) -> dict[TopicPartition, Any]:
        if not times:
            return {}
        special: dict[int, Any] = {
            LATEST: OffsetSpec.latest(),  # type: ignore[no-untyped-call]
            EARLIEST: OffsetSpec.earliest(),  # type: ignore[no-untyped-call]
        }
        specs = {tp: special.get(time) or OffsetSpec.for_timestamp(time) for tp, time in times.items()}

        def send(client: Any, timeout: float) -> dict[TopicPartition, Future[Any]]:
            found = client.list_offsets(
                {Native(*tp): spec for tp, spec in specs.items()}, request_timeout=timeout,
                isolation_level=IsolationLevel.READ_COMMITTED,
            )  # fmt: skip
            return {TopicPartition(native.topic, native.partition): future for native, future in found.items()}

        found = await self.ask(send, "offsets")
        old = {tp.topic for tp, one in found.items() if isinstance(one, KafkaError) and one.code() in _OLD}
        if not old:
            return found
        for topic in old:  # leaders have changed: the client is to hear of it
            await self._topic(topic)
        return await self.ask(send, "offsets")

    async def delete(self, offsets: Mapping[TopicPartition, int]) -> Refusals:
        """Ask the leaders."""

        def send(client: Any, timeout: float) -> dict[TopicPartition, Future[Any]]:
            found = client.delete_records(
                [Native(*tp, offset) for tp, offset in offsets.items()], request_timeout=timeout, operation_timeout=0
            )
            return {TopicPartition(native.topic, native.partition): future for native, future in found.items()}

        found = await self.ask(send, "deleting records")
        return {
            tp: failure(f"{self.at}: {lane(tp)}", answer)
            for tp, answer in found.items() if isinstance(answer, KafkaError)
        }  # fmt: skip

    # ---- reading --------------------------------------------------------------------------------------------------

    async def read(self, tp: TopicPartition, offset: int) -> tuple[Sequence[Delivery], int]:
        """From the log's consumer, up to its end at the time of asking."""
        end = (await self.offsets({tp: LATEST}))[tp]
        if offset == end:
            return (), offset
        if offset > end:
            raise OutOfRange(f"{lane(tp)} ends at {end}, before {offset}")
        try:
            if self._log is None:
                config = connection(self.settings, self.asking.hear)
                self._log = await made(self.settings, lambda: Log(config))
            run = asyncio.get_running_loop().run_in_executor
            messages, after = await run(self._threads, self._log.read, tp, offset, end, self.patience)
        except KafkaException as error:
            raise failure(f"{self.at}: {lane(tp)}", error) from error
        return records.deliveries(lane(tp), lane(tp), messages), after

    def headers(self, delivery: Delivery) -> Headers:
        """As they were sent, without the content type."""
        return records.headers(delivery)

    def time(self, delivery: Delivery) -> float:
        """The record's timestamp."""
        return records.time(delivery)
