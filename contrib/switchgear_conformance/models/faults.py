"""Faults: whatever happens to the line and to the broker, what was acknowledged is read, and what failed is not."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from switchgear import Topic
from switchgear.errors import MaybeSent, Unavailable
from switchgear_conformance.context import Context, listen
from switchgear_conformance.member import out
from switchgear_conformance.steady import Reader, attempt, reconnect

from .play import Program, Step, program, step


def faults(c: Context) -> SearchStrategy[Program]:
    """Programs of sending and reading, over a line that breaks and a broker that is killed where that can be done."""
    send, read = step("send", st.sampled_from([1, 2, 5])), step("read")
    line = [
        step("reset"), step("down"), step("strand"), step("cut", st.sampled_from([1, 200]), st.sampled_from([0, 3])),
        step("slices", st.sampled_from([1, 7])), step("heal"),
    ]  # fmt: skip
    programs = program(*[send] * 5, *[read] * 3, *line, *_killing(c), first=step("open"), size=12)
    return programs if c.harness.virtual else programs.map(_killed_once)


def _killing(c: Context) -> list[SearchStrategy[Step]]:
    """A broker that forgets all may be killed too, and there is nothing then that could be asked of it."""
    return [step("kill")] if "kill" in c.harness.powers and c.capabilities.persistent else []


def _killed_once(steps: Program) -> Program:
    """The program without its later kills: some brokers take seconds to start, which is time for other programs."""
    first = next((n for n, step in enumerate(steps) if step[0] == "kill"), 0)
    return tuple(step for n, step in enumerate(steps) if step[0] != "kill" or n == first)


class Faults:
    """A sender and a reader that come through the proxies; the sender sends everything once."""

    def __init__(self, context: Context) -> None:
        self.c = context
        self.stored: set[bytes] = set()
        self.unsure: set[bytes] = set()
        self.failed: set[bytes] = set()
        self.killed = False

    async def open(self) -> None:
        """Connect over a good line."""
        await self.c.line.heal()
        self.transport = await self.c.open(self.c.proxied_url)
        self.reader = await Reader(self.c, await self.c.open(self.c.proxied_url), self.c.name()).join()

    async def send(self, count: int) -> None:
        """Send so many messages, one by one, each once; note what is said of them."""
        for _ in range(count):
            body = str(len(self.stored | self.unsure | self.failed)).encode()
            error = await attempt(self.c, self.transport, out(self.c.name(), body), 0.5)
            (self.stored if error is None else self.unsure if isinstance(error, MaybeSent) else self.failed).add(body)
            if error is not None:
                with suppress(Unavailable):
                    await self.transport.connect(self.c.deadline(0.5))

    async def read(self) -> None:
        """Receive and acknowledge once, if there is something to come."""
        if self.stored - set(self.reader.read):
            await self.reader.step()

    async def reset(self) -> None:
        """RST every connection."""
        await self.c.line.reset()

    async def down(self) -> None:
        """Nobody listens, while two messages are sent."""
        async with self.c.line.broken():
            await self.send(2)

    async def strand(self) -> None:
        """Connections forward nothing any more, without a word."""
        self.c.line.strand()

    async def cut(self, request: int, response: int) -> None:
        """The next answer is cut off after so many bytes; mostly it is the one to this message."""
        self.c.line.cut(request=request, response=response)
        await self.send(1)

    async def slices(self, size: int) -> None:
        """Everything comes in small pieces."""
        self.c.line.slices(size)

    async def heal(self) -> None:
        """A good line for new connections."""
        await self.c.line.heal()

    async def kill(self) -> None:
        """SIGKILL the broker and start it again."""
        self.killed = True
        await _kill(self.c)

    async def finish(self) -> None:
        """Over a good line: everything acknowledged is read."""
        await self.c.line.heal()
        await self.c.line.reset()
        await reconnect(self.c, self.transport)
        await self.reader.until(self.stored)
        last = str(len(self.stored | self.unsure | self.failed)).encode()
        await self.c.stored(self.transport, out(self.c.name(), last))
        await self.reader.until([last])
        read = set(self.reader.read) - {last}
        assert not read & self.failed, f"said to be certainly not stored, and read: {sorted(read & self.failed)[:5]}"
        unexpected = read - self.stored - self.unsure
        assert not unexpected, f"read, and never sent: {sorted(unexpected)[:5]}"
        if self.c.capabilities.ack_durable or not self.killed:
            again = sorted(self.reader.returned)
            assert not again, f"acknowledged, confirmed, and handed out again: {again[:5]}"
        await self.reader.leave()


async def _kill(c: Context) -> None:
    try:
        await c.kill()
    finally:
        await c.start()


# ---- through Bus


def outages(c: Context) -> SearchStrategy[Program]:
    """Programs of publishing and handling, over a line that breaks and a broker that is killed where that can be."""
    publish = step("publish", st.sampled_from("ab"), st.sampled_from([1, 5, 20]))
    line = [step("reset"), step("down"), step("cut", st.sampled_from([1, 200]), st.sampled_from([0, 3]))]
    programs = program(publish, publish, *line, *_killing(c), first=step("open"), size=8)
    return programs if c.harness.virtual else programs.map(_killed_once)


class Outages:
    """One bus that publishes and one that handles, both through the proxies."""

    def __init__(self, context: Context) -> None:
        self.c = context
        self.topic = Topic("orders", str, key=lambda body: body[0], partitions=2)
        self.publishing: list[asyncio.Task[str]] = []
        self.sent: list[str] = []
        self.log = context.log()

    async def open(self) -> None:
        """Serve over a good line."""
        await self.c.line.heal()
        handling = self.c.bus(self.c.proxied_url)
        listen(handling, self.topic, self.log, lease=self.c.lease)
        await self.c.serve(handling)
        self.bus = await self.c.opened(self.c.bus(self.c.proxied_url))
        for key in "ab":
            await self.publish(key, 1)
        await asyncio.gather(*self.publishing)  # from now on nothing goes before a message

    async def publish(self, key: str, count: int) -> None:
        """Begin to publish so many, all at once."""
        bodies = [f"{key}{len(self.sent) + i}" for i in range(count)]
        self.sent += bodies
        self.publishing += [asyncio.create_task(self.bus.publish(self.topic, body)) for body in bodies]
        await asyncio.sleep(0)

    async def reset(self) -> None:
        """RST every connection."""
        await self.c.line.reset()

    async def down(self) -> None:
        """Nobody listens for a moment, in which something is published."""
        async with self.c.line.broken():
            await self.publish("a", 2)
            await asyncio.sleep(0.1)

    async def cut(self, request: int, response: int) -> None:
        """The next answer is cut off after so many bytes, perhaps that to this message."""
        self.c.line.cut(request=request, response=response)
        await self.publish("b", 1)

    async def kill(self) -> None:
        """SIGKILL the broker and start it again."""
        await _kill(self.c)

    async def finish(self) -> None:
        """Over a good line everything is published and handled, each key in order the first time."""
        await self.c.line.heal()
        await asyncio.gather(*self.publishing)
        await self.log.until(lambda: set(self.log.items) >= set(self.sent), "all that was published is handled", 30.0)
        unexpected = set(self.log.items) - set(self.sent)
        assert not unexpected, f"handled, and never published: {sorted(unexpected)[:5]}"
        for key in "ab":
            first = [int(body[1:]) for body in dict.fromkeys(self.log.items) if body[0] == key]
            assert first == sorted(first), f"key {key} was handled in the order {first[:40]}"
