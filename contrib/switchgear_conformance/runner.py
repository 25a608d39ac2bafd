"""Running cases: gates, time bounds, brokers of their own for what is done to brokers, and what is an outcome."""

from __future__ import annotations

import asyncio
import gc
import math
import secrets
import sys
import tempfile
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from switchgear.driver import Capabilities, Outgoing, Subscription
from switchgear.errors import ConfigurationError, NotFound, Unsupported
from switchgear.plugins import open_transport, redact

from .case import PENDING, Case, Outcome, Tier, tier
from .catalogue import catalogue
from .context import Context, ignore, provide, set_clock
from .gates import REFUSABLE, missing
from .harness import POWERS, Address, Broker, Harness, HarnessLied, NotRun, Setup
from .proxy import Line
from .report import Report, Result
from .served import served
from .virtual import LoopTime, VirtualLoop

SERVER_POWERS = frozenset({"kill", "pause", "restart", "proxy"})
CLEANUP = 20.0  # seconds to close what a case had open
WARMING = 1.0  # seconds for messages back and forth before it counts how long they take: a server starts slowly
ENDING = 1.0  # seconds that a task may take to end when all is closed


@dataclass
class Probe:
    """What is known of a broker before the first case."""

    capabilities: Capabilities
    missing: Callable[[Case], list[str]]
    quiet: float
    claims: dict[str, object]
    makes_topics: bool
    """Whether a topic is made at first use; else the kit provisions those of its cases."""


@dataclass
class Session:
    """A harness with its shared broker and what came of its cases so far.

    Cases that do something to a broker get one of their own.
    """

    harness: Harness
    url: str
    seed: int
    waivers: Mapping[int, str]
    environment: Mapping[str, str]
    shorten: bool
    """Whether a model that fails looks for the shortest program that does; mutants only ask whether it fails."""
    folder: Path
    started: int = 0
    broker: Broker = field(init=False)
    probe: Probe = field(init=False)
    report: Report = field(init=False)

    @classmethod
    @contextmanager
    def open(
        cls, harness: Harness, *, url: str = "", seed: int | None = None, waivers: Mapping[int, str] = {},
        environment: Mapping[str, str] = {}, shorten: bool = True,
    ) -> Generator[Session]:  # fmt: skip
        """Start the broker and connect to it.

        Raises ConfigurationError (an unknown scheme, a harness that claims what it does not do), NotRun (the broker
        can't be had), BrokerFailed (it does not start), TransportError (it can't be reached).
        """
        seed = secrets.randbits(32) if seed is None else seed
        if harness.embedded and (servers := harness.powers & SERVER_POWERS):
            raise HarnessLied(
                f"the harness {harness.name!r} says embedded=True and claims {', '.join(sorted(servers))}: what has no "
                "server can't be killed, paused, restarted or cut off"
            )
        with tempfile.TemporaryDirectory(prefix="switchgear-") as folder:
            session = cls(harness, url, seed, waivers, environment, shorten, Path(folder))
            session.broker = session.start()
            gc.collect()
            gc.freeze()  # what is imported is no garbage: looking through it after every case took a third of the time
            try:
                with asyncio.Runner(loop_factory=VirtualLoop if harness.virtual else None) as runner:
                    session.probe = runner.run(_probe(harness, session.broker))
                session.report = Report(
                    harness=harness.name, url=redact(session.broker.url), seed=seed, embedded=harness.embedded,
                    emulator=harness.emulator, storage=harness.storage, versions=versions(session.broker),
                    claims=session.probe.claims, whole=[],
                )  # fmt: skip
                yield session
            finally:
                gc.unfreeze()
                session.broker.close()

    def start(self, advertise: Iterable[Address] = ()) -> Broker:
        """Another broker in a folder of its own. Raises NotRun, BrokerFailed, HarnessLied."""
        self.started += 1
        folder = self.folder / f"broker{self.started}"
        folder.mkdir()
        broker = self.harness.start(Setup(folder=folder, url=self.url, advertise=tuple(advertise)))
        for power in sorted(self.harness.powers):
            if power not in POWERS or not isinstance(broker, POWERS[power]):
                broker.close()
                raise HarnessLied(
                    f"the harness {self.harness.name!r} claims the power {power!r} and its broker lacks it: "
                    + (f"it needs {_methods(POWERS[power])}" if power in POWERS else f"there are {', '.join(POWERS)}")
                )
        return broker

    def run(self, one: Case | int) -> Result:
        """Run a case (or note a pending number) and keep its result."""
        result = run_case(one, self) if isinstance(one, Case) else pending(one)
        if isinstance(one, Case) and one.number in self.waivers:
            result = self._waive(one, result, self.waivers[one.number])
        self.report.results.append(result)
        self.report.whole = whole({result.id for result in self.report.results})
        return result

    def _waive(self, case: Case, result: Result, reason: str) -> Result:
        """A waived number must fail, at one level or part at least; the last of them tells."""
        if result.outcome is Outcome.FAILED:
            return replace(result, outcome=Outcome.WAIVED, reason=f"{reason} ({result.reason})")
        last = [other for other in catalogue() if other.number == case.number][-1]
        earlier = [r for r in self.report.results if r.number == case.number]
        if case is not last or any(r.outcome is Outcome.WAIVED for r in earlier):
            return result
        said = f"case {case.number} is waived ({reason}) and does not fail: take the waiver away"
        return replace(result, outcome=Outcome.FAILED, reason=said)


def plain(value: object) -> object:
    """A capability as a report can carry it."""
    if value in (math.inf, sys.maxsize):
        return "unbounded"
    if isinstance(value, msgspec.Struct):
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, Enum):
        return value.name.lower()
    return sorted(value) if isinstance(value, frozenset) else value  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]


def _methods(protocol: type) -> str:
    return ", ".join(name for name in vars(protocol) if not name.startswith("_"))


async def _probe(harness: Harness, broker: Broker) -> Probe:
    """Connect, and measure how long a message takes, for the window in which nothing more should come."""
    loop = asyncio.get_running_loop()
    transport = open_transport(broker.url)
    if harness.virtual:
        set_clock(transport, harness, LoopTime())
    try:
        await transport.connect(loop.time() + 10)
        topic = f"probe{secrets.token_hex(4)}"
        subscription = Subscription(topics={topic: None}, group="probe", consumer="probe")
        makes_topics = True
        try:
            source = await transport.subscribe(subscription, ignore)
        except NotFound:
            makes_topics = False
            await provide(transport, [topic])
            source = await transport.subscribe(subscription, ignore)
        took: deque[float] = deque(maxlen=5)
        ends = time.perf_counter() + WARMING
        for _ in range(6 if harness.embedded else 40):
            began = time.perf_counter()
            await transport.send([Outgoing(topic, b"probe")], loop.time() + 10)
            while not await source.receive(1):
                if time.perf_counter() - began > 10:
                    raise ConfigurationError(f"{redact(broker.url)}: a probe was sent and never received")
            took.append(time.perf_counter() - began)
            if began > ends and len(took) == took.maxlen:
                break
        await source.close()
        capabilities = transport.capabilities
        claims = {name: plain(getattr(capabilities, name)) for name in type(capabilities).__struct_fields__}
        return Probe(
            capabilities, lambda case: missing(case.gates, case.level, capabilities, transport),
            min(max(0.2, 20 * max(took)), 2.0), claims, makes_topics,
        )  # fmt: skip
    finally:
        await transport.close()


def run(
    harness: Harness, *, url: str = "", numbers: Collection[int] | None = None, seed: int | None = None,
    waivers: Mapping[int, str] = {}, environment: Mapping[str, str] = {}, shorten: bool = True,
    before: Callable[[Case], None] = lambda _: None, after: Callable[[Result], None] = lambda _: None,
) -> Report:  # fmt: skip
    """Run the cases of these numbers (None: all) and report. Raises what `Session.open` raises."""
    with Session.open(
        harness, url=url, seed=seed, waivers=waivers, environment=environment, shorten=shorten
    ) as session:
        for one in plan(numbers):
            if isinstance(one, Case):
                before(one)
            after(session.run(one))
        return session.report


def pending(number: int) -> Result:
    """The result of a number that waits for a feature."""
    name, waits = PENDING[number]
    return Result(
        number=number, name=name, level="bus", tier=tier(number), outcome=Outcome.PENDING, reason=f"waits for {waits}"
    )


def versions(broker: Broker) -> dict[str, str]:
    """Of the suite, the transport with its client, and the broker."""
    suite = version("switchgear")
    module, client = served(urlsplit(broker.url).scheme)
    return {"suite": suite, "transport": module, **({"client": client} if client else {}), "broker": broker.version}


def plan(numbers: Collection[int] | None) -> list[Case | int]:
    """Cases and pending numbers in order."""
    found: list[Case | int] = [*catalogue(), *PENDING]
    found = [one for one in found if numbers is None or number(one) in numbers]
    return sorted(found, key=number)


def whole(ids: Collection[str]) -> list[Tier]:
    """The tiers of which every case is among these."""
    every = [(number(one), one.id if isinstance(one, Case) else pending(one).id) for one in plan(None)]
    return [each for each in Tier if all(id in ids for n, id in every if tier(n) is each)]


def number(one: Case | int) -> int:
    return one if isinstance(one, int) else one.number


def run_case(case: Case, session: Session) -> Result:
    """Run one case in a loop of its own. Raises HarnessLied."""
    harness = session.harness
    began = time.perf_counter()

    def result(outcome: Outcome, reason: str = "", detail: str = "") -> Result:
        return Result(
            number=case.number, name=case.name, level=case.level, part=case.part, tier=case.tier, outcome=outcome,
            summary=case.summary, reason=reason, detail=detail, seconds=time.perf_counter() - began,
        )  # fmt: skip

    absent = session.probe.missing(case)
    refusable = case.level == "bus" and absent and set(absent) <= REFUSABLE
    if absent and not refusable:
        return result(Outcome.NOT_APPLICABLE, f"does not declare {', '.join(absent)}")
    powers = [power for power in case.powers if power not in harness.powers]
    if powers and harness.embedded and not case.embedded:
        return result(Outcome.NOT_APPLICABLE, f"there is no server: ctl:{', ctl:'.join(powers)}")
    if powers and not harness.embedded:
        return result(Outcome.NOT_RUN, f"the harness can't do ctl:{', ctl:'.join(powers)}")
    remarks: list[str] = []
    try:
        _run(case, session, remarks)
    except (HarnessLied, KeyboardInterrupt):
        raise
    except NotRun as reason:
        return result(Outcome.NOT_RUN, str(reason))
    except Unsupported as refusal:
        if refusable:
            return result(Outcome.REFUSED, str(refusal))
        return result(
            Outcome.FAILED, f"refused, and {', '.join(case.gates) or 'it'} is declared: {refusal}", trace(refusal)
        )
    except BaseException as error:
        return result(Outcome.FAILED, f"{type(error).__name__}: {error}".partition("\n")[0][:500], trace(error))
    if refusable:
        return result(Outcome.FAILED, f"{', '.join(absent)} is not declared, and nothing refused it at start")
    return result(Outcome.PASSED, "; ".join(remarks))


def trace(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def _run(case: Case, session: Session, remarks: list[str]) -> None:
    virtual = session.harness.virtual and case.virtual
    unseen: list[Mapping[str, Any]] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with asyncio.Runner(loop_factory=VirtualLoop if virtual else None) as runner:
            runner.run(_case(case, session, virtual, unseen, remarks))
            gc.collect()
    assert not unseen, f"an error that nobody looked at: {unseen[0].get('message')} {unseen[0].get('exception')!r}"
    bad = [str(w.message) for w in caught if issubclass(w.category, RuntimeWarning | ResourceWarning)]
    assert not bad, f"a warning: {bad[0]}"


def _of_a_stream(context: Mapping[str, Any]) -> bool:
    """Whether it is the error that asyncio's streams keep of a connection that was cut, for `wait_closed`.

    Their protocol looks at it when it is finalized, so that nobody is told; but where the collector finds protocol and
    future together, the future may come first. What a task raised is another matter.
    """
    future = context.get("future")
    return isinstance(context.get("exception"), OSError) and future is not None and not isinstance(future, asyncio.Task)


async def _case(
    case: Case, session: Session, virtual: bool, unseen: list[Mapping[str, Any]], remarks: list[str]
) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: None if _of_a_stream(context) else unseen.append(context))
    own, line = None, None
    try:
        if case.powers and not session.harness.embedded:  # what is done to it is done to no other case's broker
            if "proxy" in case.powers:
                line = await Line.open(session.harness.addresses)
            own = await asyncio.to_thread(session.start, line.addresses if line else ())
            if line:
                line.connect(own)
        context = Context(
            case, session.harness, own or session.broker, capabilities=session.probe.capabilities,
            namespace=f"t{case.number}{case.level[0]}{secrets.token_hex(3)}.", seed=session.seed,
            quiet=session.probe.quiet, virtual=virtual, line=line, environment=session.environment,
            makes_topics=session.probe.makes_topics,
        )  # fmt: skip
        context.remarks, context.shorten = remarks, session.shorten
        bound = asyncio.timeout(case.bound)
        try:
            async with bound:
                await case.body(context)
        except TimeoutError as error:
            if not bound.expired():
                raise
            raise AssertionError(f"it did not end within {case.bound:g} s") from error
        finally:
            async with asyncio.timeout(CLEANUP):
                await context.close()
            if line:  # else it is the harness that is wrong, whatever came of the case
                line.must_have_been_used(session.harness.name)
        await asyncio.sleep(0)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        if line is None and left:  # a receive that has its answer from a thread still has to look at it
            _, left = await asyncio.wait(left, timeout=ENDING)
            assert not left, f"tasks are left behind: {sorted(task.get_name() for task in left)}"
    finally:
        if line:
            await line.close()
        if own is not None:
            await asyncio.to_thread(own.close)
