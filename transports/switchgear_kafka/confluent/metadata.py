"""What the cluster tells of itself and its topics, by the client's plain call.

The admin API has calls for it, too (`describe_cluster`, `describe_topics`), on which librdkafka (2.16) ends the process
where a broker that is starting knows of no broker yet, or where the client is closed before the answer: their parsers
then have neither a result nor an error.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException

from .failures import error_of

STEP: Final = 0.5  # seconds that one call of the client waits
PAUSE: Final = 0.05  # seconds before what failed for now is asked again
LEAVE: Final = 1.0  # seconds in which a call that is under way ends
_FOR_NOW: Final = frozenset({KafkaError._TIMED_OUT, KafkaError._TRANSPORT, KafkaError._PARTIAL})


class Metadata:
    """Asked in threads, since the call waits."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(2, "switchgear-kafka-metadata")
        self._asked: dict[asyncio.Future[Any], Event] = {}

    async def ask(self, client: Any, topic: str, deadline: float) -> Any:
        """The brokers, by the deadline maybe none, and this topic, which is not created. Raises KafkaException."""
        loop, over = asyncio.get_running_loop(), Event()
        until = time.monotonic() + deadline - loop.time()
        asked = loop.run_in_executor(self._threads, _ask, client, topic, until, over)
        self._asked[asked] = over
        asked.add_done_callback(self._asked.pop)
        try:
            return await asyncio.shield(asked)
        finally:
            over.set()
            if not asked.done():
                asked.add_done_callback(_seen)

    async def close(self) -> None:
        """End what is under way, and the threads."""
        for over in self._asked.values():
            over.set()
        if self._asked:
            await asyncio.wait(list(self._asked), timeout=LEAVE)
        self._threads.shutdown(wait=False)
        self._threads = ThreadPoolExecutor(2, "switchgear-kafka-metadata")


def _ask(client: Any, topic: str, until: float, over: Event) -> Any:
    while True:
        left = until - time.monotonic()
        last = left <= STEP or over.is_set()
        try:
            found = client.list_topics(topic, timeout=max(0.001, min(STEP, left)))
        except KafkaException as error:
            if last or error_of(error).code() not in _FOR_NOW:
                raise
        else:
            if found.brokers or last:  # one that is starting knows of none
                return found
        time.sleep(PAUSE)


def _seen(late: asyncio.Future[Any]) -> None:
    """What comes after its time is told to nobody."""
    if not late.cancelled():
        late.exception()
