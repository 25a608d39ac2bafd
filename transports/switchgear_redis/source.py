"""One member of a group: reading, taking over, settling."""

# ruff: noqa: ARG002  (the signatures are the contract's)

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

from redis.exceptions import ResponseError

from switchgear.driver import Capabilities, Delivery, Fence, Headers, Revoked, Settlement, Subscription
from switchgear.errors import Lost, MaybeSent, Refused, TransportError, Unavailable

from . import entries, scripts
from .settling import Settler, returns
from .stream import LAST, Stream, entry_id, entry_time, start_ids
from .tuning import Settings
from .wire import Command, Wire, call, refusal, vanished

BLOCK = 1.0  # seconds that a read waits on the server
TRIM_EVERY = 5.0  # seconds
PAGE = 500  # entries that one script hands out or gives back
EMPTY_MEMBER = 600_000  # ms of silence after which a member that holds nothing is removed


class GroupSource:
    """Reads streams as one member of a group. `trimmed` counts, by topic, what was gone before it was handled."""

    def __init__(
        self, wire: Wire, settings: Settings, capabilities: Capabilities, subscription: Subscription, revoked: Revoked,
        left: Callable[[GroupSource], object],
    ) -> None:  # fmt: skip
        self.capabilities = capabilities
        self._wire, self._settings, self._subscription = wire, settings, subscription
        self._revoked, self._left = revoked, left
        self._group = subscription.group or ""
        self._member = subscription.consumer
        self._line = wire.line()
        self._streams: dict[str, Stream] = {}
        self._known: dict[str, Stream] = {}  # also those that were assigned before: settlements may still come
        self._settler = Settler(wire, subscription, self._known)
        self.trimmed = self._settler.trimmed
        self._alone = len(subscription.topics) == 1 and None in subscription.topics.values()
        self._time = asyncio.get_running_loop().time
        self._tend_at = self._trim_at = self._due_at = self._touch_at = 0.0
        self._turn = 0
        self._blocked_until = 0.0  # 0: no read is blocking
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = asyncio.Event()

    # ---- what is read -----------------------------------------------------------------------------------------------

    async def assign(self, topics: Mapping[str, Fence | None]) -> None:
        """Read these from now on; a new lease takes over first what is pending. Creates what is missing."""
        added = [name for name in topics if name not in self._known]
        lasts = dict(zip(added, await self._create(added), strict=True))
        if set(topics) - set(self._subscription.topics):
            self._alone = False
        streams: dict[str, Stream] = {}
        for name, fence in topics.items():
            old = self._known.get(name)
            if old is None or old.fence != fence:
                last = old.last if old else lasts[name]
                old = self._known[name] = Stream(name, self._group, fence, last)
            streams[name] = old
        self._streams = streams
        await self._unblock()

    async def _create(self, topics: Sequence[str], at: Mapping[str, str] | None = None) -> list[str]:
        """Make the groups that are missing, and return the ids after which they begin."""
        wire = self._wire
        if not topics:
            return []
        if at is None:
            start = await start_ids(wire, topics, self._subscription.start)
        else:
            start = [at[name] for name in topics]
        made = [("XGROUP", "CREATE", name, self._group, id, "MKSTREAM") for name, id in zip(topics, start, strict=True)]
        lease = int(self._subscription.lease * 1000)
        told = [("HSET", scripts.leases(name, self._group), self._member, lease) for name in topics]
        # seen by others, a `seek` for one, before it has read anything
        joined = [("XGROUP", "CREATECONSUMER", name, self._group, self._member) for name in topics]
        for reply in await wire.ask([*made, *told, *joined], wire.soon()):
            if isinstance(reply, ResponseError) and "BUSYGROUP" not in str(reply):
                raise refusal(wire.address, reply) from reply
        return start

    # ---- receiving --------------------------------------------------------------------------------------------------

    async def receive(self, limit: int, held: Collection[str] = ()) -> Sequence[Delivery]:
        """What dead members left, what is due, what is new; waits about a second.

        Raises Unavailable, and then reads back what this member holds; Lost when the group had vanished.
        """
        if self._closed.is_set():
            await asyncio.sleep(0)  # whoever calls on must not starve the loop
            return []
        self._idle.clear()
        try:
            out = await self._receive(limit, held)
        except (Unavailable, MaybeSent) as error:
            if self._closed.is_set():
                return []
            for stream in self._streams.values():
                stream.cursor = "-"  # a reply may have been lost: entries that are ours and that we never saw
            await self._line.close()
            raise Unavailable(str(error)) from error.__cause__
        finally:
            self._idle.set()
        return [] if self._closed.is_set() else out

    async def _receive(self, limit: int, held: Collection[str]) -> list[Delivery]:
        now = self._time()
        if limit <= 0:
            await self._touch(now)
            return []
        if now >= self._tend_at and (out := await self._tend(limit)):
            return out
        streams = [s for s in self._streams.values() if not s.lost and not (s.fence and s.lane in held)]
        late = [s for s in streams if s.cursor is not None]
        if late:
            out = list[Delivery]()
            for stream in late:
                if len(out) < limit:
                    await self._catch_up(stream, limit - len(out), out)
            if out:
                return out
            streams = [s for s in streams if s.cursor is None and not s.lost]
        if now >= self._due_at and (out := await self._due(streams, limit)):
            return out
        if not streams:
            await asyncio.sleep(0.1)
            return []
        if len(streams) > 1:  # in turn, since one read takes as many of each
            self._turn = (self._turn + 1) % len(streams)
            streams = (streams[self._turn :] + streams[: self._turn])[:limit]
        return await self._read(streams, limit // len(streams))

    async def _read(self, streams: Sequence[Stream], count: int) -> list[Delivery]:
        now = self._time()
        wait = max(min(now + BLOCK, self._due_at, self._tend_at) - now, 0.001)
        reading = {s.name: s for s in streams}
        commands: list[Command] = [
            (
                "XREADGROUP", "GROUP", self._group, self._member, "COUNT", count, "BLOCK", math.ceil(wait * 1000),
                "STREAMS", *reading, *[">"] * len(reading),
            )
        ]  # fmt: skip
        leased = [s for s in streams if s.fence]
        if leased:
            keys = [key for s in leased for key in (s.name, s.row)]
            commands.append(call(scripts.GUARD, keys, self._group, self._member, *[s.revision for s in leased]))
        self._blocked_until = now + wait
        try:
            replies = await self._line.ask(commands, now + wait + self._settings.tuning.timeout)
        finally:
            self._blocked_until = 0.0
        for reply in replies:
            if isinstance(reply, ResponseError):
                await self._raise(reply)
        states = dict(zip((s.name for s in leased), replies[1], strict=True)) if leased else {}
        out: list[Delivery] = []
        for raw, found in replies[0] or ():
            name = raw.decode()
            stream = reading[name]
            if self._streams.get(name) is not stream or states.get(name, 1) != 1:
                continue  # assigned anew or taken away: what was read stays pending, for whoever holds the lease
            stream.last = found[-1][0].decode()
            until = math.inf if stream.fence else now + self._subscription.lease
            entries.deliver(
                out, name, stream.lane, found, alone=self._alone, until=until, fence=stream.revision
            )  # fmt: skip
        for stream in leased:
            if states[stream.name] == 0:
                stream.cursor = "-"  # a member that lost the lease had read on: its entries first, all in order
            elif states[stream.name] < 0:
                await self._lose(stream)
        return out

    async def _raise(self, reply: ResponseError) -> None:
        if not vanished(reply):
            raise refusal(self._wire.address, reply) from reply
        streams = list(self._streams.values())
        await self._create([s.name for s in streams], {s.name: s.last for s in streams})
        names = ", ".join(s.name for s in streams)
        raise Lost(
            f"{self._wire.address}: group {self._group!r} of {names} had vanished (a flush, DEL or XGROUP DESTROY) and "
            "was made again where this member had read to; what was unsettled is lost"
        ) from reply

    async def _lose(self, stream: Stream) -> None:
        if not stream.lost:
            stream.lost = True
            await self._revoked([stream.lane], True)

    async def _script(self, commands: Sequence[Command]) -> list[Any]:
        replies = await self._wire.ask(commands, self._wire.soon()) if commands else []
        for reply in replies:
            if isinstance(reply, ResponseError):
                await self._raise(reply)
        return replies

    def _take(self, stream: Stream, reply: Sequence[Any], until: float, out: list[Delivery]) -> None:
        """Entries of a script that hands out pending ones."""
        if reply[1]:
            self.trimmed[stream.name] = self.trimmed.get(stream.name, 0) + reply[1]
        settled = self._settler.watched or ()
        until = math.inf if stream.fence else until
        for id, fields, count in reply[0]:
            if (stream.name, id) not in settled:
                token = id if self._alone else (stream.name, id)
                out.append(
                    entries.one(stream.name, stream.lane, token, fields, count, until, stream.revision)
                )  # fmt: skip

    async def _catch_up(self, stream: Stream, limit: int, out: list[Delivery]) -> None:
        """A page of what is pending: for this member, or where it holds the lease for anybody."""
        until = self._time() + self._subscription.lease
        count = min(limit, PAGE)
        if stream.fence:
            keys = (stream.name, stream.waiting, stream.row)
            command = call(
                scripts.TAKEOVER, keys, self._group, self._member, stream.cursor, count, stream.revision
            )  # fmt: skip
        else:
            command = call(scripts.OWN, (stream.name,), self._group, self._member, stream.cursor, count)
        self._settler.watched = set()
        try:
            reply = (await self._script([command]))[0]
            if reply is None:
                await self._lose(stream)
                return
            self._take(stream, reply, until, out)
        finally:
            self._settler.watched = None
        stream.cursor = f"({reply[2].decode()}" if reply[2] else None

    async def _due(self, streams: Sequence[Stream], limit: int) -> list[Delivery]:
        """What waited for its time."""
        now = self._time()
        self._due_at = now + BLOCK
        count = min(max(limit // max(len(streams), 1), 1), PAGE)
        out: list[Delivery] = []
        commands = [
            call(scripts.DUE, (s.name, s.waiting, s.row), self._group, self._member, count, s.revision or "")
            for s in streams
        ]
        for stream, reply in zip(streams, await self._script(commands), strict=True):
            self._take(stream, reply, now + self._subscription.lease, out)
            if reply[2] >= 0:
                self._due_at = min(self._due_at, self._time() + reply[2] / 1e6)
        return out

    async def _tend(self, limit: int) -> list[Delivery]:
        """Take over from dead members, and now and then trim."""
        now, lease = self._time(), self._subscription.lease
        self._tend_at = now + min(max(lease / 4, 0.05), BLOCK)
        streams = [s for s in self._streams.values() if not s.lost]
        count = min(max(limit // max(len(streams), 1), 1), PAGE)
        commands = [
            call(
                scripts.REAP, (s.name, s.waiting, s.leases), self._group, self._member, int(lease * 1000),
                0 if s.fence else count, scripts.lapsed(s.name, self._group), EMPTY_MEMBER,
            )
            for s in streams
        ]  # fmt: skip
        if trim := now >= self._trim_at:
            self._trim_at = now + TRIM_EVERY
            commands += [call(scripts.TRIM, (s.name,), self._settings.tuning.keep) for s in streams]
        out: list[Delivery] = []
        replies = await self._script(commands)
        for stream, reply in zip(streams, replies, strict=False):
            self._take(stream, reply, now + lease, out)
            if len(reply[0]) >= count:
                self._tend_at = 0.0  # there may be more
        for stream, lost in zip(streams, replies[len(streams) :] if trim else (), strict=False):
            if lost:
                self.trimmed[stream.name] = self.trimmed.get(stream.name, 0) + lost
        return out

    async def _touch(self, now: float) -> None:
        """Without room to read: a read of nothing, by which others see that this member is alive."""
        if now < self._touch_at:
            await asyncio.sleep(0)  # whoever calls on must not starve the loop
            return
        self._touch_at = now + BLOCK
        nothing = f"{LAST}-0"  # not the very last id: inside Redis that one means ">"
        touch = ("XREADGROUP", "GROUP", self._group, self._member, "COUNT", 1, "STREAMS")
        await self._script([(*touch, name, nothing) for name in self._streams])

    async def settle(self, batch: Sequence[Settlement]) -> Sequence[TransportError | None]:
        """Carry out verdicts. Raises Unavailable: settle again."""
        outcomes = await self._settler.settle(batch)
        if (wait := returns(batch)) < math.inf:
            self._due_at = min(self._due_at, self._time() + wait)
            if self._blocked_until > self._due_at:
                await self._unblock()
        return outcomes

    # ---- what a delivery says ---------------------------------------------------------------------------------------

    def note(self, lane: str) -> str:
        """Nothing: settling is individual."""
        return ""

    def headers(self, delivery: Delivery) -> Headers:
        """From the packed field, or the fields of a foreign entry."""
        return entries.headers(delivery)

    def position(self, delivery: Delivery) -> str:
        """The entry's id."""
        return entry_id(delivery).decode()

    def time(self, delivery: Delivery) -> float:
        """The entry's id begins with the server's milliseconds."""
        return entry_time(delivery)

    # ---- leaving ----------------------------------------------------------------------------------------------------

    async def _unblock(self, deadline: float | None = None) -> None:
        """End a blocking read now; a user without the right to may go on, since it ends by itself within a second."""
        if self._line.id is not None and self._blocked_until:
            with suppress(TransportError):
                await self._wire.one("CLIENT", "UNBLOCK", self._line.id, deadline=deadline)

    async def close(self) -> None:
        """Give back what is unsettled and leave; bounded by the time that one answer may take, and a second."""
        if self._closed.is_set():
            return
        self._closed.set()
        deadline = self._wire.soon()
        try:
            await self._unblock(deadline)
            with suppress(TimeoutError):
                async with asyncio.timeout(BLOCK):
                    await self._idle.wait()
            for stream in self._known.values():
                keys, leased = (stream.name, stream.waiting, stream.leases), "1" if stream.fence else ""
                command = call(scripts.LEAVE, keys, self._group, self._member, PAGE, leased)
                with suppress(Refused):
                    while await self._wire.one(*command, deadline=deadline):
                        pass
        except TransportError:
            pass  # unreachable: the others take over after the lease
        finally:
            await self._line.close()
            self._left(self)
