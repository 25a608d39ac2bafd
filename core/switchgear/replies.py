"""Request and reply: one reply address per application, filtered by instance; at most once.

A request carries `replyto`, "<reply topic>/<instance>"; its answer carries the request's id as `causationid` and the
instance as `subject`. Only reserved reply names are honoured, so that no message can make a responder write elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from typing import TYPE_CHECKING, Any

from msgspec import structs

from . import names
from .codec import Decoders, codec
from .config import Config, resolve
from .consumer import Consumer
from .driver import Order, Outgoing
from .envelope import attribute, rfc3339, static
from .errors import Misuse, NotSent, RequestFailed, RequestTimeout
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
        route = Route(schema=bytes, content_type="application/octet-stream", handle=self._take)
        settings, _ = resolve(self.topic, None, {}, Config.load({}, bus=core.name))
        program = Program(
            topic=self.topic, group=None, settings=settings, order=Order.NONE,
            physical=[core.physical(self.topic)], physical_group=None, leased=None, dead_letters="",
            routes={None: route}, default_type=self.topic, private=True,
        )  # fmt: skip
        self._consumer = Consumer(program, core)
        self._consumer.start()

    @property
    def failed(self) -> bool:
        """Whether no answer can be received any more."""
        return self._consumer.finished.is_set()

    async def ready(self, deadline: float) -> None:
        """Return when subscribed, which must be before the first request. Raises Unavailable at the deadline."""
        ready = self._consumer.ready
        if not ready.done():
            await asyncio.wait([ready], timeout=max(0.0, deadline - self._core.loop.time()))
        if not ready.done():
            if self._core.link.up:
                raise NotSent(f"{self._core.url} did not let us subscribe to the answers before the timeout")
            raise self._core.link.unavailable()
        if ready.cancelled():
            raise Misuse("the bus was closed")
        ready.result()

    def ask(self, out: Outgoing) -> Outgoing:
        """The message as a request, whose answer is expected from now on."""
        assert out.dedup is not None
        self._waiting[out.dedup] = self._core.loop.create_future()
        address = (self._core.transport.capabilities.binding + "replyto", self.address.encode())
        return structs.replace(out, marked=True, headers=[*out.headers, address])

    async def _take(self, message: Message[Any]) -> object:
        attributes = message._attributes()
        if attributes.subject == self.instance and attributes.causation_id is not None:
            waiter = self._waiting.get(attributes.causation_id)
            if waiter is not None and not waiter.done():
                waiter.set_result(message)
        return None

    async def wait(self, id_: str, schema: Any, deadline: float, timeout: float, topic: str) -> Any:
        """The decoded answer to a request. Raises RequestTimeout, or RequestFailed with the responder's reason."""
        try:
            async with asyncio.timeout_at(deadline):
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
        """Stop listening; who still waits for an answer gets RequestFailed."""
        await self._consumer.stop(deadline)
        for waiter in self._waiting.values():
            if not waiter.done():
                waiter.set_exception(RequestFailed("the bus was closed before the answer came"))
                waiter.exception()  # seen: perhaps its request is still being sent


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
