"""Giving a group messages once more: its dead letters, or a range of a topic; by its return address, to it alone.

Each dead letter is copied, the copy confirmed, and only then noted as done; so what ends a run in the middle repeats at
most the letters of one batch. The copy's token is made of where the letter lies: repeated by another run it is the same
send, while a message that fails once more, and is replayed once more, is another.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from . import names
from .driver import Lagged, Order, Outgoing, Provisioner, Registry, Resource
from .emulate.dead_letters import begin_emptying, parked_key
from .emulate.ledger import Ledger, Place, place_of
from .envelope import attribute, check_limits, with_attributes
from .errors import NotFound, Refused, TransportError, Unsupported
from .letters import Filter, Letter, browsable, browse, envelope_of, position, registry_of
from .plans import Plan
from .router import as_topic

if TYPE_CHECKING:
    from .bus import Bus
    from .core import Core

BATCH = 100  # copies on their way at once, which a run that is killed may repeat
SEND = 30.0  # seconds for a copy to be stored
JOIN = 5.0  # seconds for running members to begin to read their return address: they look every two
LEAST = 10.0  # seconds for which a parked key is emptied though more of it arrives
LOOK = 0.05  # seconds between looks at what a group has not handled yet

Progress = Callable[[int, int], object]
"""Told how many messages were looked at since the last call, and how many of these were taken."""


@dataclass
class Summary:
    """What a run did."""

    taken: int = 0
    """Letters replayed or dropped; messages copied."""
    left: int = 0
    """Letters that the filter takes, but that belong to parked keys, which go as a whole."""
    freed: list[bytes] = field(default_factory=list[bytes])
    """Keys that are parked no more."""
    kept: dict[bytes, str] = field(default_factory=dict[bytes, str])
    """Keys that stay parked, and why."""


def _ignore(_: object, __: object = None) -> None:
    """Nobody is told."""


async def replay(
    bus: Bus, grave: str, group: str, only: Filter, *, wait: float = 30.0, progress: Progress = _ignore,
    waiting: Callable[[str], object] = _ignore,
) -> Summary:  # fmt: skip
    """Copy the dead letters of `group` in the topic `grave` (logical) to its return address, in stored order.

    A parked key is freed once all of it has been handled, for which it waits up to `wait` seconds. Raises NotFound,
    Unsupported with the alternative, Refused while another run works on the topic or members do not read their return
    address, TransportError; what was confirmed before is done.
    """
    async with _working(bus, grave, waiting) as ledger:
        return await _Run(bus, grave, group, only, ledger, wait, progress, copies=True).all()


async def drop(
    bus: Bus, grave: str, group: str, only: Filter, *, progress: Progress = _ignore,
    waiting: Callable[[str], object] = _ignore,
) -> Summary:  # fmt: skip
    """Give up the dead letters of `group` in the topic `grave`, and free their parked keys. Raises as `replay`."""
    async with _working(bus, grave, waiting) as ledger:
        return await _Run(bus, grave, group, only, ledger, 0.0, progress, copies=False).all()


@asynccontextmanager
async def _working(bus: Bus, grave: str, waiting: Callable[[str], object]) -> AsyncGenerator[Ledger]:
    core = bus._running()
    ledger = Ledger(registry_of(bus), core.physical(names.ledger_row(grave)), core.clock, grave)
    await ledger.claim(waiting)
    try:
        yield ledger
    finally:
        try:
            await ledger.release()
        except TransportError as error:
            waiting(f"the claim ends by itself: {error}")


class _Run:
    """One replay or drop, while the ledger is claimed."""

    def __init__(
        self, bus: Bus, grave: str, group: str, only: Filter, ledger: Ledger, wait: float, progress: Progress,
        *, copies: bool,
    ) -> None:  # fmt: skip
        self._bus, self._core = bus, bus._running()
        self._grave, self._group, self._only, self._ledger = grave, group, only, ledger
        self._wait, self._progress, self._copies = wait, progress, copies
        self._registry = registry_of(bus)
        self._summary = Summary()
        self._emptying: dict[bytes, str] = {}
        """Parked keys of which letters were taken, and their topics."""
        self._batch: list[tuple[Letter, Place | None]] = []
        self._returns: dict[str, str] = {}
        self._parked: dict[str, frozenset[bytes]] = {}

    async def all(self) -> Summary:
        await self._go(self._only)
        if self._only.whole_keys:
            await self._left_over()
        for key, topic in self._emptying.items():
            why = await self._free(key, topic)
            if why:
                self._summary.kept[key] = why
            else:
                self._summary.freed.append(key)
        return self._summary

    async def _left_over(self) -> None:
        """Parked keys of which no letter is left: an earlier run did not wait until all was handled."""
        owner = names.owner(self._grave)
        for topic in {*self._parked, *([owner[0]] if owner is not None else [])}:
            for key in await self._parked_of(topic):
                meant = self._only.key is None or key.decode("utf-8", "backslashreplace") == self._only.key
                if meant and key not in self._emptying:
                    await self._begin(topic, key)

    async def _begin(self, topic: str, key: bytes) -> None:
        self._emptying[key] = topic
        if self._copies:
            await self._address(topic)
        await begin_emptying(self._registry, self._row(topic, key), key)

    async def _go(self, only: Filter, chain: tuple[str, bytes] | None = None) -> int:
        """One pass over the topic, or over what it holds of one parked key; the number of letters taken."""
        before: dict[str, Place] = {}
        done, exact, taken, looked = self._ledger.done, only.until is None, 0, 0
        async for letter in browse(self._bus, self._grave, only.since, only.until):
            lane, place = letter.delivery.lane, place_of(letter.delivery)
            after = before.get(lane)
            if after is None and only.since is None and exact:
                done.forget_before(lane, place)
            before[lane] = place
            looked += 1
            if done.covers(lane, place):
                done.add(lane, place, after if exact else None)
            elif letter.group == self._group and await self._takes(letter, only, chain):
                taken += 1
                self._batch.append((letter, after if exact else None))
            if len(self._batch) >= BATCH or looked >= 1000:
                self._progress(looked, await self._finish())
                looked = 0
        self._progress(looked, await self._finish())
        return taken

    async def _takes(self, letter: Letter, only: Filter, chain: tuple[str, bytes] | None) -> bool:
        """Whether it is to be done; of a parked key everything is, or nothing."""
        parked = await self._parked_of(letter.source)
        key = b"" if b"" in parked else letter.delivery.key
        if chain is not None:
            return (letter.source, key) == chain
        if not only.takes(letter):
            return False
        if key is None or key not in parked:
            return True
        if not only.whole_keys:
            self._summary.left += 1
            return False
        if key not in self._emptying:
            await self._begin(letter.source, key)
        return True

    async def _parked_of(self, topic: str) -> frozenset[bytes]:
        if topic not in self._parked:
            rows = await self._registry.read(self._core.physical("") + names.parked_prefix(topic, self._group))
            self._parked[topic] = frozenset(parked_key(row.value)[0] for row in rows.values())
        return self._parked[topic]

    def _row(self, topic: str, key: bytes) -> str:
        return self._core.physical("") + names.parked_row(topic, self._group, key)

    async def _finish(self) -> int:
        """Copy what was gathered, and note what was stored. Raises the first failure, after noting the rest."""
        batch, self._batch = self._batch, []
        if not batch:
            await self._ledger.renew()
            return 0
        failed: BaseException | None = None
        stored: Sequence[BaseException | None] = [None] * len(batch)
        if self._copies:
            for topic in {letter.source for letter, _ in batch}:
                await self._address(topic)
            stored = await asyncio.gather(*(self._send(letter) for letter, _ in batch), return_exceptions=True)
        count = 0
        for (letter, after), error in zip(batch, stored, strict=True):
            if error is None:
                self._ledger.done.add(letter.delivery.lane, place_of(letter.delivery), after)
                count += 1
            elif failed is None:
                failed = error
        await self._ledger.save()
        self._summary.taken += count
        if failed is not None:
            raise failed
        return count

    async def _send(self, letter: Letter) -> None:
        address = self._returns[letter.source]
        run = position(letter.delivery)
        out = copy(self._core, letter, letter.source, self._group, address, f"{letter.id}/replay/{self._grave}@{run}")
        await self._core.emit(out, SEND, None if out.key is None else (out.topic, out.key))

    async def _address(self, topic: str) -> None:
        if topic not in self._returns:
            self._returns[topic] = await address(self._core, topic, self._group)

    async def _free(self, key: bytes, topic: str) -> str:
        """Delete the row of a parked key when nothing of it is left; why not, else.

        What members park meanwhile is taken as well. They tell of it in the row, so that none is overlooked.
        """
        name = self._row(topic, key)
        until = self._core.clock.monotonic() + max(self._wait, LEAST)
        while True:
            handled = not self._copies or await self._handled(topic)
            row = (await self._registry.read(name)).get(name)
            if row is None:
                return ""
            if parked_key(row.value)[1] is None:
                return "it failed again"
            if not handled:
                return f"group {self._group} has not handled its copies yet: run this again when it has"
            if await self._go(Filter(), (topic, key)):
                if self._core.clock.monotonic() >= until:
                    return "its messages arrive more quickly than it is emptied: run this again when fewer do"
                continue
            if await self._registry.write(name, None, expect=row.revision, ttl=None) is not None:
                return ""

    async def _handled(self, topic: str) -> bool:
        """Wait until the group has handled what came by its return address."""
        core = self._core
        if not isinstance(core.transport, Lagged):
            return False
        until = core.clock.monotonic() + self._wait
        group = core.physical(self._group)
        while sum((await core.transport.lag([self._returns[topic]], group)).values()):
            if core.clock.monotonic() >= until:
                return False
            await self._ledger.renew()
            await core.clock.sleep(LOOK)
        return True


# ---- a range of a topic ---------------------------------------------------------------------------------------------


async def replay_range(
    bus: Bus, topic: str, group: str, start: float | None, until: float | None, *, dry_run: bool = False,
    progress: Progress = _ignore,
) -> Summary:  # fmt: skip
    """Copy what a topic stored from `start` (None: the earliest that is kept) to `until` (None: now; unix seconds) to a
    group's return address, in stored order, beside what the group reads. `dry_run` counts only.

    Raises NotFound, Unsupported with the alternative, Refused, TransportError.
    """
    core = bus._running()
    transport = browsable(bus, "switchgear seek moves a stopped group back, where the broker can")
    plan = await existing(bus, topic)
    returns = "" if dry_run else await address(core, topic, group)
    run, summary, batch = secrets.token_hex(4), Summary(), list[Outgoing]()

    async def send() -> None:
        chains = [None if out.key is None else (out.topic, out.key) for out in batch]
        await asyncio.gather(*(core.emit(out, SEND, chain) for out, chain in zip(batch, chains, strict=True)))
        progress(len(batch), len(batch))
        batch.clear()

    for name in plan.physical:
        async for delivery, headers in transport.browse(name, "earliest" if start is None else start, until):
            summary.taken += 1
            if dry_run:
                continue
            envelope = envelope_of(delivery, headers, core.transport.capabilities.binding)
            found = Letter(topic, delivery, headers, envelope, topic, group)
            batch.append(copy(core, found, topic, group, returns, f"{found.id}/replay/{run}"))
            if len(batch) >= BATCH:
                await send()
    await send()
    return summary


def copy(core: Core, letter: Letter, topic: str, group: str, address: str, token: str) -> Outgoing:
    """A stored message for one group alone, to be handled as if it had never failed. Raises Refused where the broker
    does not take so many headers."""
    capabilities, delivery = core.transport.capabilities, letter.delivery
    ours: dict[str, bytes | None] = {
        "id": attribute("id", letter.id),
        "sgattempt": b"1",
        "sgfirstfailure": None,
        "sgreason": None,
        "sgdue": None,
        "sgtarget": attribute("sgtarget", names.retry_topic(topic, group)),
    }
    headers = with_attributes(letter.headers, capabilities.binding, ours)
    check_limits(headers, capabilities.headers)
    return Outgoing(
        topic=address, body=delivery.body, media=delivery.media, headers=headers, key=delivery.key,
        dedup=token, expires=letter.envelope.expires, private=True, marked=True,
    )  # fmt: skip


# ---- the way back ---------------------------------------------------------------------------------------------------


async def address(core: Core, topic: str, group: str) -> str:
    """The physical return address of a group, made if need be, that its running members read from now on.

    Raises NotFound for a group that does not read the topic, Refused where its members do not begin to read it.
    """
    transport, name = core.transport, names.retry_topic(topic, group)
    returns, physical_group = core.physical(name), core.physical(group)
    if not isinstance(transport, Registry) or not isinstance(transport, Provisioner):
        raise Unsupported(
            f"{core.url}: nothing can tell running members to read their return address: "
            "subscribe a group of its own to the dead-letter topic"
        )
    plan = await plan_of(core, topic)
    if isinstance(transport, Lagged) and not await transport.lag(plan.physical, physical_group):
        raise NotFound(f"{core.url}: no group {group!r} reads topic {topic!r}")
    await transport.provision([Resource(kind="topic", name=returns, private=True)], True)
    await core.use(name)
    if isinstance(transport, Lagged):
        # A running member makes the group there itself, with the order that it keeps; only then nothing is overlooked.
        until = core.clock.monotonic() + JOIN
        while core.clock.monotonic() < until:
            if physical_group in await _readers(transport, returns, physical_group):
                return returns
            await core.clock.sleep(LOOK)
    # No member runs: it will find what is stored from here on when it comes.
    order = min(plan.order, transport.capabilities.order) if plan.native else Order.NONE
    await transport.provision(
        [Resource(kind="group", name=physical_group, topic=returns, order=order, start="earliest")], True
    )
    if isinstance(transport, Lagged) and physical_group not in await _readers(transport, returns, physical_group):
        raise Refused(
            f"{core.url}: the members of {group!r} do not read their return address {returns!r}: restart them, or stop "
            "them until this is done"
        )
    return returns


async def _readers(transport: Lagged, topic: str, group: str) -> Mapping[str, int]:
    return {group: 0} if await transport.lag([topic], group) else {}


async def plan_of(core: Core, topic: str) -> Plan:
    """The topic's plan, without making one."""
    return await core.plan(as_topic(topic), core.loop.time() + SEND, write=False)


async def existing(bus: Bus, topic: str) -> Plan:
    """The plan of a topic that is there. Raises NotFound."""
    core = bus._running()
    plan = await plan_of(core, topic)
    if isinstance(core.transport, Provisioner):
        there = {info.name for info in await core.transport.topics(core.physical(topic))}
        if not there & set(plan.physical):
            raise NotFound(f"there is no topic {topic!r} on {core.url}")
    return plan
