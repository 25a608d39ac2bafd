"""Processes of cases: a publisher, a consumer, that can be killed, stopped and let go on.

Run as `python -m switchgear_conformance.child ROLE URL ARGUMENTS…`; it vouches for what it prints, a line a step.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from itertools import count
from typing import Any

from switchgear.driver import Delivery, Order, Outgoing, Settlement, Settling, Subscription, Transactional, Verdict
from switchgear.errors import TransportError
from switchgear.plugins import open_transport

from .server import die_with_parent

PATIENCE = 20.0  # seconds for a line of a child; starting an interpreter is slow on a busy machine


class Child:
    """The parent's end."""

    def __init__(self, role: str, process: asyncio.subprocess.Process) -> None:
        self.role, self._process = role, process

    @classmethod
    async def start(cls, role: str, url: str, *arguments: str, given: Mapping[str, str]) -> Child:
        """Start; the child dies with this process."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "switchgear_conformance.child", role, url, *arguments,
            env={**os.environ, **given, "PYTHONUNBUFFERED": "1"}, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, preexec_fn=die_with_parent(),
        )  # fmt: skip
        return cls(role, process)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def line(self, within: float = PATIENCE) -> str:
        """The next line that it prints; AssertionError when it ends or says nothing."""
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(within):
                said = await self._process.stdout.readline()
        except TimeoutError:
            raise AssertionError(f"the child ({self.role}) said nothing for {within:g} s") from None
        if not said.endswith(b"\n"):
            assert self._process.stderr is not None
            trouble = (await self._process.stderr.read()).decode(errors="replace")[-800:]
            raise AssertionError(f"the child ({self.role}) ended: {trouble}")
        return said.decode().rstrip("\n")

    async def lines(self, count: int) -> list[str]:
        return [await self.line() for _ in range(count)]

    def pause(self) -> None:
        """SIGSTOP."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._process.send_signal(signal.SIGCONT)

    async def kill(self) -> list[str]:
        """SIGKILL; whole lines that it had printed and nobody had read. A second call returns nothing."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        assert self._process.stdout is not None
        said = await self._process.stdout.read()
        return said.decode(errors="replace").split("\n")[:-1]


# ---- the child's end


def say(*words: object) -> None:
    """One write of one short line: whole or absent."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


async def _ignore(lanes: Any, lost: bool) -> None:
    """A child keeps nothing."""


async def publish(url: str, topic: str, keys: str = "0", size: str = "0") -> None:
    """Send numbered messages for ever: "? 7" before a send, "+ 7" when it is stored, "- 7" when it is not, "~ 7"
    when nobody knows. With `keys`, number i has key k{i % keys}; bodies are filled with dots up to `size`."""
    transport = open_transport(url)
    loop = asyncio.get_running_loop()
    await transport.connect(loop.time() + 10)
    i = 0
    while True:
        key = f"k{i % int(keys)}".encode() if int(keys) else None
        say("?", i)
        try:
            body = numbered(i, int(size)).encode()
            (outcome,) = await transport.send([Outgoing(topic, body, key=key)], loop.time() + 10)
        except TransportError as error:
            outcome = error
        say("+" if outcome is None else "~" if type(outcome).__name__ == "MaybeSent" else "-", i)
        i += 1


def numbered(i: int, size: int) -> str:
    """The body of message i, which shows where it is torn."""
    return str(i).ljust(size, ".")


async def produce(url: str, namespace: str, topic: str, size: str, tasks: str) -> None:
    """What `publish` does, through a bus, in several tasks at once."""
    from switchgear import Bus

    numbers = count()
    async with Bus(url, name="child", namespace=namespace, config={}) as bus:

        async def run() -> None:
            for i in numbers:
                say("?", i)
                await bus.publish(topic, numbered(i, int(size)))
                say("+", i)

        await asyncio.gather(*(run() for _ in range(int(tasks))))


async def consume(
    url: str, topic: str, group: str, settle: str, limit: str = "100", lease: str = "2.0", order: str = "0"
) -> None:
    """ "ready", then "got BODY" for what comes; with settle="ack" it acknowledges and says "settled BODY"; with "hold"
    it keeps all and goes on receiving nothing."""
    transport = open_transport(url)
    loop = asyncio.get_running_loop()
    await transport.connect(loop.time() + 10)
    source = await transport.subscribe(
        Subscription(
            topics={topic: None}, group=group, consumer=f"child-{os.getpid()}", lease=float(lease),
            order=Order(int(order)),
        ),
        _ignore,
    )  # fmt: skip
    await source.receive(0)
    say("ready")
    room = int(limit)
    while True:
        got: list[Delivery] = list(await source.receive(room))
        for d in got:
            say("got", (d.body or b"").decode())
        if settle == "hold":
            room -= len(got)
        if settle == "hold" or not got:
            continue
        outcomes = await source.settle([Settlement(d, Verdict.ACK) for d in got])
        for d, outcome in zip(got, outcomes, strict=False):
            if outcome is None:
                say("settled", (d.body or b"").decode())


async def late(url: str, topic: str, group: str, lease: str) -> None:
    """ "ready", then "got BODY" of one message, and then it stops itself (SIGSTOP). Let go on, it acknowledges and says
    what came of that, "settled" or the error's name, and leaves: "left"."""
    transport = open_transport(url)
    loop = asyncio.get_running_loop()
    await transport.connect(loop.time() + 10)
    source = await transport.subscribe(
        Subscription(topics={topic: None}, group=group, consumer=f"child-{os.getpid()}", lease=float(lease)), _ignore
    )
    await source.receive(0)
    say("ready")
    while not (got := await source.receive(1)):
        pass
    say("got", (got[0].body or b"").decode())
    os.kill(os.getpid(), signal.SIGSTOP)
    try:
        (outcome,) = await source.settle([Settlement(got[0], Verdict.ACK)])
    except TransportError as error:
        outcome = error
    say(type(outcome).__name__ if outcome else "settled")
    await source.close()
    await transport.close()
    say("left")


async def handle(url: str, namespace: str, topic: str, group: str, lease: str) -> None:
    """A bus that serves: "ready", then for each message "begin BODY" and "end BODY". During the first message it stops
    itself (SIGSTOP), with the whole process."""
    from switchgear import Bus

    bus = Bus(url, name="child", namespace=namespace, config={})
    stopped = False

    @bus.subscribe(topic, group=group, lease=float(lease))
    async def note(body: str) -> None:
        nonlocal stopped
        say("begin", body)
        if not stopped:
            stopped = True
            os.kill(os.getpid(), signal.SIGSTOP)
        say("end", body)

    async with bus.serving():
        say("ready")
        await asyncio.Event().wait()


class _Vouch:
    """An observer that says how many more messages are done with, and confirmed by the broker."""

    def count(self, event: str, topic: str, group: str | None, n: int) -> None:
        if event in ("handled", "dead_lettered"):
            say(event, n)


async def serve(url: str, namespace: str, topic: str, group: str, settle: str, lease: str) -> None:
    """A bus that serves: "ready", then "got BODY" when a handler begins; with settle="ack" it returns, one handler at a
    time, and "handled N" follows when the acknowledgements of N more, in order, are confirmed; with "hold" none
    returns; with "fail" all but that of "0" fail, and "dead_lettered N" follows when N more are."""
    from switchgear import Bus, Retry

    bus = Bus(url, name="child", namespace=namespace, config={}, observers=[_Vouch()])

    @bus.subscribe(
        topic, group=group, lease=float(lease), concurrency=1 if settle == "ack" else 100,
        retry=Retry(attempts=3, base=0.3),
    )  # fmt: skip
    async def note(body: str) -> None:
        say("got", body)
        if settle == "fail" and body != "0":
            raise ValueError("no such customer")
        if settle != "ack":
            await asyncio.Event().wait()

    async with bus.serving():
        say("ready")
        await asyncio.Event().wait()


async def commit(url: str, topic: str, group: str, to: str, lease: str) -> None:
    """ "ready", then for what comes, some at a time, a message with the same body in `to`, stored with the
    acknowledgement: "done BODY"."""
    transport = open_transport(url)
    loop = asyncio.get_running_loop()
    await transport.connect(loop.time() + 10)
    assert isinstance(transport, Transactional)
    source = await transport.subscribe(
        Subscription(topics={topic: None}, group=group, consumer=f"child-{os.getpid()}", lease=float(lease)), _ignore
    )
    await source.receive(0)
    say("ready")
    cumulative = source.capabilities.settling is Settling.CUMULATIVE
    while True:
        got = list(await source.receive(2))
        heads = list({d.lane: d for d in got}.values()) if cumulative else got
        if got:
            produced = [Outgoing(to, d.body) for d in got]
            await transport.commit(source, [Settlement(d, Verdict.ACK) for d in heads], produced, loop.time() + 10)
        for d in got:
            say("done", (d.body or b"").decode())


async def relay(url: str, namespace: str, topic: str, group: str, to: str, lease: str) -> None:
    """A bus that serves: "ready", then it handles messages exactly once, by publishing each body to `to`; "got BODY"
    when a handler begins."""
    from switchgear import Bus, Topic

    bus = Bus(url, name="child", namespace=namespace, config={})

    @bus.subscribe(topic, group=group, to=Topic(to, str), lease=float(lease), delivery="exactly_once", concurrency=4)
    async def handle(body: str) -> str:
        say("got", body)
        await asyncio.sleep(0.005)
        return body

    async with bus.serving():
        say("ready")
        await asyncio.Event().wait()


ROLES: dict[str, Callable[..., Awaitable[None]]] = {
    "publish": publish,
    "produce": produce,
    "consume": consume,
    "late": late,
    "handle": handle,
    "serve": serve,
    "commit": commit,
    "relay": relay,
}
ON_TOPICS = frozenset({"publish", "consume", "late", "commit"})
"""Roles on the bare driver: their first argument is a physical topic, which has to be there."""


def main() -> None:
    role, url, *arguments = sys.argv[1:]
    asyncio.run(ROLES[role](url, *arguments))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
