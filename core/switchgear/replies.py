"""Request and reply: one reply address per application, filtered by instance; at most once.

A request carries `replyto`, "<reply topic>/<instance>"; its answer carries the request's id as `causationid` and the
instance as `subject`. Only reserved reply names are honoured, so that no message can make a responder write elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from typing import TYPE_CHECKING, Any

from . import names
from .codec import Decoders, codec
from .config import Settings
from .driver import Order, Outgoing
from .envelope import attribute, rfc3339, static
from .errors import RequestFailed, RequestTimeout
from .message import Message
from .program import Program, Route

if TYPE_CHECKING:
    from .core import Core

log = logging.getLogger("switchgear.replies")

ANSWER, REJECTION = "sg.answer", "sg.rejection"
JSON = "application/json"


class Replies:
    """The answers that this bus waits for."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.instance = secrets.token_hex(6)
        self.topic = names.reply_topic(core.name)
        self.address = f"{self.topic}/{self.instance}"
        self._waiting: dict[str, asyncio.Future[Message[Any]]] = {}
        self._consumer: Any = None

    async def open(self, settings: Settings) -> None:
        """Subscribe to the reply topic, before the first request."""
        from .consumer import Consumer

        route = Route(schema=bytes, content_type="application/octet-stream", handle=self._take)
        program = Program(
            topic=self.topic, group=None, settings=settings, order=Order.NONE,
            physical=[self._core.physical(self.topic)], physical_group=None, leased=None, dead_letters="",
            routes={None: route, "": route}, default_type=self.topic, private=True,
        )  # fmt: skip
        self._consumer = Consumer(program, self._core)
        self._consumer.start()
        await self._consumer.ready

    async def _take(self, message: Message[Any]) -> object:
        attributes = message._attributes()
        if attributes.subject == self.instance and attributes.causation_id is not None:
            waiter = self._waiting.get(attributes.causation_id)
            if waiter is not None and not waiter.done():
                waiter.set_result(message)
        return None

    def expect(self, id_: str) -> asyncio.Future[Message[Any]]:
        future: asyncio.Future[Message[Any]] = asyncio.get_running_loop().create_future()
        self._waiting[id_] = future
        return future

    async def wait(self, id_: str, schema: Any, timeout: float, topic: str) -> Any:
        """The decoded answer to a request. Raises RequestTimeout, or RequestFailed with the responder's reason."""
        try:
            async with asyncio.timeout(timeout):
                message = await self._waiting[id_]
        except TimeoutError:
            raise RequestTimeout(
                f"no answer from {topic!r} within {timeout:g} s: is a handler subscribed, and quick enough?"
            ) from None
        if message.type == REJECTION:
            raise RequestFailed((message.data or b"").decode("utf-8", "replace"))
        return Decoders(schema, JSON).decode(message.data or b"null", message._received().media)

    def forget(self, id_: str) -> None:
        self._waiting.pop(id_, None)

    async def close(self, deadline: float) -> None:
        if self._consumer is not None:
            await self._consumer.stop(deadline)
        for waiter in self._waiting.values():
            if not waiter.done():
                waiter.set_exception(RequestFailed("the bus was closed before the answer came"))


def is_reply_address(address: str) -> bool:
    """Whether answers may be sent there: a reserved reply name with an instance, nothing else."""
    topic, slash, instance = address.partition("/")
    return bool(slash) and topic.startswith("sg.reply.") and len(topic) > len("sg.reply.") and instance.isalnum()


async def answer(core: Core, message: Message[Any], value: object, failure: str | None) -> None:
    """Send what a handler returned, or why it failed, to the asker. Raises TransportError."""
    attributes = message._attributes()
    address = attributes.reply_to
    if address is None:
        return
    if not is_reply_address(address):
        log.warning("message %s asks for an answer to %r, which is no reply address: ignored", message.id, address[:80])
        return
    topic, _, instance = address.partition("/")
    binding = core.transport.capabilities.binding
    body = failure.encode() if failure is not None else codec(JSON).encoder(Any)(value)
    id_ = f"{message.id}>reply"
    headers = [
        *static(binding, source=f"/{core.name}", type=ANSWER if failure is None else REJECTION),
        (binding + "id", attribute("id", id_)),
        (binding + "time", rfc3339(core.clock.now())),
        (binding + "subject", attribute("subject", instance)),
        (binding + "causationid", attribute("causationid", message.id)),
        (binding + "correlationid", attribute("correlationid", message.correlation_id)),
    ]
    media = JSON.encode() if failure is None else b"text/plain"
    await core.emit(
        Outgoing(
            topic=core.physical(topic), body=body, media=media, headers=headers, dedup=id_, private=True, marked=True
        ),
        timeout=10.0,
    )
