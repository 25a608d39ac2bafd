"""Verdicts to the server: one script a topic for what is handled, one for the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from redis.exceptions import ResponseError

from switchgear.driver import Delivery, Settlement, Subscription, Verdict
from switchgear.errors import Lost, MaybeSent, TransportError, Unavailable

from . import scripts
from .scripts import Script
from .stream import Stream, entry_id
from .wire import Command, Wire, call, refusal, vanished

ACK, EXTEND, RETRY = Verdict.ACK, Verdict.EXTEND, Verdict.RETRY


class Settler:
    """Settles for one member. `trimmed` counts, by topic, what was gone before it was handled."""

    def __init__(self, wire: Wire, subscription: Subscription, streams: Mapping[str, Stream]) -> None:
        self.trimmed: dict[str, int] = {}
        self.watched: set[tuple[str, bytes]] | None = None
        """Filled with what is settled while a page of pending entries is on its way."""
        self._wire, self._streams = wire, streams
        self._group, self._member, self._lease = subscription.group or "", subscription.consumer, subscription.lease

    async def settle(self, batch: Sequence[Settlement]) -> Sequence[TransportError | None]:
        """One outcome an item. Raises Unavailable: settle again."""
        outcomes: list[TransportError | None] = [None] * len(batch)
        commands: list[Command] = []
        asked: list[Sequence[int]] = []
        for (script, topic), places in _sorted(batch).items():
            stream = self._streams[topic]
            if stream.fence:
                places = self._current(stream, batch, places, outcomes)
            if not places:
                continue
            second = scripts.lapsed(topic, self._group, self._member) if script is scripts.ACK else stream.waiting
            arguments: list[Any]
            if script is not scripts.ACK:
                arguments = [word for n in places for word in self._words(batch[n])]
            elif len(places) == len(batch):
                tokens: list[Any] = [item.delivery.token for item in batch]
                arguments = [token[1] if isinstance(token, tuple) else token for token in tokens]
            else:
                arguments = [entry_id(batch[n].delivery) for n in places]
            keys = (topic, second, stream.row)
            commands.append(call(script, keys, self._group, self._member, stream.revision or "", *arguments))
            asked.append(places)
        if not commands:
            return outcomes
        if self.watched is not None:
            self.watched.update((item.delivery.topic, entry_id(item.delivery)) for item in batch)
        try:
            replies = await self._wire.ask(commands, self._wire.soon())
        except MaybeSent as lost:
            raise Unavailable(str(lost)) from lost.__cause__
        for places, command, reply in zip(asked, commands, replies, strict=True):
            self._judge(batch, places, command, reply, outcomes)
        return outcomes

    def _current(
        self, stream: Stream, batch: Sequence[Settlement], places: Sequence[int],
        outcomes: list[TransportError | None],
    ) -> Sequence[int]:  # fmt: skip
        """Those that were handed out under the lease that we hold; the others are lost."""
        stale = [n for n in places if batch[n].delivery.fence != stream.revision]
        for n in stale:
            outcomes[n] = self._gone(batch[n].delivery)
        return [n for n in places if outcomes[n] is None] if stale else places

    def _words(self, item: Settlement) -> tuple[bytes, str, int]:
        id = entry_id(item.delivery)
        if item.verdict is EXTEND:  # the reaper takes what was idle for a lease
            return id, "extend", int(max(self._lease - item.seconds, 0.0) * 1000)
        if item.verdict is RETRY:
            return id, "retry", math.ceil(item.seconds * 1000)
        return id, "release", 0

    def _judge(
        self, batch: Sequence[Settlement], places: Sequence[int], command: Command, reply: Any,
        outcomes: list[TransportError | None],
    ) -> None:  # fmt: skip
        if isinstance(reply, ResponseError):
            for n in places:
                gone = vanished(reply)
                outcomes[n] = self._gone(batch[n].delivery) if gone else refusal(self._wire.address, reply)
        elif command[1] == scripts.ACK.sha:
            for i in range(len(places)) if reply == -1 else reply:
                outcomes[places[i]] = self._gone(batch[places[i]].delivery)
        else:
            for n, done in zip(places, reply, strict=True):
                if isinstance(done, bytes):
                    outcomes[n] = refusal(self._wire.address, done.decode(errors="replace"))
                elif done != 1:
                    outcomes[n] = self._gone(batch[n].delivery, trimmed=done == 2)

    def _gone(self, delivery: Delivery, *, trimmed: bool = False) -> Lost:
        where = f"{self._wire.address}: entry {entry_id(delivery).decode()} of {delivery.topic!r}"
        if trimmed:
            self.trimmed[delivery.topic] = self.trimmed.get(delivery.topic, 0) + 1
            return Lost(f"{where} was trimmed while it was handled: it cannot be delivered again")
        return Lost(f"{where} is no longer this member's")


def returns(batch: Sequence[Settlement]) -> float:
    """Seconds to the first delivery that comes back; infinite when none does."""
    waits = [0.0 if s.verdict is not RETRY else s.seconds for s in batch if s.verdict not in (ACK, EXTEND)]
    return min(waits, default=math.inf)


def _sorted(batch: Sequence[Settlement]) -> Mapping[tuple[Script, str], Sequence[int]]:
    """Places by script and topic."""
    ack = ACK
    topic = batch[0].delivery.topic if batch else ""
    if all(s.verdict is ack and s.delivery.topic == topic for s in batch):  # nearly always
        return {(scripts.ACK, topic): range(len(batch))} if batch else {}
    out: dict[tuple[Script, str], list[int]] = {}
    for n, s in enumerate(batch):
        script = scripts.ACK if s.verdict is ack else scripts.GIVE
        out.setdefault((script, s.delivery.topic), []).append(n)
    return out
