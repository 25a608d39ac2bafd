"""The workload: starts publishers and consumers, does to them what the schedule says, and waits for the rest."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec

from switchgear.driver import Clocked, Order, Registry
from switchgear.errors import ConfigurationError
from switchgear.plugins import open_transport, redact
from switchgear_conformance.harness import Broker, Harness, Killable, Pausable, Restartable, Setup
from switchgear_conformance.server import die_with_parent

from .history import FAULT, MARK, Journal
from .load import VARIABLE, Work, consume, publish
from .oracle import Oracle
from .verdict import Verdict

FAULTS = {
    "kill": "SIGKILL a consumer and start another",
    "leave": "SIGTERM a consumer and start another",
    "join": "start one consumer more, for a while",
    "pause": "SIGSTOP a consumer for longer than its lease",
    "publisher": "SIGKILL a publisher and start it again",
    "broker": "SIGKILL the broker and start it again",
    "restart": "stop the broker in an orderly way and start it again",
    "freeze": "SIGSTOP the broker for longer than a lease",
}
POWERS = {"broker": ("kill", Killable), "restart": ("restart", Restartable), "freeze": ("pause", Pausable)}
"""What a harness has to be able to do for a fault, and the protocol that its brokers then have."""
PATIENCE = 60.0  # seconds for a process to start or to end, on a busy machine
STALLED = 45.0  # seconds beside twice the lease, without anything handled, after which the rest counts as lost


class Plan(msgspec.Struct, kw_only=True):
    """What to run."""

    seconds: float = 60.0
    publishers: int = 2
    consumers: int = 2
    order: str = "key"
    keys: int = 20
    rate: float = 200.0
    lease: float = 5.0
    faults: tuple[str, ...] = ()
    every: float = 5.0
    """Seconds between two faults, on average."""
    seed: int = 0


class Process:
    """A publisher or consumer in a process of its own; what it says is in a log beside the history."""

    def __init__(self, role: str, work: Work) -> None:
        self.role, self.work = role, work
        self.log = work.journal.with_suffix(".log")
        self._process: asyncio.subprocess.Process | None = None
        self._logged = 0
        """Bytes of the log before this process."""

    async def start(self) -> None:
        self._logged = self.log.stat().st_size if self.log.exists() else 0
        environment = {**os.environ, VARIABLE: msgspec.json.encode(self.work).decode(), "PYTHONUNBUFFERED": "1"}
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "switchgear_conformance.verify.load", self.role, env=environment,
                stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=die_with_parent(),
                start_new_session=True,
            )  # fmt: skip

    @property
    def ended(self) -> int | None:
        """Its exit code."""
        return self._process.returncode if self._process else None

    @property
    def ready(self) -> bool:
        """Whether a consumer has said so."""
        return self._says("ready")

    def _says(self, word: str) -> bool:
        return word.encode() in self.log.read_bytes()[self._logged :].splitlines()

    def signal(self, number: signal.Signals) -> None:
        if self._process and self._process.returncode is None:
            self._process.send_signal(number)

    async def kill(self) -> None:
        self.signal(signal.SIGKILL)
        if self._process:
            await self._process.wait()

    async def leave(self) -> None:
        """SIGTERM, and wait; WorkloadFailed when it does not end with 0."""
        assert self._process is not None
        try:
            async with asyncio.timeout(PATIENCE):
                while not self._says("listening") and self.ended is None:  # noqa: ASYNC110  (it has just been started)
                    await asyncio.sleep(0.02)
                self.signal(signal.SIGTERM)
                code = await self._process.wait()
        except TimeoutError:
            await self.kill()
            raise WorkloadFailed(
                f"{self.work.name} did not end within {PATIENCE:g} s of SIGTERM{self.tail()}"
            ) from None
        if code:
            raise WorkloadFailed(f"{self.work.name} ended with {code} after SIGTERM{self.tail()}")

    def tail(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-15:]
        return ":\n" + "\n".join(lines) if lines else ""


class WorkloadFailed(Exception):
    """A publisher or consumer did not do its work: the history proves nothing."""


class Workload:
    """A run of a plan on one broker."""

    def __init__(self, plan: Plan, url: str, folder: Path, broker: Broker | None) -> None:
        self.plan, self.url, self.folder = plan, url, folder
        self.broker: Any = broker
        """With the powers that the faults of the plan need."""
        self.dice = random.Random(plan.seed)
        self.oracle = Oracle(folder)
        self.journal = Journal(folder / "workload.jsonl")
        self.namespace = f"verify{secrets.token_hex(3)}."
        self.publishers: list[Process] = []
        self.consumers: list[Process] = []
        self._named = 0

    def work(self, name: str) -> Work:
        plan = self.plan
        return Work(
            url=self.url, namespace=self.namespace, folder=str(self.folder), name=name, order=plan.order,
            keys=plan.keys, rate=plan.rate, lease=plan.lease, seed=plan.seed,
        )  # fmt: skip

    async def run(self, stop: asyncio.Event, tell: Callable[[str], None]) -> Verdict:
        """Publish and consume for the time of the plan (or until `stop`), then wait for the rest and judge."""
        self.journal.write(MARK, what=f"order {self.plan.order}", who=f"seed {self.plan.seed}")
        telling = asyncio.create_task(self._tell(tell))
        try:
            await self._begin()
            await self._disturb(stop)
            for publisher in self.publishers:
                await publisher.leave()
            await self._drain()
            for consumer in self.consumers:
                await consumer.leave()
        finally:
            telling.cancel()
            for process in (*self.publishers, *self.consumers):
                process.signal(signal.SIGCONT)
                await process.kill()
            self.journal.close()
        return self.oracle.look().verdict(ordered=self.plan.order != "none")

    async def _begin(self) -> None:
        for _ in range(self.plan.consumers):
            await self._consume()
        # a broker whose groups start at new keeps only what is published after one has joined
        await self._until(lambda: all(consumer.ready for consumer in self.consumers), "every consumer has subscribed")
        for i in range(self.plan.publishers):
            publisher = Process("publish", self.work(f"p{i}"))
            self.publishers.append(publisher)
            await publisher.start()
        await self._until(self._moving, "something is published and handled")

    async def _consume(self) -> Process:
        self._named += 1
        consumer = Process("consume", self.work(f"c{self._named}"))
        self.consumers.append(consumer)
        await consumer.start()
        return consumer

    async def _until(self, true: Callable[[], object], what: str) -> None:
        """Look again and again; WorkloadFailed when it takes too long, or a process ends."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + PATIENCE
        while not true():
            self._alive()
            if loop.time() >= ends:
                tails = "".join(process.tail() for process in (*self.publishers, *self.consumers))
                raise WorkloadFailed(f"not within {PATIENCE:g} s: {what}{tails}")
            await asyncio.sleep(0.1)

    def _moving(self) -> bool:
        return bool(self.oracle.look().stored and self.oracle.handled)

    def _alive(self) -> None:
        """WorkloadFailed when a process ended by itself."""
        for process in (*self.publishers, *self.consumers):
            if process.ended is not None:
                raise WorkloadFailed(f"{process.work.name} ended by itself with {process.ended}{process.tail()}")

    async def _disturb(self, stop: asyncio.Event) -> None:
        """Faults by the seeded schedule, until the time is over."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + self.plan.seconds
        acts: dict[str, Callable[[], Awaitable[None]]] = {
            "kill": self._kill, "leave": self._leave, "join": self._join, "pause": self._pause,
            "publisher": self._publisher, "broker": self._broker, "restart": self._restart, "freeze": self._freeze,
        }  # fmt: skip
        while (left := ends - loop.time()) > 0 and not stop.is_set():
            pause = self.dice.uniform(0.5, 1.5) * self.plan.every if self.plan.faults else left
            try:
                async with asyncio.timeout(min(pause, left)):
                    await stop.wait()
            except TimeoutError:
                self._alive()
                if self.plan.faults and loop.time() < ends:
                    await acts[self.dice.choice(self.plan.faults)]()

    def _fault(self, what: str, who: str = "") -> None:
        self.journal.write(FAULT, what=what, who=who)

    async def _kill(self) -> None:
        victim = self.dice.choice(self.consumers)
        self._fault("kill", victim.work.name)
        self.consumers.remove(victim)
        await victim.kill()
        await self._consume()

    async def _leave(self) -> None:
        victim = self.dice.choice(self.consumers)
        self._fault("leave", victim.work.name)
        self.consumers.remove(victim)
        try:
            await victim.leave()
        finally:
            await victim.kill()
        await self._consume()

    async def _join(self) -> None:
        self._fault("join")
        if len(self.consumers) >= 2 * self.plan.consumers:
            surplus = self.consumers.pop(0)
            try:
                await surplus.leave()
            finally:
                await surplus.kill()
        await self._consume()

    async def _pause(self) -> None:
        victim = self.dice.choice(self.consumers)
        self._fault("pause", victim.work.name)
        victim.signal(signal.SIGSTOP)
        await asyncio.sleep(1.5 * self.plan.lease)
        victim.signal(signal.SIGCONT)

    async def _publisher(self) -> None:
        victim = self.dice.choice(self.publishers)
        self._fault("publisher", victim.work.name)
        await victim.kill()
        await victim.start()

    async def _broker(self) -> None:
        self._fault("broker")
        await asyncio.to_thread(self.broker.kill)
        await asyncio.sleep(self.dice.uniform(0.0, 2.0))
        await asyncio.to_thread(self.broker.start)

    async def _restart(self) -> None:
        self._fault("restart")
        await asyncio.to_thread(self.broker.stop)
        await asyncio.sleep(self.dice.uniform(0.0, 2.0))
        await asyncio.to_thread(self.broker.start)

    async def _freeze(self) -> None:
        self._fault("freeze")
        await asyncio.to_thread(self.broker.pause)
        await asyncio.sleep(1.5 * self.plan.lease)
        await asyncio.to_thread(self.broker.resume)

    async def _drain(self) -> None:
        """Wait until all that is stored was handled, or nothing more comes."""
        loop = asyncio.get_running_loop()
        missing, since = -1, loop.time()
        while left := len(self.oracle.look().lost):
            if left != missing:
                missing, since = left, loop.time()
            if loop.time() - since > STALLED + 2 * self.plan.lease:
                return
            await asyncio.sleep(0.2)

    async def _tell(self, tell: Callable[[str], None]) -> None:
        while True:
            await asyncio.sleep(5.0)
            tell(str(self.oracle.look()))


async def in_process(plan: Plan, url: str, folder: Path, stop: asyncio.Event, tell: Callable[[str], None]) -> Verdict:
    """The same workload as tasks of this process, for a transport that no other process can reach."""
    oracle, journal = Oracle(folder), Journal(folder / "workload.jsonl")
    journal.write(MARK, what=f"order {plan.order}", who=f"seed {plan.seed}")
    namespace = f"verify{secrets.token_hex(3)}."

    def work(name: str) -> Work:
        return Work(
            url=url, namespace=namespace, folder=str(folder), name=name, order=plan.order, keys=plan.keys,
            rate=plan.rate, lease=plan.lease, seed=plan.seed,
        )  # fmt: skip

    published, handled = asyncio.Event(), asyncio.Event()
    readies = [asyncio.Event() for _ in range(plan.consumers)]
    async with asyncio.TaskGroup() as tasks:
        for i, ready in enumerate(readies):
            tasks.create_task(consume(work(f"c{i}"), handled, ready))
        for ready in readies:
            await ready.wait()
        async with asyncio.TaskGroup() as publishing:
            for i in range(plan.publishers):
                publishing.create_task(publish(work(f"p{i}"), published))
            try:
                async with asyncio.timeout(plan.seconds):
                    await stop.wait()
            except TimeoutError:
                pass
            published.set()
        ends = asyncio.get_running_loop().time() + STALLED
        while oracle.look().lost and asyncio.get_running_loop().time() < ends:
            tell(str(oracle))
            await asyncio.sleep(0.2)
        handled.set()
    journal.close()
    return oracle.look().verdict(ordered=plan.order != "none")


def verify(plan: Plan, url: str, harness: Harness | None, history: Path | None, tell: Callable[[str], None]) -> Verdict:
    """Run the plan against `url`, or against a broker that the harness starts.

    Raises ConfigurationError for what can't be, NotRun and BrokerFailed from the harness, TransportError when the
    broker can't be reached, WorkloadFailed when a process of the workload fails.
    """
    with ExitStack() as stack:
        folder = history or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="switchgear-verify-")))
        if history is not None:
            history.mkdir(parents=True, exist_ok=True)
            if any(history.glob("*.jsonl")):
                raise ConfigurationError(f"{history} holds a history already: name an empty folder, or --check it")
        broker = None
        if harness is not None:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="switchgear-broker-")))
            broker = harness.start(Setup(folder=place, url=url))
            stack.callback(broker.close)
            url = broker.url
        for fault in plan.faults:
            if fault not in FAULTS:
                raise ConfigurationError(f"there is no fault {fault!r}: choose from {', '.join(FAULTS)}, all, none")
            if fault in POWERS and not (harness and isinstance(broker, POWERS[fault][1])):
                raise ConfigurationError(
                    f"the fault {fault!r} ({FAULTS[fault]}) needs a harness that can do it (--harness NAME)"
                )
        transport = open_transport(url)
        keeps = Order.TOTAL if isinstance(transport, Registry) else transport.capabilities.order
        if keeps < ("none", "key", "total").index(plan.order):
            raise ConfigurationError(f"{redact(url)} can't keep {plan.order} order: choose another by --order")
        local = isinstance(transport, Clocked)
        if local and plan.faults:
            raise ConfigurationError(
                f"{redact(url)} lives in one process, which no fault can be done to: leave --faults away"
            )
        return asyncio.run(_verify(plan, url, folder, broker, local, tell))


async def _verify(
    plan: Plan, url: str, folder: Path, broker: Broker | None, local: bool, tell: Callable[[str], None]
) -> Verdict:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGINT, stop.set)  # the load ends, and is judged all the same
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    if local:
        return await in_process(plan, url, folder, stop, tell)
    transport = open_transport(url)
    try:
        await transport.connect(loop.time() + 10)  # a broker that is down is told at once
    finally:
        await transport.close()
    return await Workload(plan, url, folder, broker).run(stop, tell)
