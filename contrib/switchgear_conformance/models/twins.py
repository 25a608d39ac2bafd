"""The same program on this transport and on memory: what becomes of each message is the same."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any, Literal, TypedDict, cast

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from switchgear import Bus, Drop, Message, Reject, Retry, RetryAfter, Topic
from switchgear_conformance.context import Context, Log
from switchgear_conformance.member import PATIENCE

from .play import Program, program, step

Fate = Literal["return", "fail once", "fail twice", "fail", "reject", "drop", "later"]
FATES: tuple[Fate, ...] = ("return", "fail once", "fail twice", "fail", "reject", "drop", "later")
ATTEMPTS = 3
GROUPS = ("billing", "mail")


def twins(c: Context, order: Literal["none", "key"]) -> SearchStrategy[Program]:
    """Programs that publish what fails in all manners, and restart."""
    fate = st.sampled_from(FATES)
    publish = step("publish", st.sampled_from("ab"), fate, st.integers(1, 4))
    kinds = [publish] * 4 + [step("restart")]
    if c.capabilities.delay:
        kinds.append(step("delay", fate))
    return program(*kinds, first=step("open", st.just(order)), size=16 if c.harness.virtual else 8)


class Order(TypedDict):
    key: str
    number: int
    fate: Fate


class Twin:
    """The program's end on one transport."""

    def __init__(self, c: Context, url: str | None, order: Literal["none", "key"]) -> None:
        self.c, self.url = c, url
        self.topic = Topic("orders", Order, key=lambda order: order["key"], order=order, partitions=2)
        self.buried_topic = Topic("buried", Order)
        self.publisher: Bus = c.bus(url)
        self.calls: dict[tuple[str, int], list[tuple[int, str]]] = defaultdict(list)
        self.first: dict[tuple[str, str], list[int]] = defaultdict(list)
        self.ended: Log = c.log()
        self.buried: Log = c.log()
        self._serving = AsyncExitStack()

    async def open(self) -> None:
        await self.c.opened(self.publisher)
        await self.start()

    async def start(self) -> None:
        """Serve, as another process would."""
        bus = self.c.bus(self.url)
        retry = Retry(attempts=ATTEMPTS, base=0.01, cap=0.02)
        for group in GROUPS:
            bus.subscribe(self.topic, group=group, retry=retry, dead_letter="buried", start="new")(self._handler(group))

        @bus.subscribe(self.buried_topic, group="undertaker")
        async def bury(order: Order) -> None:
            self.buried.add(order["number"])

        await self._serving.enter_async_context(bus.serving())

    def _handler(self, group: str) -> Callable[[Message[Order]], Any]:
        async def handle(message: Message[Order]) -> None:
            order = message.body
            calls = self.calls[group, order["number"]]
            if not calls:
                self.first[group, order["key"]].append(order["number"])
            calls.append((message.attempt, order["fate"]))
            self._meet(order["fate"], len(calls))
            self.ended.add((group, order["number"]))

        return handle

    def _meet(self, fate: Fate, call: int) -> None:
        if fate == "later" and call == 1:
            raise RetryAfter(0.02)
        if call <= {"fail once": 1, "fail twice": 2, "fail": ATTEMPTS}.get(fate, 0):
            raise RuntimeError("as the program says")
        if fate == "reject":
            raise Reject("as the program says")
        if fate == "drop":
            raise Drop("as the program says")

    async def settle(self, returned: int, buried: int, called: int) -> None:
        """Wait until so many ended well, so many were buried, and so many were called at all."""
        await self.ended.reach(returned)
        await self.buried.reach(buried)
        await self.c.eventually(lambda: len(self.calls) >= called, f"{called} messages are handled", PATIENCE)

    async def stop(self) -> None:
        await self._serving.aclose()
        await self.publisher.close()

    async def restart(self) -> None:
        await self._serving.aclose()
        await self.start()


class Twins:
    """Both of them, and what was published."""

    def __init__(self, context: Context) -> None:
        self.c = context
        self.twins: list[Twin] = []
        self.published: list[Fate] = []
        context.closed(self._stop)

    async def open(self, order: Literal["none", "key"]) -> None:
        """Serve on both."""
        memory = f"memory://{self.c.namespace}twin"
        self.twins = [Twin(self.c, None, order), Twin(self.c, memory, order)]
        for twin in self.twins:
            await twin.open()

    async def publish(self, key: str, fate: Fate, count: int) -> None:
        """So many messages of a key, that all end this way."""
        numbers = range(len(self.published), len(self.published) + count)
        self.published.extend(fate for _ in numbers)
        orders = [Order(key=key, number=n, fate=fate) for n in numbers]
        for twin in self.twins:
            await twin.publisher.publish_many(twin.topic, orders)

    async def delay(self, fate: Fate) -> None:
        """One message that is due later, alone in its key."""
        order = Order(key=f"d{len(self.published)}", number=len(self.published), fate=fate)
        self.published.append(fate)
        for twin in self.twins:
            await twin.publisher.publish(twin.topic, order, delay=0.05)

    async def restart(self) -> None:
        """Let everything end, close, and serve anew."""
        await self._settle()
        for twin in self.twins:
            await twin.restart()

    async def finish(self) -> None:
        """Let everything end, and compare."""
        await self._settle()
        if self.c.virtual:
            await self.twins[0].ended.quiet()
        await self._stop()
        here, memory = self.twins
        compared: list[tuple[str, object, object]] = [
            ("calls (attempt, fate) by group and number", dict(here.calls), dict(memory.calls)),
            ("dead letters", sorted(here.buried.items), sorted(memory.buried.items)),
            ("what ended well", sorted(here.ended.items), sorted(memory.ended.items)),
        ]
        if here.topic.order == "key":
            compared.append(
                ("order in which a group first handled a key's messages", dict(here.first), dict(memory.first))
            )
        for name, one, other in compared:
            assert one == other, f"{name}: {_differ(one, other)}"

    async def _settle(self) -> None:
        buried = len(GROUPS) * sum(fate in ("fail", "reject") for fate in self.published)
        returned = len(GROUPS) * sum(fate not in ("fail", "reject", "drop") for fate in self.published)
        for twin in self.twins:
            await twin.settle(returned, buried, len(GROUPS) * len(self.published))

    async def _stop(self) -> None:
        for twin in self.twins:
            await twin.stop()


def _differ(one: object, other: object) -> str:
    if isinstance(one, dict) and isinstance(other, dict):
        here, memory = cast("dict[object, object]", one), cast("dict[object, object]", other)
        keys = [key for key in {**here, **memory} if here.get(key) != memory.get(key)][:3]
        one, other = {key: here.get(key) for key in keys}, {key: memory.get(key) for key in keys}
    return f"{one!r} here, {other!r} on memory"
