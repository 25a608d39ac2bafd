"""Running cases: gates, time bounds, brokers of their own for what is done to brokers, and what is an outcome."""

from __future__ import annotations

import asyncio
import gc
import secrets
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from switchgear.driver import Capabilities, Clocked, Outgoing, Subscription
from switchgear.errors import ConfigurationError, Unsupported
from switchgear.plugins import open_transport, redact

from .case import PENDING, Case, Outcome, tier
from .catalogue import catalogue
from .context import Context, HarnessLied, ignore
from .gates import REFUSABLE, missing
from .harness import POWERS, Broker, Harness, NotRun, Setup
from .proxy import Line
from .report import Report, Result
from .virtual import LoopTime, VirtualLoop

CLEANUP = 20.0  # seconds to close what a case had open


@dataclass
class Probe:
    """What is known of a broker before the first case."""

    capabilities: Capabilities
    missing: Callable[[Case], list[str]]
    quiet: float
    claims: dict[str, object]


@dataclass
class Bench:
    """A harness with its shared broker; cases that do something to a broker get one of their own."""

    harness: Harness
    seed: int
    url: str
    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    broker: Broker | None = None
    probe: Probe | None = None
    started: int = 0

    def start(self, advertise: Iterable[tuple[str, int]] = ()) -> Broker:
        """Another broker in a folder of its own. Raises NotRun, BrokerFailed, HarnessLied."""
        self.started += 1
        folder = self.folder / f"broker{self.started}"
        folder.mkdir()
        broker = self.harness.start(Setup(folder=folder, url=self.url, advertise=tuple(advertise)))
        for power in sorted(self.harness.powers):
            if power not in POWERS or not isinstance(broker, POWERS[power]):
                broker.close()
                needs = ", ".join(POWERS) if power not in POWERS else _methods(POWERS[power])
                raise HarnessLied(f"the harness {self.harness.name!r} claims ctl:{power} and has it not: needs {needs}")
        return broker

    def shared(self) -> tuple[Broker, Probe]:
        """The broker of all cases that leave it alone, and what it declares; raises what connecting raises."""
        if self.broker is None or self.probe is None:
            if self.harness.embedded and self.harness.powers & {"kill", "pause", "restart", "proxy"}:
                raise HarnessLied(
                    f"the harness {self.harness.name!r} says embedded=True and claims "
                    f"{', '.join(sorted(self.harness.powers))}: what has no server can't be killed, paused or cut off"
                )
            self.broker = self.start()
            with asyncio.Runner(loop_factory=VirtualLoop if self.harness.virtual else None) as runner:
                self.probe = runner.run(_probe(self.harness, self.broker))
        return self.broker, self.probe

    def close(self) -> None:
        if self.broker is not None:
            self.broker.close()


def _methods(protocol: type) -> str:
    return ", ".join(name for name in vars(protocol) if not name.startswith("_"))


async def _probe(harness: Harness, broker: Broker) -> Probe:
    """Connect, and measure how long a message takes, for the window in which nothing more should come."""
    loop = asyncio.get_running_loop()
    transport = open_transport(broker.url)
    if harness.virtual:
        if not isinstance(transport, Clocked):
            raise HarnessLied(
                f"the harness {harness.name!r} says virtual=True, and its transport takes no clock: it has no set_clock"
            )
        transport.set_clock(LoopTime())
    try:
        await transport.connect(loop.time() + 10)
        topic = f"probe{secrets.token_hex(4)}"
        source = await transport.subscribe(Subscription(topics={topic: None}, group="probe", consumer="probe"), ignore)
        longest = 0.0
        for _ in range(5):
            began = time.perf_counter()
            await transport.send([Outgoing(topic, b"probe")], loop.time() + 10)
            while not await source.receive(1):
                if time.perf_counter() - began > 10:
                    raise ConfigurationError(f"{redact(broker.url)}: a probe was sent and never received")
            longest = max(longest, time.perf_counter() - began)
        await source.close()
        capabilities = transport.capabilities
        claims = {name: getattr(capabilities, name) for name in type(capabilities).__dataclass_fields__}
        return Probe(
            capabilities, lambda case: missing(case.gates, case.level, capabilities, transport),
            min(max(0.2, 20 * longest), 2.0), claims,
        )  # fmt: skip
    finally:
        await transport.close()


def run(
    harness: Harness, *, url: str = "", numbers: Collection[int] | None = None, seed: int | None = None,
    waivers: Mapping[int, str] = {}, environment: Mapping[str, str] = {},
    before: Callable[[Case], None] = lambda _: None, after: Callable[[Result], None] = lambda _: None,
) -> Report:  # fmt: skip
    """Run the cases of these numbers (None: all) and report.

    Raises ConfigurationError (an unknown scheme, a harness that claims what it does not do), NotRun (the broker can't
    be had), BrokerFailed (it does not start), TransportError (it can't be reached).
    """
    seed = secrets.randbits(32) if seed is None else seed
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="switchgear-")))
        bench = Bench(harness, seed, url, folder, environment)
        stack.callback(bench.close)
        broker, probe = bench.shared()
        report = Report(
            harness=harness.name, url=redact(broker.url), seed=seed, embedded=harness.embedded,
            emulator=harness.emulator, storage=harness.storage, claims=probe.claims,
            versions={"broker": broker.version},
        )  # fmt: skip
        for one in plan(numbers):
            if isinstance(one, Case):
                before(one)
                result = run_case(one, bench, waivers.get(one.number))
            else:
                name, waits = PENDING[one]
                result = Result(
                    number=one,
                    name=name,
                    level="bus",
                    tier=tier(one),
                    outcome=Outcome.PENDING,
                    reason=f"waits for {waits}",
                )
            report.results.append(result)
            after(result)
        return report


def plan(numbers: Collection[int] | None) -> list[Case | int]:
    """Cases and pending numbers in order."""
    found: list[Case | int] = [*catalogue(), *PENDING]
    found = [one for one in found if numbers is None or number(one) in numbers]
    return sorted(found, key=number)


def number(one: Case | int) -> int:
    return one if isinstance(one, int) else one.number


def run_case(case: Case, bench: Bench, waiver: str | None = None) -> Result:
    """Run one case in a loop of its own."""
    _, probe = bench.shared()
    harness = bench.harness
    began = time.perf_counter()

    def result(outcome: Outcome, reason: str = "", detail: str = "") -> Result:
        if waiver is not None and outcome in (Outcome.FAILED, Outcome.PASSED):
            if outcome is Outcome.FAILED:
                outcome, reason = Outcome.WAIVED, f"{waiver} ({reason})"
            else:
                outcome, reason = Outcome.FAILED, f"it is waived ({waiver}) and passed: take the waiver away"
        return Result(
            number=case.number, name=case.name, level=case.level, part=case.part, tier=case.tier, outcome=outcome,
            reason=reason, detail=detail, seconds=time.perf_counter() - began,
        )  # fmt: skip

    absent = probe.missing(case)
    refusable = case.level == "bus" and absent and set(absent) <= REFUSABLE
    if absent and not refusable:
        return result(Outcome.NOT_APPLICABLE, f"does not declare {', '.join(absent)}")
    powers = [power for power in case.powers if power not in harness.powers]
    if powers and harness.embedded and not case.embedded:
        return result(Outcome.NOT_APPLICABLE, f"there is no server: ctl:{', ctl:'.join(powers)}")
    if powers and not harness.embedded:
        return result(Outcome.NOT_RUN, f"the harness can't do ctl:{', ctl:'.join(powers)}")
    try:
        _run(case, bench)
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
    return result(Outcome.PASSED)


def trace(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def _run(case: Case, bench: Bench) -> None:
    virtual = bench.harness.virtual and case.virtual
    unseen: list[Mapping[str, Any]] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with asyncio.Runner(loop_factory=VirtualLoop if virtual else None) as runner:
            runner.run(_case(case, bench, virtual, unseen))
            gc.collect()
    assert not unseen, f"an error that nobody looked at: {unseen[0].get('message')} {unseen[0].get('exception')!r}"
    bad = [str(w.message) for w in caught if issubclass(w.category, RuntimeWarning | ResourceWarning)]
    assert not bad, f"a warning: {bad[0]}"


async def _case(case: Case, bench: Bench, virtual: bool, unseen: list[Mapping[str, Any]]) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: unseen.append(context))
    _, probe = bench.shared()
    own, line = None, None
    try:
        if case.powers and not bench.harness.embedded:  # what is done to it is done to no other case's broker
            if "proxy" in case.powers:
                line = await Line.open(bench.harness.addresses)
            own = await asyncio.to_thread(bench.start, line.addresses if line else ())
            if line:
                line.connect(own)
        context = Context(
            case, bench.harness, own or bench.shared()[0], capabilities=probe.capabilities,
            namespace=f"t{case.number}{case.level[0]}{secrets.token_hex(3)}.", seed=bench.seed, quiet=probe.quiet,
            virtual=virtual, line=line, environment=bench.environment,
        )  # fmt: skip
        try:
            async with asyncio.timeout(case.bound):
                await case.body(context)
        except TimeoutError as error:
            raise AssertionError(f"it did not end within {case.bound:g} s") from error
        finally:
            async with asyncio.timeout(CLEANUP):
                await context.close()
        if line:
            line.must_have_been_used(bench.harness.name)
        await asyncio.sleep(0)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        if line is None:
            assert not left, f"tasks are left behind: {sorted(task.get_name() for task in left)}"
    finally:
        if line:
            await line.close()
        if own is not None:
            await asyncio.to_thread(own.close)
