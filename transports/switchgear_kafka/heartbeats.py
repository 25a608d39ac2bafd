"""The heartbeats that aiokafka sends for a member, and what their answers prove."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka import errors as kafka

from .membership import Tenure
from .wire import hang_up


class Heartbeats:
    """Listens to a consumer's heartbeats. The client itself tells nobody when one was answered."""

    def __init__(self, consumer: AIOKafkaConsumer, tenure: Tenure) -> None:
        self._consumer, self._tenure = consumer, tenure
        self._heard: Any = None
        """The coordinator that we listen to."""

    async def begin(self, patience: float) -> None:
        """Send the first of a generation, so that no handler waits for the client's."""
        coordinator: Any = self._consumer._coordinator
        if self._heard is not coordinator:
            self._heard, beat = coordinator, coordinator._do_heartbeat

            async def listening() -> bool:
                since = time.monotonic()
                try:
                    answered: bool = await beat()
                except kafka.GroupAuthorizationFailedError:
                    raise
                except kafka.KafkaError:  # the client would never send another; a token that was refused is told so
                    hang_up(self._consumer._client)
                    return False
                # while the group waits for us to join again the client calls it good, and it may wait no longer
                if answered and not coordinator._rejoin_needed_fut.done():
                    self._tenure.proven(since)
                return answered

            coordinator._do_heartbeat = listening
        try:
            async with asyncio.timeout(patience):
                await coordinator._do_heartbeat()
        except TimeoutError:
            return  # the client's own follow
