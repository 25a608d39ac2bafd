"""The driver of `redis://`: connecting, sending, subscribing."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from redis.exceptions import ResponseError

from switchgear.driver import (
    Capabilities,
    Delivery,
    Drift,
    Headers,
    Outgoing,
    Resource,
    Revoked,
    Row,
    Start,
    Subscription,
    TopicInfo,
)
from switchgear.errors import MaybeSent, NotSent, Refused, TransportError, Unavailable, Unsupported

from . import admin, entries, scripts
from .broadcast import BroadcastSource
from .probing import probe
from .source import GroupSource
from .tuning import Settings
from .wire import Command, Wire, call, refusal

BODY = 16 << 20  # bytes: Redis takes more, and would be held up by it
CAPABILITIES = Capabilities(
    sends=2,
    send_order=True,
    batch=100,
    batch_bytes=32 << 20,
    body=BODY,
    groups=True,
    broadcast=True,
    persistent=True,
    ack_durable=True,
    starts=frozenset({"new", "earliest", "time"}),
    retry_delay=math.inf,
    delay=math.inf,
    counting="deliveries",
    lease_cap=math.inf,
    fencing=True,
)
MARGIN = 0.25  # seconds between the end of WAIT on the server and the caller's deadline


class RedisTransport:
    """A Redis server. Also Registry, Scheduling, Seekable, Lagged, Browsable, Provisioner."""

    def __init__(self, settings: Settings) -> None:
        self.capabilities = CAPABILITIES
        self._settings = settings
        self._open: Wire | None = None
        self._sources: set[GroupSource | BroadcastSource] = set()

    @property
    def _wire(self) -> Wire:
        if self._open is None:
            raise Unavailable(f"{self._settings.address} is not connected")
        return self._open

    async def connect(self, deadline: float) -> None:
        """Reach the server, see what it keeps, load the scripts.

        Raises Unavailable, Refused (password, rights, a read-only replica) or ConfigurationError (TLS, database).
        """
        if self._open is None:
            self._open = Wire(self._settings)
        try:
            self.capabilities = await probe(self._open, self._settings, CAPABILITIES, deadline)
        except MaybeSent as error:
            raise Unavailable(str(error)) from error.__cause__

    async def send(self, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        """Store the batch with one script a topic; what is due later goes to the set of the delayed."""
        outcomes: list[TransportError | None] = [None] * len(batch)
        now = time.time()
        topics: dict[str, list[int]] = {}
        delayed: list[int] = []
        failed: set[tuple[str, bytes | None]] = set()
        for n, m in enumerate(batch):
            topic = m.topic
            if m.body is None or len(m.body) > BODY or (failed and (topic, m.key) in failed):
                outcomes[n] = self._unfit(m, failed)
            elif m.due is not None and m.due > now:
                delayed.append(n)
            elif topic in topics:
                topics[topic].append(n)
            else:
                topics[topic] = [n]
        commands: list[Command] = []
        asked: list[list[int]] = []
        for topic, places in topics.items():
            commands.append(self._store(topic, batch, places, outcomes))
            asked.append(places)
        if delayed:
            commands.append(self._delay(batch, delayed, outcomes))
            asked.append(delayed)
        if not commands:
            return outcomes
        wait = self._wait(deadline)
        if wait is not None:
            commands.append(wait)
        replies = await self._wire.ask(commands, deadline)
        for places, reply in zip(asked, replies, strict=False):
            self._judge(batch, places, reply, outcomes)
        if wait is not None:
            self._confirmed(replies[-1], outcomes)
        return outcomes

    def _unfit(self, m: Outgoing, failed: set[tuple[str, bytes | None]]) -> TransportError:
        at = f"{self._settings.address}: {m.topic!r}"
        if m.body is not None and len(m.body) <= BODY:
            return NotSent(f"{at}: not stored, since an earlier message of its key was not")
        if m.key is not None:
            failed.add((m.topic, m.key))
        if m.body is None:
            return Refused(f"{at}: there are no tombstones; send a body")
        return Refused(f"{at}: a body of {len(m.body)} bytes; at most {BODY} are taken")

    def _store(
        self, topic: str, batch: Sequence[Outgoing], places: list[int], outcomes: list[TransportError | None]
    ) -> Command:
        """The command for one topic; removes from `places` what can't be written."""
        maxlen = self._settings.tuning.maxlen
        if len(places) == 1 and maxlen is None:
            return self._add(topic, batch[places[0]], places, outcomes)
        messages = [batch[n] for n in places]
        keyed = sum(m.key is not None for m in messages)
        mixed = any(m.marked for m in messages) or 0 < keyed < len(messages)
        arguments: list[Any] = []
        pack = entries.pack
        for n, m in zip(tuple(places), messages, strict=True):
            try:
                packed = pack(m.headers)
            except UnicodeEncodeError:
                outcomes[n] = Refused(f"{self._settings.address}: {topic!r}: a header's name is no text")
                places.remove(n)
                continue
            if mixed:
                arguments += (m.body, packed, m.media or b"", m.key or b"", entries.kind(m))
            elif keyed:
                arguments += (m.body, packed, m.media or b"", m.key)
            else:
                arguments += (m.body, packed, m.media or b"")
        width = 5 if mixed else 4 if keyed else 3
        return call(scripts.SEND, (topic,), width, "" if maxlen is None else maxlen, *arguments)

    def _add(self, topic: str, m: Outgoing, places: list[int], outcomes: list[TransportError | None]) -> Command:
        """One message alone: the bare command, in the layout that the script writes."""
        try:
            packed = entries.pack(m.headers)
        except UnicodeEncodeError:
            outcomes[places.pop()] = Refused(f"{self._settings.address}: {topic!r}: a header's name is no text")
            return ("PING",)
        fields: Command = ("XADD", topic, "*", "b", m.body, "h", packed, "t", m.media or b"")
        if m.key is not None:
            fields += ("k", m.key)
        return (*fields, "m", "1") if m.marked else fields

    def _delay(self, batch: Sequence[Outgoing], places: list[int], outcomes: list[TransportError | None]) -> Command:
        arguments: list[Any] = []
        for n in tuple(places):
            m = batch[n]
            try:
                packed = entries.pack(m.headers)
            except UnicodeEncodeError:
                outcomes[n] = Refused(f"{self._settings.address}: {m.topic!r}: a header's name is no text")
                places.remove(n)
                continue
            token = m.dedup or secrets.token_hex(12)
            due = f"{(m.due or 0.0) * 1000:.3f}"
            arguments += (m.topic, token, due, m.body, packed, m.media or b"", m.key or b"", entries.kind(m))
        return call(scripts.DELAY, (admin.DELAYED, admin.DELAYED_MESSAGES), *arguments)

    def _judge(
        self, batch: Sequence[Outgoing], places: Sequence[int], reply: Any, outcomes: list[TransportError | None]
    ) -> None:
        at = self._settings.address
        if isinstance(reply, ResponseError):
            for n in places:
                outcomes[n] = refusal(at, reply)
            return
        if isinstance(reply, bytes):  # of one message its id, or a PONG where nothing was left to store
            return
        failed: Sequence[tuple[int, bytes]] = reply
        for i, said in failed:
            n = places[i]
            outcomes[n] = (
                refusal(at, said.decode(errors="replace"))
                if said
                else NotSent(f"{at}: {batch[n].topic!r}: not stored, since an earlier message of its key was not")
            )

    def _wait(self, deadline: float) -> Command | None:
        """The command that waits for replicas, as the URL asks."""
        left = max(int((deadline - asyncio.get_running_loop().time() - MARGIN) * 1000), 1)
        if self._settings.waitaof is not None:
            return ("WAITAOF", 1, self._settings.waitaof, left)
        return ("WAIT", self._settings.wait, left) if self._settings.wait else None

    def _confirmed(self, reply: Any, outcomes: list[TransportError | None]) -> None:
        """Too few replicas: the primary has the messages, so whether they last is not known."""
        s = self._settings
        error: TransportError | None = None
        if isinstance(reply, ResponseError):
            error = refusal(s.address, reply)
            error = MaybeSent(f"stored, but waiting for replicas failed: {error}")
        elif s.waitaof is not None and (reply[0] < 1 or reply[1] < s.waitaof):
            error = MaybeSent(
                f"{s.address}: stored, but on disk at {reply[0]} server and {reply[1]} replicas in time; "
                f"waitaof={s.waitaof} asks for this server and {s.waitaof}"
            )
        elif s.waitaof is None and reply < s.wait:
            error = MaybeSent(f"{s.address}: stored, but {reply} replicas had it in time; wait={s.wait} asks for more")
        if error is not None:
            outcomes[:] = [error if outcome is None else outcome for outcome in outcomes]

    async def subscribe(self, subscription: Subscription, revoked: Revoked) -> GroupSource | BroadcastSource:
        """Join, creating stream and group. Raises Unavailable, Refused, Unsupported for an order of several members."""
        source: GroupSource | BroadcastSource
        if subscription.group is None:
            source = BroadcastSource(
                self._wire, self._settings, self.capabilities, subscription, self._sources.discard
            )  # fmt: skip
        elif subscription.order > self.capabilities.order:
            raise Unsupported(
                f"{self._settings.address}: the members of a group of a stream share its entries in no order: "
                "subscribe with order NONE, under a lease"
            )
        else:
            source = GroupSource(
                self._wire, self._settings, self.capabilities, subscription, revoked, self._sources.discard
            )  # fmt: skip
        try:
            await source.assign(subscription.topics)
        except MaybeSent as error:
            raise Unavailable(str(error)) from error.__cause__
        self._sources.add(source)
        return source

    async def close(self) -> None:
        """Leave every group and close every connection."""
        await asyncio.gather(*(source.close() for source in list(self._sources)))
        wire, self._open = self._open, None
        if wire is not None:
            await wire.close()

    # ---- optional protocols: see `admin` ----------------------------------------------------------------------------

    async def read(self, prefix: str) -> Mapping[str, Row]:
        """Registry: live rows by prefix."""
        return await admin.read(self._wire, prefix)

    async def write(self, name: str, value: bytes | None, *, expect: int | None, ttl: float | None) -> int | None:
        """Registry: compare and set."""
        return await admin.write(self._wire, name, value, expect, ttl)

    async def promote(self, limit: int) -> float | None:
        """Scheduling: move what is due, by the server's clock."""
        return await admin.promote(self._wire, limit)

    async def cancel(self, topic: str, dedup: str) -> bool:
        """Scheduling: take back what is not due yet."""
        return await admin.cancel(self._wire, topic, dedup)

    async def seek(self, topic: str, group: str, to: Start | str) -> None:
        """Seekable: a position is an entry's id, which is the first to be delivered."""
        await admin.seek(self._wire, topic, group, to)

    async def lag(self, topics: Sequence[str], group: str) -> Mapping[str, int]:
        """Lagged: by topic; a topic that the group does not read is left out."""
        return await admin.lag(self._wire, topics, group)

    async def trimmed(self, topics: Sequence[str]) -> Mapping[str, int]:
        """How many messages of each topic were trimmed before they were handled, since the topic exists."""
        return await admin.trimmed(self._wire, topics)

    def browse(self, topic: str, start: Start, end: float | None) -> AsyncIterator[tuple[Delivery, Headers]]:
        """Browsable: what the stream keeps."""
        return admin.browse(self._wire, topic, start, end)

    async def provision(self, wanted: Sequence[Resource], apply: bool) -> Sequence[Drift]:
        """Provisioner: streams with their retention, groups with their start."""
        return await admin.provision(self._wire, wanted, apply)

    async def topics(self, prefix: str) -> Sequence[TopicInfo]:
        """Provisioner: the streams that are there."""
        return await admin.topics(self._wire, prefix)
