"""`Cluster` on confluent-kafka: its admin client, whose answers are futures, and a consumer that reads logs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, TypeVar

from confluent_kafka import (
    ConsumerGroupState,
    ConsumerGroupTopicPartitions,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicCollection,
)
from confluent_kafka import TopicPartition as Native
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import AlterConfigOpType, ConfigEntry, ConfigResource, ConfigSource
from confluent_kafka.admin._listoffsets import OffsetSpec
from confluent_kafka.admin._resource import ResourceType
from confluent_kafka.cimpl import NewPartitions, NewTopic

from switchgear.driver import Delivery, Headers
from switchgear.errors import Lost, Refused, SwitchgearError, Unavailable
from switchgear_kafka.cluster import EARLIEST, LATEST, Committed, Configured, OutOfRange, Refusals, TopicPartition, lane
from switchgear_kafka.tuning import Settings

from . import records
from .connection import connection
from .failures import CERTAIN, GONE, PASSING, error_of, failure
from .log import Log

K = TypeVar("K")
PAUSE = 0.1  # seconds before what passes by itself is asked again
STARTING = 2.0  # seconds in which a broker that has just come up may not know a topic that it has
_MISSING: Final = frozenset({KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC})
_STOPPED: Final = frozenset({ConsumerGroupState.EMPTY, ConsumerGroupState.DEAD})


class ConfluentCluster:
    """One connected admin client."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.at = settings.address
        self.patience = settings.tuning.timeout
        self._open: AdminClient | None = None
        self._log: Log | None = None
        self._threads = ThreadPoolExecutor(1, "switchgear-kafka-log")
        self._counts: dict[str, int] = {}
        self._heard: KafkaError | None = None
        """The last error that belonged to no request."""

    def soon(self) -> float:
        """The deadline of a call that has none of its own."""
        return asyncio.get_running_loop().time() + self.patience

    # ---- the connection -------------------------------------------------------------------------------------------

    @property
    def client(self) -> Any:
        """The connected client. Raises Unavailable before `connect` and after `close`."""
        if self._open is None:
            raise Unavailable(f"{self.at} is not connected")
        return self._open

    async def connect(self, deadline: float) -> None:
        """Have any broker tell about the cluster."""
        if self._open is not None and await self.reachable(deadline):
            return
        admin = self._open
        if admin is None:
            try:
                admin = AdminClient(connection(self.settings, self._hear))
            except KafkaException as error:
                raise failure(self.at, error) from error
        at, loop = f"{self.at} cannot be reached", asyncio.get_running_loop()
        self._heard = None
        asked = asyncio.wrap_future(self._describe(admin, max(1.0, deadline - loop.time())))
        while True:
            await asyncio.wait([asked], timeout=min(0.05, max(0.0, deadline - loop.time())))
            admin.poll(0)
            heard = self._known()
            if asked.done():
                if (why := asked.exception()) is None:
                    break
                raise failure(at, heard or why) from why
            if heard is not None and (heard.code() in CERTAIN or loop.time() >= deadline):
                raise failure(at, heard)
            if loop.time() >= deadline:
                raise Unavailable(f"{at}: no answer in time")
        self._open = admin

    def _hear(self, error: KafkaError) -> None:
        if self._heard is None or error.code() != KafkaError._ALL_BROKERS_DOWN:
            self._heard = error

    def _known(self) -> KafkaError | None:
        return self._heard

    @staticmethod
    def _describe(admin: Any, timeout: float) -> Future[Any]:
        found: Future[Any] = admin.describe_cluster(request_timeout=timeout)
        return found

    async def reachable(self, deadline: float) -> bool:
        """Whether any broker answers."""
        now = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout_at(deadline):
                await asyncio.wrap_future(self._describe(self.client, max(0.1, deadline - now)))
        except (KafkaException, TimeoutError, Unavailable):
            return False
        return True

    async def close(self) -> None:
        """Close every connection; what is under way fails."""
        self._open = None
        log, self._log = self._log, None
        self._counts.clear()
        if log is not None:
            await asyncio.wait([asyncio.get_running_loop().run_in_executor(self._threads, log.close)], timeout=2.0)
        self._threads.shutdown(wait=False)
        self._threads = ThreadPoolExecutor(1, "switchgear-kafka-log")

    # ---- asking ---------------------------------------------------------------------------------------------------

    async def ask(self, send: Callable[[Any, float], Mapping[K, Future[Any]]], what: str = "") -> dict[K, Any]:
        """Each answer, or the KafkaError in its place; asked again while the cluster sorts itself out."""
        until, loop = self.soon(), asyncio.get_running_loop()
        at = f"{self.at}: {what}" if what else self.at
        client = self.client
        while True:
            client.poll(0)
            try:
                futures = send(client, max(0.1, until - loop.time()))
                async with asyncio.timeout_at(until + 1.0):
                    answers = await asyncio.gather(
                        *(asyncio.wrap_future(future) for future in futures.values()), return_exceptions=True
                    )
            except (KafkaException, TimeoutError) as error:
                raise failure(at, error) from error
            found: dict[K, Any] = {}
            for key, answer in zip(futures, answers, strict=True):
                if isinstance(answer, BaseException) and not isinstance(answer, KafkaException):
                    raise answer
                found[key] = error_of(answer) if isinstance(answer, KafkaException) else answer
            again = any(isinstance(one, KafkaError) and one.code() in PASSING for one in found.values())
            if not again or loop.time() + PAUSE >= until:
                return found
            await asyncio.sleep(PAUSE)

    async def _one(self, send: Callable[[Any, float], Future[Any]], what: str) -> Any:
        """The only answer. Raises its error."""
        (found,) = (await self.ask(lambda client, timeout: {0: send(client, timeout)}, what)).values()
        if isinstance(found, KafkaError):
            raise failure(f"{self.at}: {what}", found)
        return found

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
        while True:
            found = (await self.ask(
                lambda client, timeout: client.describe_topics(TopicCollection([topic]), request_timeout=timeout), what
            ))[topic]  # fmt: skip
            if not isinstance(found, KafkaError):
                return found
            if found.code() not in _MISSING:
                raise failure(f"{self.at}: {what}", found)
            if loop.time() >= until:
                return None
            await asyncio.sleep(PAUSE)

    def known(self, topic: str) -> int:
        """As the last answer about the topic said."""
        _ = self.client
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
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(self._threads, lambda: self.client.list_topics(timeout=self.patience))
        except KafkaException as error:
            raise failure(f"{self.at}: its topics", error) from error
        return [name for name in found.topics if not name.startswith("__")]

    async def create(self, topic: str, partitions: int, replicas: int, config: Mapping[str, str]) -> bool:
        """Ask the controller."""
        new = NewTopic(topic, partitions, replicas, config=dict(config))
        found = (await self.ask(
            lambda client, timeout: client.create_topics([new], request_timeout=timeout), f"creating topic {topic!r}"
        ))[topic]  # fmt: skip
        if isinstance(found, KafkaError):
            if found.code() == KafkaError.TOPIC_ALREADY_EXISTS:
                return False
            raise failure(f"{self.at}: creating topic {topic!r}", found)
        return True

    async def grow(self, topic: str, partitions: int) -> None:
        """Ask the controller."""
        await self._one(
            lambda client, timeout: client.create_partitions(
                [NewPartitions(topic, partitions)], request_timeout=timeout
            )[topic],
            f"adding partitions to topic {topic!r}",
        )

    async def broker_config(self, names: Iterable[str]) -> Mapping[str, Configured]:
        """Of some broker."""
        wanted = frozenset(names)
        described = await self._one(self._describe, "its brokers")
        try:
            found = await self._config(ResourceType.BROKER, str(described.nodes[0].id))
        except Refused:
            return {}
        return {name: value for name, value in found.items() if name in wanted}

    async def topic_config(self, topic: str) -> Mapping[str, Configured]:
        """All settings of a topic."""
        return await self._config(ResourceType.TOPIC, topic)

    async def _config(self, kind: ResourceType, name: str) -> Mapping[str, Configured]:
        resource = ConfigResource(kind, name)
        found = await self._one(
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
        await self._one(
            lambda client, timeout: client.incremental_alter_configs([resource], request_timeout=timeout)[resource],
            f"configuring topic {topic!r}",
        )

    # ---- offsets and groups ---------------------------------------------------------------------------------------

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

        return await self.ask(send, "offsets")

    async def committed(self, group: str, tps: Iterable[TopicPartition]) -> dict[TopicPartition, Committed]:
        """What the group has committed."""
        asked = ConsumerGroupTopicPartitions(group, [Native(*tp) for tp in tps])
        if not asked.topic_partitions:
            return {}
        until, loop = self.soon(), asyncio.get_running_loop()
        while True:
            found = await self._one(
                lambda client, timeout: client.list_consumer_group_offsets(
                    [asked], request_timeout=timeout, require_stable=True
                )[group],
                f"group {group!r}",
            )
            errors = {one.error.code(): one.error for one in found.topic_partitions if one.error is not None}
            if set(errors) != {KafkaError.UNSTABLE_OFFSET_COMMIT} or loop.time() >= until:
                break
            await asyncio.sleep(PAUSE)  # a transaction is open: of a member that is dead, until its time is over
        for error in errors.values():
            raise failure(f"{self.at}: group {group!r}", error)
        return {
            TopicPartition(one.topic, one.partition): Committed(one.offset, one.metadata or "")
            for one in found.topic_partitions if one.offset >= 0
        }  # fmt: skip

    async def place(self, group: str, offsets: Mapping[TopicPartition, int]) -> Refusals:
        """Commit as nobody."""
        asked = ConsumerGroupTopicPartitions(group, [Native(*tp, offset) for tp, offset in offsets.items()])
        at = f"{self.at}: group {group!r}"

        def ours(error: KafkaError) -> SwitchgearError:
            return Lost(f"{at} has members") if error.code() in GONE else failure(at, error)

        found = (await self.ask(
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
        found = (await self.ask(
            lambda client, timeout: client.describe_consumer_groups([group], request_timeout=timeout),
            f"group {group!r}",
        ))[group]  # fmt: skip
        if isinstance(found, KafkaError):
            if found.code() == KafkaError.GROUP_ID_NOT_FOUND:
                return []
            raise failure(f"{self.at}: group {group!r}", found)
        if found.state in _STOPPED:
            return []
        return [f"{one.client_id}{one.host}" for one in found.members] or ["a member that is joining"]

    async def groups(self) -> list[str]:
        """Of all brokers."""
        found = await self._one(
            lambda client, timeout: client.list_consumer_groups(request_timeout=timeout), "its groups"
        )
        return sorted(one.group_id for one in found.valid)

    # ---- reading --------------------------------------------------------------------------------------------------

    async def read(self, tp: TopicPartition, offset: int) -> tuple[Sequence[Delivery], int]:
        """From the log's consumer, up to its end at the time of asking."""
        end = (await self.offsets({tp: LATEST}))[tp]
        if offset == end:
            return (), offset
        if offset > end:
            raise OutOfRange(f"{lane(tp)} ends at {end}, before {offset}")
        if self._log is None:
            self._log = Log(connection(self.settings, self._hear))
        log, loop = self._log, asyncio.get_running_loop()
        try:
            messages, after = await loop.run_in_executor(self._threads, log.read, tp, offset, end, self.patience)
        except KafkaException as error:
            raise failure(f"{self.at}: {lane(tp)}", error) from error
        return records.deliveries(lane(tp), lane(tp), messages), after

    def headers(self, delivery: Delivery) -> Headers:
        """As they were sent, without the content type."""
        return records.headers(delivery)

    def time(self, delivery: Delivery) -> float:
        """The record's timestamp."""
        return records.time(delivery)
