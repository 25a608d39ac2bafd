"""Faults: whatever happens to the line and to the broker, what was acknowledged is read, and what failed is not."""

from __future__ import annotations

from contextlib import suppress

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from switchgear.errors import MaybeSent, Unavailable
from switchgear_conformance.context import Context
from switchgear_conformance.member import out
from switchgear_conformance.steady import Reader, attempt, reconnect

from .play import Program, program, step


def faults(c: Context) -> SearchStrategy[Program]:
    """Programs of sending and reading, over a line that breaks and a broker that is killed."""
    send, read = step("send", st.sampled_from([1, 2, 5])), step("read")
    line = [
        step("reset"), step("down"), step("strand"), step("cut", st.sampled_from([1, 200]), st.sampled_from([0, 3])),
        step("slices", st.sampled_from([1, 7])), step("heal"),
    ]  # fmt: skip
    return program(*[send] * 5, *[read] * 3, *line, step("kill"), first=step("open"), size=12)


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
            error = await attempt(self.c, self.transport, out(self.c.name(), body), 1.0)
            (self.stored if error is None else self.unsure if isinstance(error, MaybeSent) else self.failed).add(body)
            if error is not None:
                with suppress(Unavailable):
                    await self.transport.connect(self.c.deadline(1.0))

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
        """The next answer is cut off after so many bytes."""
        self.c.line.cut(request=request, response=response)

    async def slices(self, size: int) -> None:
        """Everything comes in small pieces."""
        self.c.line.slices(size)

    async def heal(self) -> None:
        """A good line for new connections."""
        await self.c.line.heal()

    async def kill(self) -> None:
        """SIGKILL the broker and start it again."""
        self.killed = True
        try:
            await self.c.kill()
        finally:
            await self.c.start()

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
