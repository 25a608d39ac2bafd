"""One client of the cluster, for all but reading: metadata, offsets, requests to leaders, coordinators, controller."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

from aiokafka import errors as kafka
from aiokafka.client import AIOKafkaClient, ConnectionGroup, CoordinationType
from aiokafka.conn import create_conn
from aiokafka.protocol.commit import OffsetCommitRequest, OffsetFetchRequest
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.protocol.offset import OffsetRequest

from switchgear.errors import Refused, Unavailable

from .cluster import LATEST, Committed, TopicPartition
from .failures import CONNECT, failure
from .security import connection
from .tuning import Settings

T = TypeVar("T")
Errors: TypeAlias = Mapping[TopicPartition, type[kafka.KafkaError]]

COMMITTED_READS = 1  # isolation: nothing of transactions that are open or were aborted
STARTING = 2.0  # seconds in which a broker that has just come up may not know a topic that it has
PAUSE = 0.1  # seconds before what passes by itself is asked again

_PASSING: Final = (
    kafka.NotLeaderForPartitionError, kafka.LeaderNotAvailableError, kafka.StaleMetadata, kafka.NotControllerError,
    kafka.GroupCoordinatorNotAvailableError, kafka.NotCoordinatorForGroupError, kafka.GroupLoadInProgressError,
)  # fmt: skip
"""The cluster is up and sorts itself out: a leader moves, a coordinator loads its groups."""


class Member(NamedTuple):
    """In whose name a commit is made; the broker refuses those of a past generation."""

    generation: int
    id: str


NOBODY: Final = Member(-1, "")
"""A commit from outside, which the broker takes only while the group has no member."""


class Wire:
    """A client of the cluster."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.at = settings.address
        self.patience = settings.tuning.timeout
        self._open: AIOKafkaClient | None = None
        self._coordinators: dict[str, int] = {}
        self._seen: set[str] = set()
        """Topics that were there."""

    @property
    def client(self) -> AIOKafkaClient:
        """The connected client. Raises Unavailable before `connect` and after `close`."""
        if self._open is None:
            raise Unavailable(f"{self.at} is not connected")
        return self._open

    def soon(self) -> float:
        """The deadline of a call that has none of its own."""
        return asyncio.get_running_loop().time() + self.patience

    # ---- the connection -------------------------------------------------------------------------------------------

    async def connect(self, deadline: float) -> None:
        """Reach a broker and learn about the others. Raises Unavailable, Refused, ConfigurationError."""
        if self._open is not None:
            if await self.reachable(self._open, deadline):
                return
            await self.close()  # every broker may have another address now
        patience = round(max(self.patience, 1.0) * 1000)
        client = AIOKafkaClient(**connection(self.settings), request_timeout_ms=patience, client_id="switchgear")
        try:
            async with asyncio.timeout_at(deadline):
                await client.bootstrap()
            await self._brokers(client, deadline)
        except BaseException as error:
            await client.close()
            if isinstance(error, CONNECT):
                raise await self._why(error, deadline) from error
            raise
        self._open = client

    async def _brokers(self, client: AIOKafkaClient, deadline: float) -> None:
        """Return when the server knows of a broker: one that is starting knows of none."""
        while not client.cluster.brokers():
            if self.settings.sasl == "OAUTHBEARER":  # a refused token is answered so: the client takes it for granted
                raise Refused(
                    f"{self.at} does not take the token: check its issuer, audience and expiry, and the clocks"
                )
            left = deadline - asyncio.get_running_loop().time() - PAUSE
            if left <= 0:
                raise Unavailable(f"{self.at}: a server answers that knows of no broker: is it starting?")
            await asyncio.sleep(PAUSE)
            await asyncio.wait([client.force_metadata_update()], timeout=left)

    async def reachable(self, client: AIOKafkaClient, deadline: float) -> bool:
        """Whether any broker answers."""
        try:
            async with asyncio.timeout_at(deadline):
                return bool(await client.force_metadata_update())
        except TimeoutError:
            return False

    async def _why(self, error: BaseException, deadline: float) -> Exception:
        """What keeps us from the brokers: the client only logs it."""
        options = dict[str, Any](connection(self.settings))
        del options["bootstrap_servers"]
        until = max(deadline, asyncio.get_running_loop().time() + 1.0)
        for host, port in self.settings.servers:
            try:
                async with asyncio.timeout_at(until):
                    probe = await create_conn(host, port, client_id="switchgear", **options)
                    try:
                        await probe.send(MetadataRequest([], False))
                    finally:
                        await probe.close()
            except CONNECT as found:
                error = found
        return failure(f"{self.at} cannot be reached", error)

    async def close(self) -> None:
        """Close every connection; what is under way fails."""
        client, self._open = self._open, None
        self._coordinators.clear()
        if client is not None:
            await client.close()

    # ---- asking ---------------------------------------------------------------------------------------------------

    async def insist(self, ask: Callable[[], Awaitable[T]], what: str = "", deadline: float | None = None) -> T:
        """Ask until the deadline while the cluster sorts itself out; every failure is one of our errors."""
        until = self.soon() if deadline is None else deadline
        at = f"{self.at}: {what}" if what else self.at
        loop = asyncio.get_running_loop()
        while True:
            try:
                async with asyncio.timeout_at(until):
                    return await ask()
            except CONNECT as error:
                if isinstance(error, TimeoutError) and deadline is None and self._open is not None:
                    hang_up(self._open)
                if isinstance(error, kafka.KafkaError) and error.retriable:
                    self._coordinators.clear()
                    refreshed = self.client.force_metadata_update()
                    if isinstance(error, _PASSING) and loop.time() + PAUSE < until:
                        await asyncio.wait([refreshed], timeout=PAUSE)
                        await asyncio.sleep(PAUSE)
                        continue
                raise failure(at, error) from error

    async def controller(self, request: Any) -> Any:
        """The answer of the controller."""
        node = self.client.cluster.controller
        if node is None:
            await self.client.force_metadata_update()
            node = self.client.cluster.controller
        return await self.client.send(node.nodeId if node is not None else self.anyone(), request)

    def anyone(self) -> int:
        """Some broker. Raises Unavailable where none is known."""
        node = self.client.get_random_node()
        if node is None:
            raise Unavailable(f"{self.at}: no broker is known")
        return node

    async def coordinator(self, group: str, request: Any) -> Any:
        """The answer of the broker that keeps the group."""
        node = self._coordinators.get(group)
        if node is None:
            node = await self.client.coordinator_lookup(CoordinationType.GROUP, group)
            self._coordinators[group] = node
        return await self.client.send(node, request, group=ConnectionGroup.COORDINATION)

    # ---- partitions and offsets -----------------------------------------------------------------------------------

    async def partitions(self, topic: str, *, fresh: bool = False) -> list[TopicPartition]:
        """The topic's partitions; none where there is no such topic. Raises Refused without the right to see it.

        Asking creates no topic, whatever the broker's auto.create.topics.enable.
        """
        client, what, loop = self.client, f"topic {topic!r}", asyncio.get_running_loop()
        until = loop.time() + STARTING if topic in self._seen else 0.0  # a broker that comes up may not know it yet
        if fresh or not client.cluster.partitions_for_topic(topic):

            async def there() -> bool:
                response = await client.send(self.anyone(), MetadataRequest([topic], False))
                error = next((kafka.for_code(code) for code, *_ in response.topics), kafka.NoError)
                if issubclass(error, kafka.UnknownTopicOrPartitionError):
                    if loop.time() < until:
                        raise kafka.LeaderNotAvailableError(topic)
                    return False
                if not issubclass(error, kafka.NoError | kafka.LeaderNotAvailableError):
                    raise error(topic)
                return True

            async def update() -> None:
                _ = client.add_topic(topic)
                if not await client.force_metadata_update():
                    raise kafka.KafkaConnectionError("no broker tells about its topics")
                if loop.time() < until and not client.cluster.partitions_for_topic(topic):
                    raise kafka.LeaderNotAvailableError(topic)  # another broker, or the same a moment before

            exists = await self.insist(there, what)
            if exists or client.cluster.partitions_for_topic(topic):  # what was deleted is to be forgotten
                await self.insist(update, what)
            if not exists:
                self._seen.discard(topic)
                return []
            self._seen.add(topic)
        return [TopicPartition(topic, n) for n in sorted(client.cluster.partitions_for_topic(topic) or ())]

    async def offsets(self, times: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
        """The offset of the first record at or after a time (unix milliseconds), or LATEST, or EARLIEST.

        Where no record is that late it is the end.
        """

        async def ask() -> dict[TopicPartition, int]:
            by_leader: dict[int, list[TopicPartition]] = defaultdict(list)
            for tp in times:
                leader = self.client.cluster.leader_for_partition(tp)
                if leader is None or leader == -1:
                    _ = self.client.add_topic(tp.topic)
                    raise kafka.LeaderNotAvailableError(tp)
                by_leader[leader].append(tp)
            found: dict[TopicPartition, int] = {}
            for leader, tps in by_leader.items():
                request = OffsetRequest(-1, COMMITTED_READS, by_topic(tps, lambda tp: (tp.partition, times[tp])))
                response = await self.client.send(leader, request)
                for topic, partitions in response.topics:
                    for partition, code, *rest in partitions:
                        raise_for(code, f"{topic}/{partition}")
                        found[TopicPartition(topic, partition)] = rest[-1]
            return found

        if not times:
            return {}
        found = await self.insist(ask, "offsets")
        late = {tp: LATEST for tp, offset in found.items() if offset < 0}
        return {**found, **(await self.offsets(late) if late else {})}

    async def committed(self, group: str, tps: Iterable[TopicPartition]) -> dict[TopicPartition, Committed]:
        """What the group has committed; partitions without a commit are left out."""
        wanted = list(tps)

        async def ask() -> dict[TopicPartition, Committed]:
            request = OffsetFetchRequest(group, by_topic(wanted, lambda tp: tp.partition))
            response = await self.coordinator(group, request)
            raise_for(getattr(response, "error_code", 0), group)
            found: dict[TopicPartition, Committed] = {}
            for topic, partitions in response.topics:
                for partition, offset, note, code in partitions:
                    raise_for(code, f"{topic}/{partition}")
                    if offset >= 0:
                        found[TopicPartition(topic, partition)] = Committed(offset, note or "")
            return found

        return await self.insist(ask, f"group {group!r}") if wanted else {}

    async def commit(self, group: str, member: Member, offsets: Mapping[TopicPartition, Committed]) -> Errors:
        """Commit in a member's name; the partitions that were refused, and why. Raises what failed as a whole."""

        async def ask() -> Errors:
            topics = by_topic(offsets, lambda tp: (tp.partition, offsets[tp].offset, offsets[tp].note))
            request = OffsetCommitRequest(group, member.generation, member.id, -1, topics)
            response = await self.coordinator(group, request)
            refused: dict[TopicPartition, type[kafka.KafkaError]] = {}
            for topic, partitions in response.topics:
                for partition, code in partitions:
                    error = kafka.for_code(code)
                    if issubclass(error, (*_PASSING, kafka.RequestTimedOutError)):
                        raise error(group)
                    if code:
                        refused[TopicPartition(topic, partition)] = error
            return refused

        return await self.insist(ask, f"group {group!r}")


def hang_up(client: AIOKafkaClient) -> None:
    """Close every connection: one may be dead without our being told. The client makes new ones."""
    for conn in list(client._conns.values()):
        _ = conn.close()


def by_topic(tps: Iterable[TopicPartition], entry: Callable[[TopicPartition], T]) -> list[tuple[str, list[T]]]:
    """What requests take: a list of topics, each with its partitions."""
    topics: dict[str, list[T]] = {}
    for tp in tps:
        topics.setdefault(tp.topic, []).append(entry(tp))
    return list(topics.items())


def raise_for(code: int, what: str) -> None:
    """Raise the client's error for an error code of the broker."""
    if code:
        raise kafka.for_code(code)(what)
