"""Storing records and a group's positions in one transaction. The client's calls for it wait: a thread makes them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, Final, cast

from confluent_kafka import KafkaError, KafkaException, Message, Producer
from confluent_kafka import TopicPartition as Native

from switchgear.errors import Lost, MaybeSent, NotSent, Refused, TransportError
from switchgear_kafka.cluster import Committed, Queues, TopicPartition, lane

from .cluster import ConfluentCluster
from .connection import connection
from .failures import GONE, error_of, failure
from .names import Names
from .producing import producing

OPEN: Final = 10.0  # seconds that a transaction may be open: so long a dead member's keeps others from reading on
STEP: Final = 0.5  # seconds that one call of the client waits
PAUSE: Final = 0.02  # seconds before a call that failed for now is made again
ABORT: Final = 3.0  # seconds to take back what was begun, beside the caller's deadline
LEAVE: Final = 3.0  # seconds to close
_CAUSELESS: Final = frozenset({
    KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT, KafkaError._FATAL, KafkaError._INCONSISTENT,
})  # fmt: skip
"""Of a record: not stored, for the sake of another."""
_UNDONE: Final = frozenset({
    KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH, KafkaError._FENCED, KafkaError.INVALID_TXN_STATE,
    KafkaError.INVALID_PRODUCER_ID_MAPPING, KafkaError.UNKNOWN_PRODUCER_ID, KafkaError.TRANSACTION_ABORTABLE,
    KafkaError.STALE_MEMBER_EPOCH,
})  # fmt: skip
"""The broker gave the transaction up, or the member is in the group's next round: it may be tried again."""


class Transactions:
    """The transactions of one member, one after the other."""

    def __init__(self, cluster: ConfluentCluster, name: str, lease: float) -> None:
        """`name` is the transactional id; `lease` seconds, at most, one may be open."""
        self._cluster = cluster
        config, within = producing(cluster), round(1000 * max(1.0, min(lease, OPEN)))
        self._config = {
            **config, "acks": "all", "enable.idempotence": True, "enable.gapless.guarantee": False,
            "transactional.id": name, "transaction.timeout.ms": within, "message.timeout.ms": within,
            "socket.timeout.ms": min(config["socket.timeout.ms"], within),
            "request.timeout.ms": min(config["request.timeout.ms"], within),
        }  # fmt: skip
        self._thread = ThreadPoolExecutor(1, "switchgear-kafka-transaction")
        self._client: Producer | None = None
        """Ready to begin; touched by the thread alone."""
        self._unsure = False
        """Nobody knows yet what became of the last one."""
        self._closed = False
        self._names = Names()

    def prepare(self) -> None:
        """Get ready while the group gives us partitions: it takes a second. What fails now the first commit tells."""
        self._thread.submit(self._prepare)

    async def decided(self) -> bool:
        """Whether it is known, or now is, what became of the last one: what is begun anew has that found out first."""
        if self._unsure and not self._closed:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._prepare)
        return not self._unsure

    async def commit(
        self, queues: Queues, offsets: Mapping[TopicPartition, Committed], group: object, deadline: float
    ) -> None:
        """Store all of it, or nothing; `group` is the member's metadata, by which the broker knows it still is one.

        Raises TransportError as `Transactional.commit` does.
        """
        if self._closed:
            raise Lost(f"{self._cluster.at}: a transaction of a source that is closed")
        for tp, queue in queues.items():
            if not all(map(self._names.fit, queue)):
                raise Refused(f"{self._cluster.at}: {lane(tp)}: a header has a name that is no text")
        loop = asyncio.get_running_loop()
        until = time.monotonic() + deadline - loop.time()
        await loop.run_in_executor(self._thread, self._commit, queues, offsets, group, until)

    # ---- in the thread --------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        with suppress(KafkaException):
            self._ready(time.monotonic() + OPEN)

    def _commit(
        self, queues: Queues, offsets: Mapping[TopicPartition, Committed], group: object, until: float
    ) -> None:  # fmt: skip
        at = f"{self._cluster.at}: a transaction"
        refused: dict[TopicPartition, KafkaError] = {}
        committing = False
        try:
            client = self._ready(until)
            client.begin_transaction()
            self._produce(client, queues, refused, until)
            natives = [Native(*tp, one.offset, one.note) for tp, one in offsets.items()]
            self._again(partial(client.send_offsets_to_transaction, natives, group), until)
            self._again(client.flush, until, lambda left: left == 0)
            if refused:
                raise KafkaException(next(iter(refused.values())))
            self._unsure = committing = True
            self._again(client.commit_transaction, until)
            self._unsure = False
        except KafkaException as raised:
            error = error_of(raised)
            if committing and not error.txn_requires_abort():
                self._drop()
                raise MaybeSent(f"{at}: it is not known whether it was committed ({error.str()})") from raised
            self._unsure = False
            self._abort(time.monotonic() + ABORT)
            for tp, cause in refused.items():
                raise self._failed(f"{self._cluster.at}: {lane(tp)}", cause) from raised
            raise self._failed(at, error) from raised
        except BaseException:
            self._drop()
            raise

    def _ready(self, until: float) -> Producer:
        client = self._client
        if client is None:
            client = Producer({**connection(self._cluster.settings, _ignored), **self._config})
            self._again(client.init_transactions, until)
            self._client, self._unsure = client, False
        return client

    def _produce(
        self, client: Producer, queues: Queues, refused: dict[TopicPartition, KafkaError], until: float
    ) -> None:  # fmt: skip
        def report(tp: TopicPartition, error: KafkaError | None, _: Message) -> None:
            if error is not None and error.code() not in _CAUSELESS:
                refused.setdefault(tp, error)

        for tp, queue in queues.items():
            told = partial(report, tp)
            for record in queue:
                while True:
                    try:
                        client.produce(
                            tp.topic, record.value, record.key, tp.partition,
                            headers=cast("Any", record.headers) or None, on_delivery=told,
                        )  # fmt: skip
                        break
                    except BufferError as full:
                        client.poll(PAUSE)
                        if time.monotonic() >= until:
                            raise KafkaException(KafkaError(KafkaError._QUEUE_FULL)) from full

    def _again(
        self, call: Callable[[float], Any], until: float, enough: Callable[[Any], bool] = lambda _: True
    ) -> None:  # fmt: skip
        """Call, with the seconds to wait, until it is done; again for what passes by itself, until the deadline."""
        while True:
            left = until - time.monotonic()
            try:
                if enough(call(max(0.001, min(STEP, left)))):
                    return
            except KafkaException as raised:
                error = error_of(raised)
                if error.txn_requires_abort() or not error.retriable() or left <= 0 or self._closed:
                    raise
                if error.code() != KafkaError._TIMED_OUT:
                    time.sleep(PAUSE)
            else:
                if left <= 0 or self._closed:
                    raise KafkaException(KafkaError(KafkaError._TIMED_OUT))

    def _abort(self, until: float) -> None:
        """Take back what was begun. Where that fails the next producer of this name does it, or the broker in time."""
        client = self._client
        if client is None:
            return
        try:
            self._again(client.abort_transaction, until)
        except KafkaException:
            self._drop()

    def _failed(self, at: str, error: KafkaError) -> TransportError:
        """Nothing was stored, and why."""
        code = error.code()
        if code in _UNDONE:
            return NotSent(f"{at} was given up by the broker ({error.str()})")
        if code in GONE:
            return Lost(f"{at}: its group has gone on without us ({error.str()})")
        if error.fatal():
            return NotSent(f"{at}: {error.str()}")
        ours = failure(at, error)
        return ours if isinstance(ours, TransportError) else Refused(str(ours))

    def _drop(self) -> None:
        """The next transaction begins with another producer of this name, which fences this one."""
        client, self._client = self._client, None
        if client is not None:
            client.purge()
            client.close()

    # ---- closing ----------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """What is under way ends soon, one way or the other. Idempotent."""
        if self._closed:
            return
        self._closed = True
        closing = asyncio.get_running_loop().run_in_executor(self._thread, self._drop)
        await asyncio.wait([closing], timeout=LEAVE)
        self._thread.shutdown(wait=False, cancel_futures=True)


def _ignored(_: KafkaError) -> None:
    """What belongs to no call is told by the calls."""
