"""A topic compiled for publishing: value and options in, one `Outgoing` out."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Mapping
from typing import Any

from .clock import Clock
from .codec import ENCODE_ERRORS, admits_none, codec, encode_failed
from .driver import Capabilities, Headers, Order, Outgoing
from .envelope import Stamp, attribute, check_limits, rfc3339, static, user_headers
from .errors import CodecError, ConfigurationError, Refused, Unsupported
from .knobs import PublishOptions
from .message import Message
from .names import partition
from .plans import Plan
from .settings import nearest
from .topic import Topic
from .units import instant

KEYS_REMEMBERED = 10_000  # places of keys that a partitioned topic keeps, so that hashing is done once a key


class Ids:
    """Unique ids: a random prefix per process and a counter."""

    __slots__ = ("count", "prefix")

    def __init__(self) -> None:
        self.count = itertools.count(1 << 24).__next__
        self.prefix = secrets.token_hex(8) + "-"

    def next(self) -> str:
        return self.prefix + str(self.count())


class Writer:
    """One per topic and bus."""

    def __init__(
        self, topic: Topic[Any], plan: Plan, capabilities: Capabilities, *, source: str, clock: Clock, ids: Ids,
        scheme: str, stamp: Stamp,
    ) -> None:  # fmt: skip
        self.topic, self.plan = topic, plan
        self.ordered = plan.order > Order.NONE
        self._capabilities, self._clock, self._ids, self._scheme = capabilities, clock, ids, scheme
        self._codec = codec(topic.codec)
        self._encode = self._codec.encoder(topic.schema)
        self._media = topic.codec.encode()
        self._key = topic.key
        self._total = plan.order is Order.TOTAL
        binding = capabilities.binding
        self._binding = binding
        self._events = topic.envelope == "cloudevents"
        self._static = static(binding, source=source, type=topic.type or topic.name) if self._events else []
        self._id, self._time, self._partition_key = binding + "id", binding + "time", binding + "partitionkey"
        self._stamp = stamp
        self._now = clock.now
        self._time_until = 0.0
        self._time_header = (self._time, b"")
        self._prefix, self._count = ids.prefix, ids.count
        self._only = plan.physical[0] if len(plan.physical) == 1 else None
        self._places: dict[bytes, str] = {}
        self._turn = itertools.count().__next__
        self._body_limit = capabilities.body

    def plain(self, value: object) -> Outgoing:
        """A message without options: the quick way."""
        try:
            body = self._encode(value)
        except ENCODE_ERRORS as error:
            raise encode_failed(error, self.topic.codec, self.topic.schema) from error
        key: bytes | None = None
        if self._key is not None:
            try:
                text = self._key(value)
                key = text.encode() if text.isprintable() else self._key_of(value)
            except Exception:  # noqa: BLE001  rare: not text, surrogates, a bug: the careful way tells which
                key = None if value is None else self._key_of(value)
        if len(body) > self._body_limit or value is None:
            body = self._check_body(value, body, key)  # type: ignore[assignment]
        id_ = self._prefix + str(self._count())
        if self._events:
            now = self._now()
            if not self._time_until - 0.002 < now < self._time_until:
                self._time_header = (self._time, self._stamp())
                self._time_until = int(now * 1000 + 1) / 1000  # the header is the same until the next millisecond
            if key is None:
                headers = [*self._static, (self._id, id_.encode()), self._time_header]
            else:
                headers = [*self._static, (self._id, id_.encode()), self._time_header, (self._partition_key, key)]
        else:
            headers = []
        return Outgoing(self._only or self._place(key), body, self._media, headers, key, id_)  # by position: quicker

    def message(self, value: object, options: PublishOptions, parent: Message[Any] | None) -> Outgoing:
        """A message with options, or one that is published while another is handled."""
        known = PublishOptions.__optional_keys__
        for name in options:
            if name not in known:
                raise ConfigurationError(f"publish: unknown option {name!r}{nearest(name, known)}")
        try:
            body: bytes | None = self._encode(value)
        except ENCODE_ERRORS as error:
            raise encode_failed(error, self.topic.codec, self.topic.schema) from error
        chosen = options.get("key")
        key = self._encode_key(chosen, "publish: key is") if chosen is not None else None
        if key is None and self._key is not None and value is not None:
            key = self._key_of(value)
        body = self._check_body(value, body, key)
        if options.get("priority") is not None:
            raise Unsupported("publish: priority= has no machinery yet; publish to a topic of its own instead")
        now = self._clock.now()
        delay, expiry = options.get("delay"), options.get("expires")
        due = None if delay is None else instant(delay, now)
        expires = None if expiry is None else instant(expiry, now)
        if due is not None and due <= now:
            due = None
        id_ = options.get("id")
        if id_ is None:
            id_ = self._ids.next()
        given = options.get("headers") or {}
        wrong = type(id_) is not str or not id_
        if wrong or not isinstance(given, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            what = f"id is {id_!r}, expected a text that is not empty" if wrong else "headers= expects a mapping"
            raise ConfigurationError(f"publish: {what}")
        headers = self._headers(id_, key, given, expires, parent)
        return Outgoing(
            topic=self._only or self._place(key), body=body, media=self._media, headers=headers, key=key,
            dedup=id_, due=due, expires=expires, marked=expires is not None,
        )  # fmt: skip

    def target(self, out: Outgoing) -> str:
        """The logical name of where the message goes: the topic, or of a partitioned topic the partition."""
        places = self.plan.physical
        return self.topic.name if len(places) == 1 else partition(self.topic.name, places.index(out.topic))

    def chain(self, out: Outgoing) -> tuple[str, bytes] | None:
        """What must arrive in call order with this message: its key, or all of a totally ordered topic."""
        if not self.ordered:
            return None
        if self._total:
            return (out.topic, b"")
        return None if out.key is None else (out.topic, out.key)

    def _headers(
        self, id_: str, key: bytes | None, given: Mapping[str, str], expires: float | None, parent: Message[Any] | None
    ) -> Headers:
        binding = self._binding
        headers: Headers = []
        if self._events:
            headers = [*self._static, (self._id, attribute("id", id_)), (self._time, self._stamp())]
            if key is not None:
                headers.append((self._partition_key, key))
        if expires is not None:
            headers.append((binding + "expirytime", rfc3339(expires)))
        if parent is not None and self._events:
            headers.append((binding + "correlationid", attribute("correlationid", parent.correlation_id)))
            headers.append((binding + "causationid", attribute("causationid", parent.id)))
            attributes = parent._attributes()
            for name in ("traceparent", "tracestate"):
                value = getattr(attributes, name)
                if value is not None:
                    headers.append((binding + name, attribute(name, value)))
        if given:
            headers += user_headers(given, self._capabilities.headers, binding)
        check_limits(headers, self._capabilities.headers)
        return headers

    def _key_of(self, value: object) -> bytes:
        assert self._key is not None
        try:
            key = self._key(value)
        except Exception as error:
            raise CodecError(
                f"topic {self.topic.name!r}: key= failed for the value: {type(error).__name__}: {error}"
            ) from error
        return self._encode_key(key, f"topic {self.topic.name!r}: key= returned")

    @staticmethod
    def _encode_key(key: object, where: str) -> bytes:
        if not isinstance(key, str):
            raise CodecError(f"{where} {type(key).__name__}, expected str")
        return attribute("the key", key)

    def _check_body(self, value: object, body: bytes | None, key: bytes | None) -> bytes | None:
        name = self.topic.name
        if value is None and self.topic.schema is not Any and admits_none(self.topic.schema):
            if not self._capabilities.tombstones:
                raise Unsupported(
                    f"topic {name!r}: None is a tombstone, which {self._scheme}:// does not have; publish a value"
                )
            if key is None:
                raise Refused(f"topic {name!r}: a tombstone needs a key=")
            return None
        if body is not None and len(body) > self._body_limit:
            raise Refused(
                f"topic {name!r}: the body has {len(body)} bytes, {self._scheme}:// takes up to {self._body_limit}; "
                "store it elsewhere and publish a reference"
            )
        return body

    def _place(self, key: bytes | None) -> str:
        if key is None:
            return self.plan.place(None, self._turn())
        place = self._places.get(key)
        if place is None:
            place = self.plan.place(key, 0)
            if len(self._places) < KEYS_REMEMBERED:
                self._places[key] = place
        return place
