"""Messages of every kind: what is sent is what arrives."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from switchgear import Message, Topic
from switchgear.driver import Capabilities, Outgoing
from switchgear_conformance.context import Context
from switchgear_conformance.member import PATIENCE, out

from .play import Program, program, step

ODD = "aZ0 \"'\\%=,;:{}[]<>&#~ž漢😀\u00a0\u2028\ufeff\u202e"
"""Letters at which some text protocol stumbles, none of them a control character."""
TOKEN = string.ascii_letters + string.digits + "!#$%&'*+.^_`|~-"
"""Of header names: RFC 9110, section 5.6.2."""

Sent = tuple[tuple[str, bytes], ...]


def envelopes(c: Context) -> SearchStrategy[Program]:
    """Programs that send messages of any kind within the limits that the driver declares."""
    bodies: SearchStrategy[bytes | None] = st.binary(max_size=40) | st.sampled_from(
        [b"", b"\0", b"null", b"x" * min(70_000, c.capabilities.body)]
    )
    if c.capabilities.tombstones:
        bodies = bodies | st.none()
    send = step(
        "send", bodies, st.none() | st.binary(max_size=20),
        st.sampled_from([None, b"text/plain", b"application/json", b'a/b;c="d e"']), _headers(c.capabilities),
        st.booleans(),
    )  # fmt: skip
    return program(send, first=step("open"), size=12)


def _headers(offered: Capabilities) -> SearchStrategy[Sent]:
    limits = offered.headers
    names = st.sampled_from(["x", "X", "ce-id", "x" * min(60, limits.name)]) | st.text(TOKEN, min_size=1, max_size=9)
    texts = st.text(ODD, max_size=12).map(str.encode)
    values = texts if limits.text else texts | st.binary(max_size=20) | st.just(b"v" * min(3000, limits.value))
    found = st.lists(st.tuples(names, values), max_size=min(8, limits.count)).map(tuple)
    return found.filter(
        lambda headers: (
            sum(len(n) + len(v) for n, v in headers) <= limits.total
            and all(len(n) <= limits.name and len(v) <= limits.value for n, v in headers)
        )
    )


class Envelopes:
    """A sender and a member on the bare driver."""

    def __init__(self, context: Context) -> None:
        self.c = context
        self.sent: list[Outgoing] = []

    async def open(self) -> None:
        """Join, so that whatever is sent comes."""
        self.transport = await self.c.open()
        self.member = await self.c.join(self.transport, self.c.name())

    async def send(
        self, body: bytes | None, key: bytes | None, media: bytes | None, headers: Sent, marked: bool
    ) -> None:
        """A message to be sent, with all others in as few batches as the driver takes; a tombstone has a key."""
        key = b"gone" if body is None and key is None else key
        binding = self.transport.capabilities.binding  # a driver may go by the headers' names
        acted_on = [(f"{binding}sgattempt", b"1")] if marked else []
        self.sent.append(out(self.c.name(), body, key, media=media, headers=[*headers, *acted_on], marked=marked))

    async def finish(self) -> None:
        """Send, receive, compare."""
        await self.c.stored(self.transport, *self.sent)
        m = self.member
        found = await m.drain(len(self.sent))
        came = Counter((d.body, d.key, d.media, tuple(m.source.headers(d))) for d in found)
        gone = Counter((o.body, o.key, o.media, tuple(o.headers)) for o in self.sent)
        assert came == gone, f"sent: {_brief(gone - came)}; arrived: {_brief(came - gone)} (body, key, media, headers)"
        unmarked = {(d.body, tuple(m.source.headers(d))) for d in found if not d.marked}
        wrong = [o for o in self.sent if o.marked and (o.body, tuple(o.headers)) in unmarked]
        twins = {(o.body, tuple(o.headers)) for o in self.sent if not o.marked}
        assert all((o.body, tuple(o.headers)) in twins for o in wrong), "what was sent marked arrived with marked=False"
        await m.close()


def _brief(counted: Counter[Any]) -> str:
    return ", ".join(repr(one)[:200] for one in list(counted)[:2]) or "nothing"


# ---- through Bus


def values(c: Context) -> SearchStrategy[Program]:
    """Programs that publish values of any kind, with any key, headers and id that are allowed."""
    text = st.text(ODD, max_size=12)
    plain = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
    value = st.recursive(
        plain | text, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4), max_leaves=8
    ).filter(lambda value: value is not None)  # None alone is a tombstone
    limits = c.capabilities.headers
    names = st.text(TOKEN, min_size=1, max_size=9).map(lambda name: f"x-{name}")
    headers = st.dictionaries(names, text, max_size=max(min(5, limits.count - 10), 0)).map(lambda d: tuple(d.items()))
    publish = step("publish", value, st.none() | text, headers, st.none() | text, st.none() | st.floats(3600.0, 1e8))
    return program(publish, first=step("open"), size=12)


class Values:
    """A bus that publishes and handles."""

    def __init__(self, context: Context) -> None:
        self.c = context
        self.bus = context.bus()
        self.topic = Topic("orders", Any)
        self.log = context.log()
        self.sent: dict[str, dict[str, Any]] = {}

    async def open(self) -> None:
        """Serve."""

        @self.bus.subscribe(self.topic, group="group")
        async def handle(message: Message[Any]) -> None:
            self.log.add(message)

        await self.c.serve(self.bus)

    async def publish(
        self, value: Any, key: str | None, headers: tuple[tuple[str, str], ...], id: str | None, expires: float | None
    ) -> None:
        """Publish, with a number before the id, since an id is given once."""
        given: dict[str, Any] = {"headers": dict(headers)}
        given |= {} if key is None else {"key": key}
        given |= {} if id is None else {"id": f"{len(self.sent)}/{id}"}
        given |= {} if expires is None else {"expires": expires}
        began = self.c.now()
        name = await self.bus.publish(self.topic, value, **given)
        assert name not in self.sent, f"the id {name!r} was given twice"
        assert id is None or name == given["id"], f"published with the id {given['id']!r}, and {name!r} was returned"
        self.sent[name] = {**given, "value": value, "began": began, "ended": self.c.now()}

    async def finish(self) -> None:
        """All of it is handled, as it was published."""
        found: dict[str, Message[Any]] = {m.id: m for m in await self.log.reach(len(self.sent), within=PATIENCE)}
        assert set(found) == set(self.sent), f"ids handled: {sorted(found)[:5]}, published: {sorted(self.sent)[:5]}"
        for id, given in self.sent.items():
            self._compare(found[id], given)
        await self.bus.close()

    def _compare(self, m: Message[Any], given: Mapping[str, Any]) -> None:
        published = (given["value"], given.get("key"), given["headers"], "orders", "orders")
        handled = (m.body, m.key, dict(m.headers), m.topic, m.type)
        assert repr(handled) == repr(published), f"published: {published!r}, handled: {handled!r}"
        if (after := given.get("expires")) is None:
            assert m.expires is None
        else:
            assert m.expires is not None
            at = m.expires.timestamp()
            assert given["began"] + after - 0.01 <= at <= given["ended"] + after + 0.01, (
                "expires arrived as another time"
            )
