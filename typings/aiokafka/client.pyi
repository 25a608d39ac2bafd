import asyncio
import ssl
from collections.abc import Collection, Mapping, Sequence
from enum import IntEnum
from typing import Any

from .abc import AbstractTokenProvider
from .conn import AIOKafkaConnection

class ConnectionGroup(IntEnum):
    DEFAULT = 0
    COORDINATION = 1

class CoordinationType(IntEnum):
    GROUP = 0
    TRANSACTION = 1

class _Broker:
    nodeId: int  # noqa: N815
    host: str
    port: int

class _Partition:
    replicas: Sequence[int]

class _Cluster:
    controller: _Broker | None
    _partitions: Mapping[str, Mapping[int, _Partition]]
    def brokers(self) -> Collection[_Broker]: ...
    def partitions_for_topic(self, topic: str) -> set[int] | None: ...
    def leader_for_partition(self, partition: tuple[str, int]) -> int | None: ...

class AIOKafkaClient:
    cluster: _Cluster
    _conns: Mapping[object, AIOKafkaConnection]
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
        request_timeout_ms: int,
    ) -> None: ...
    async def bootstrap(self) -> None: ...
    async def close(self) -> None: ...
    def force_metadata_update(self) -> asyncio.Future[bool]: ...
    def add_topic(self, topic: str) -> asyncio.Future[bool]: ...
    def get_random_node(self) -> int | None: ...
    async def ready(self, node_id: int) -> bool: ...
    async def send(self, node_id: int, request: object, *, group: ConnectionGroup = ...) -> Any: ...
    async def coordinator_lookup(self, coordinator_type: CoordinationType, coordinator_key: str) -> int: ...
