# The part of aiokafka that switchgear_kafka uses, and no more: it ships without types.
import ssl
from collections.abc import Collection, Mapping, Sequence

from .abc import AbstractTokenProvider, ConsumerRebalanceListener
from .client import AIOKafkaClient
from .structs import ConsumerRecord as ConsumerRecord
from .structs import TopicPartition as TopicPartition

class _Coordinator:
    generation: int
    member_id: str

class AIOKafkaConsumer:
    _client: AIOKafkaClient
    _coordinator: _Coordinator
    _fetcher: object
    def __init__(
        self,
        *,
        bootstrap_servers: Sequence[str],
        security_protocol: str,
        ssl_context: ssl.SSLContext | None,
        sasl_mechanism: str,
        sasl_plain_username: str | None,
        sasl_plain_password: str | None,
        sasl_oauth_token_provider: AbstractTokenProvider | None,
        client_id: str,
        group_id: str | None,
        group_instance_id: str | None,
        client_rack: str | None,
        enable_auto_commit: bool,
        auto_offset_reset: str,
        isolation_level: str,
        fetch_max_bytes: int,
        fetch_max_wait_ms: int,
        session_timeout_ms: int,
        heartbeat_interval_ms: int,
        rebalance_timeout_ms: int,
        max_poll_interval_ms: int,
        request_timeout_ms: int,
    ) -> None: ...
    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    def subscribe(self, topics: Sequence[str], *, listener: ConsumerRebalanceListener) -> None: ...
    def subscription(self) -> Collection[str]: ...
    def assign(self, partitions: list[TopicPartition]) -> None: ...
    def assignment(self) -> frozenset[TopicPartition]: ...
    def partitions_for_topic(self, topic: str) -> set[int] | None: ...
    def seek(self, partition: TopicPartition, offset: int) -> None: ...
    def last_poll_timestamp(self, partition: TopicPartition) -> int | None: ...
    async def getmany(
        self, *partitions: TopicPartition, timeout_ms: int = 0, max_records: int | None = None
    ) -> Mapping[TopicPartition, Sequence[ConsumerRecord]]: ...
