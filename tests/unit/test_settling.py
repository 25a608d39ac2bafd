"""What is told to the broker: message by message, and by a watermark."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from switchgear.clock import LoopClock
from switchgear.consumer import Consumer
from switchgear.driver import Delivery, Order, Settlement, Verdict
from switchgear.errors import Lost, NotSent, Refused, TransportError, Unavailable
from switchgear.knobs import Retry
from switchgear.lanes import Lanes
from switchgear.message import Message
from switchgear.settling import Individual
from switchgear.watermark import Cumulative, Note
from tests.support.log import Host, Log, LogSource, Report, UpLink, program
from tests.support.serving import until
from tests.support.virtual import VirtualLoop, virtual

# ---- message by message ---------------------------------------------------------------------------------------------


class Broker:
    """Outcomes by token, for once."""

    def __init__(self) -> None:
        self.calls: list[list[tuple[Any, Verdict]]] = []
        self.outcomes: dict[Any, TransportError] = {}
        self.raises: list[BaseException] = []
        self.meanwhile: Callable[[], None] = lambda: None

    async def settle(self, batch: Sequence[Settlement]) -> Sequence[TransportError | None]:
        self.calls.append([(s.delivery.native, s.verdict) for s in batch])
        await asyncio.sleep(0.01)
        self.meanwhile()
        if self.raises:
            raise self.raises.pop(0)
        return [self.outcomes.pop(s.delivery.token, None) for s in batch]


def some(*tokens: int, native: str = "") -> list[Delivery]:
    return [Delivery("t", b"x", None, None, "", n, 1, native=f"{n}{native}") for n in tokens]


def individual() -> tuple[Individual, Lanes, Broker, Report]:
    lanes, broker, report = Lanes(Order.NONE), Broker(), Report()
    return Individual(lanes, broker, UpLink(), report), lanes, broker, report  # type: ignore[arg-type]


@virtual
async def test_settlements_leave_together_and_are_confirmed() -> None:
    settler, lanes, broker, report = individual()
    one, two, three = some(1, 2, 3)
    lanes.admit([one, two, three])
    running = asyncio.create_task(settler.run())
    settler.done.append(one)
    settler.kick(1)
    settler.put(Settlement(two, Verdict.RETRY, 3.0))
    settler.put(Settlement(three, Verdict.ACK))
    assert settler.due
    assert settler.pending() == {1, 2, 3}
    await asyncio.sleep(0.1)
    settler.stop()
    await running
    assert broker.calls == [[("1", Verdict.ACK), ("2", Verdict.RETRY), ("3", Verdict.ACK)]]
    assert report.acknowledged == 1  # the third was dismissed, not handled
    assert not lanes.held
    assert not settler.due


@virtual
async def test_mixed_outcomes() -> None:
    settler, lanes, broker, report = individual()
    lanes.admit(some(1, 2, 3, 4))
    settler.done.extend(lanes.held.values())
    broker.outcomes = {1: NotSent("busy"), 2: Lost("gone"), 3: Refused("no")}
    try:
        await settler.flush()
    except Unavailable:
        pass
    else:
        raise AssertionError("what is to be tried again must be told")
    assert (report.acknowledged, report.gone) == (1, [2, 3])
    assert [d.token for d in settler.done] == [1]
    assert list(lanes.held) == [1]
    await settler.flush()
    assert (report.acknowledged, report.gone) == (2, [2, 3])
    assert not lanes.held


@virtual
async def test_what_a_broken_connection_interrupts_is_kept() -> None:
    settler, lanes, broker, report = individual()
    one, two = some(1, 2)
    lanes.admit([one, two])
    broker.raises = [Unavailable("gone"), Unavailable("gone")]
    running = asyncio.create_task(settler.run())
    settler.done.append(one)
    settler.kick(1)
    await asyncio.sleep(0.012)
    settler.done.append(two)
    await asyncio.sleep(2)
    settler.stop()
    await running
    assert broker.calls[-1] == [("1", Verdict.ACK), ("2", Verdict.ACK)]
    assert report.acknowledged == 2
    assert not lanes.held


@virtual
async def test_what_comes_again_while_its_acknowledgement_is_under_way_is_settled_too() -> None:
    settler, lanes, broker, report = individual()
    (one,) = some(1)
    lanes.admit([one])
    lanes.ready.clear()
    settler.done.append(one)
    broker.meanwhile = lambda: None if broker.calls[1:] else void(lanes.admit(some(1, native="again")))
    await settler.flush()
    assert list(lanes.held) == [1]
    assert not lanes.ready
    await settler.flush()
    assert broker.calls == [[("1", Verdict.ACK)], [("1again", Verdict.ACK)]]
    assert not lanes.held
    assert not lanes.moved
    assert lanes.bytes == 0
    assert report.acknowledged == 1


@virtual
async def test_what_comes_again_while_it_is_given_back_is_handled() -> None:
    settler, lanes, broker, _ = individual()
    (one,) = some(1)
    lanes.admit([one])
    lanes.ready.clear()
    settler.put(Settlement(one, Verdict.RELEASE))
    broker.meanwhile = lambda: void(lanes.admit(some(1, native="again")))
    await settler.flush()
    assert [d.native for d in lanes.ready] == ["1again"]
    assert list(lanes.held) == [1]
    assert not lanes.moved


@virtual
async def test_what_was_lost_is_not_settled_and_what_took_its_place_is() -> None:
    settler, lanes, broker, report = individual()
    one, two = some(1, 2)
    lanes.admit([one, two])
    lanes.ready.clear()
    lanes.lose([1, 2], {1, 2})
    lanes.admit(some(2, native="again"))
    settler.done += [one, two]
    await settler.flush()
    assert broker.calls == [[("2again", Verdict.ACK)]]
    assert report.acknowledged == 1
    assert not lanes.held
    assert not lanes.moved


def void(_: object) -> None: ...


# ---- by a watermark -------------------------------------------------------------------------------------------------


class Owner:
    """One owner of a log's lane, as the consumer would be."""

    def __init__(self, log: Log) -> None:
        self.source = LogSource(log, lambda *_: asyncio.sleep(0))
        self.source.give(0)
        self.lanes = Lanes(Order.NONE)
        self.failures: dict[Any, int] = {}
        self.report = Report()
        self.settler = Cumulative(
            self.lanes, self.source, LoopClock(), UpLink(), self.report, failures=self.failures
        )  # fmt: skip

    async def receive(self, limit: int) -> list[int]:
        batch = self.settler.admit(await self.source.receive(limit)) if limit else []
        self.lanes.admit(batch)
        return [d.token[-1] for d in batch]  # type: ignore[index]

    def finish(self, offset: int) -> None:
        self.settler.done.append(self.lanes.held["t", 0, offset])


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("receive"), st.integers(1, 5)),
        st.tuples(st.just("finish"), st.integers(0, 30)),
        st.tuples(st.just("fail"), st.integers(0, 30)),
        st.tuples(st.just("flush"), st.just(0)),
        st.tuples(st.just("rewind"), st.just(0)),
        st.tuples(st.just("crash"), st.just(0)),
    ),
    max_size=60,
)


@given(steps=STEPS, note=st.sampled_from([0, 20, 60, 4096]))
@settings(max_examples=150, deadline=None)
def test_nothing_unfinished_is_ever_behind_the_watermark(steps: list[tuple[str, int]], note: int) -> None:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(_watermark(steps, note))


async def _watermark(steps: list[tuple[str, int]], note: int) -> None:
    log = Log(note=note)
    partition = log.partitions[0]
    for n in range(30):
        log.append(None, b"%d" % n)
    finished: set[int] = set()  # handled by anybody
    confirmed: set[int] = set()  # of those, told in a note or by the watermark
    owner = Owner(log)
    mine: set[int] = set()
    fences: list[int] = []
    for step, n in steps:
        open_ = sorted(token[-1] for token in owner.lanes.held)  # type: ignore[index]
        open_ = [o for o in open_ if ("t", 0, o) not in owner.settler.pending()]
        if step == "receive":
            came = await owner.receive(n)
            assert not confirmed & set(came), "finished, told, and handed out again"
            mine.update(came)
        elif step == "finish" and open_:
            offset = open_[n % len(open_)]
            owner.finish(offset)
            finished.add(offset)
        elif step == "fail" and open_:
            held = owner.lanes.held["t", 0, open_[n % len(open_)]]
            owner.failures[held.token] = owner.failures.get(held.token, 0) + 1
            owner.settler.failed(held)
        elif step == "flush":
            await owner.settler.flush()
            if note == 4096 and partition.note:
                told = msgspec.json.decode(partition.note, type=Note)
                ahead = {told.base + i for low, high in told.done for i in range(low, high + 1)}
                assert ahead <= finished
                assert told.fence >= (fences[-1] if fences else 0)
                fences.append(told.fence)
                confirmed = set(range(partition.committed)) | ahead
                head = next((d for d in owner.lanes.held.values() if d.token[-1] == told.base), None)  # type: ignore[index]
                if head is not None:
                    assert told.attempts == owner.failures.get(head.token, 0)
        elif step == "rewind":
            owner.source.rewind()
        elif step == "crash":
            await owner.source.close()
            owner = Owner(log)
            mine = set()
        assert set(range(partition.committed)) <= finished, "acknowledged before it was finished"
        for lane in owner.settler._open.values():
            assert lane.size >= 0
    while await owner.receive(5):  # whoever comes last gets all that is not finished
        pass
    left = {token[-1] for token in owner.lanes.held} | {d.token[-1] for d in owner.settler.done}  # type: ignore[index,misc]
    assert set(range(30)) - finished <= left | set()
    for token in sorted(owner.lanes.held):  # type: ignore[type-var]
        if token not in owner.settler.pending():
            owner.finish(token[-1])  # type: ignore[index]
    await owner.settler.flush()
    assert partition.committed == 30
    assert not owner.lanes.held
    assert all(not lane.track for lane in owner.settler._open.values())


@virtual
async def test_a_new_owner_takes_attempts_fence_and_what_is_finished_ahead_from_the_note() -> None:
    log = Log()
    for n in range(10):
        log.append(None, b"%d" % n)
    first = Owner(log)
    await first.receive(10)
    for n in (0, 3, 4, 7):
        first.finish(n)
    head = first.lanes.held["t", 0, 1]
    first.failures[head.token] = 2
    await first.settler.flush()
    second = Owner(log)
    assert await second.receive(10) == [1, 2, 5, 6, 8, 9]
    assert second.failures == {("t", 0, 1): 2}
    assert second.lanes.held["t", 0, 1].fence == head.fence + 1
    for n in (1, 2, 5, 6, 8, 9):
        second.finish(n)
    await second.settler.flush()
    assert log.partitions[0].committed == 10


@virtual
async def test_a_fence_is_stored_before_anything_is_handled() -> None:
    log = Log()
    log.append(None, b"0")
    fences: list[int] = []
    for _ in range(3):  # owners that die before they finish anything
        owner = Owner(log)
        batch = await owner.source.receive(1)
        await owner.settler.enter(batch)
        stored = msgspec.json.decode(log.partitions[0].note, type=Note)
        (delivery,) = owner.settler.admit(batch)
        assert stored.fence == delivery.fence
        fences.append(delivery.fence)
    assert fences == [1, 2, 3]
    assert log.partitions[0].committed == 0


@virtual
async def test_entering_keeps_what_the_note_tells_and_is_tried_again() -> None:
    log = Log()
    for n in range(4):
        log.append(None, b"%d" % n)
    first = Owner(log)
    await first.receive(4)
    for n in (0, 2):
        first.finish(n)
    first.failures["t", 0, 1] = 4
    await first.settler.flush()
    for _ in range(2):
        owner = Owner(log)
        batch = await owner.source.receive(4)
        owner.source.faults = [Unavailable("gone")]
        with pytest.raises(Unavailable):
            await owner.settler.enter(batch)
        await owner.settler.enter(batch)
        assert [d.token[-1] for d in owner.settler.admit(batch)] == [1, 3]  # type: ignore[index]
        assert owner.failures == {("t", 0, 1): 4}
        assert log.partitions[0].committed == 1


@virtual
async def test_what_is_finished_ahead_does_not_stay_in_memory() -> None:
    log = Log()
    for _ in range(1000):
        log.append(None, b"x" * 1000)
    owner = Owner(log)
    await owner.receive(1000)
    for n in [0, *range(2, 1000)]:
        owner.finish(n)
    await owner.settler.flush()
    (lane,) = owner.settler._open.values()
    assert len(lane.track) == 2  # what is not finished, and one for all that is
    assert lane.size == 999
    assert owner.settler.full(999) == {"t/0#1"}
    assert not owner.settler.full(1000)
    owner.finish(1)
    await owner.settler.flush()
    assert log.partitions[0].committed == 1000
    assert lane.size == 0


@virtual
async def test_a_failed_commit_is_made_again_and_a_broken_note_is_no_note() -> None:
    log = Log()
    log.partitions[0].note = '{"b": "nonsense"'
    for n in range(3):
        log.append(None, b"%d" % n)
    owner = Owner(log)
    assert await owner.receive(3) == [0, 1, 2]
    owner.finish(0)
    owner.source.faults = [Unavailable("gone")]
    running = asyncio.create_task(owner.settler.run())
    owner.settler.kick(1)
    await asyncio.sleep(5)
    assert log.partitions[0].commits == [1]
    assert owner.report.acknowledged == 1
    owner.settler.stop()
    await running


# ---- a consumer on a log --------------------------------------------------------------------------------------------


def a_consumer(log: Log, handle: Any, **knobs: Any) -> tuple[Consumer, Host]:
    host = Host(log)
    consumer = Consumer(program(handle, **knobs), host)
    consumer.start()
    return consumer, host


@virtual
async def test_a_lane_lost_and_assigned_again_while_its_handler_runs() -> None:
    log = Log()
    gate = asyncio.Event()
    seen: list[bytes] = []

    async def handle(message: Message[Any]) -> None:
        seen.append(message.body)
        if message.body == b"0":
            await gate.wait()

    consumer, host = a_consumer(log, handle)
    await consumer.ready
    source = log.sources[0]
    for n in range(3):
        log.append("k", b"%d" % n)
    source.give(0)
    await until(lambda: seen)
    await source.take(0, lost=True)
    assert list(consumer.lanes.held) == [("t", 0, 0)]
    source.give(0)
    await until(lambda: len(consumer.lanes.held) == 3)
    await asyncio.sleep(5)
    assert seen == [b"0"]  # no second handler, and nobody overtakes it
    assert log.partitions[0].committed == 0
    gate.set()
    await until(lambda: log.partitions[0].committed == 3)
    assert seen == [b"0", b"1", b"2"]
    assert host.events == {"handled": 3, "duplicate": 1}
    assert not consumer.lanes.held
    assert not consumer.lanes.moved
    assert not consumer.lanes.chains
    await consumer.stop(asyncio.get_running_loop().time() + 5)


@virtual
async def test_what_was_received_of_a_lane_that_is_taken_away_meanwhile_is_not_handled() -> None:
    log = Log()
    seen: list[bytes] = []

    async def handle(message: Message[Any]) -> None:
        seen.append(message.body)

    consumer, _ = a_consumer(log, handle)
    await consumer.ready
    source = log.sources[0]
    source.slow = 1.0
    log.append("k", b"0")
    source.give(0)
    await asyncio.sleep(0.5)  # the lane is being entered
    await source.take(0, lost=True)
    await asyncio.sleep(5)
    assert not seen
    assert not consumer.lanes.held
    source.slow = 0.0
    source.give(0)
    await until(lambda: seen == [b"0"])
    await consumer.stop(asyncio.get_running_loop().time() + 5)
    assert log.partitions[0].committed == 1


@virtual
async def test_a_lane_that_is_taken_away_is_settled_first_and_nothing_of_it_begins() -> None:
    log = Log(2)
    gate = asyncio.Event()
    seen: list[bytes] = []

    async def handle(message: Message[Any]) -> None:
        seen.append(message.body)
        if message.body == b"slow":
            await gate.wait()

    consumer, _ = a_consumer(log, handle, concurrency=2)
    await consumer.ready
    source = log.sources[0]
    log.append("k", b"quick")
    log.append("k", b"slow")
    log.append("k", b"later")
    log.append("k", b"never")
    source.give(0)
    await until(lambda: seen == [b"quick", b"slow"])
    asyncio.get_running_loop().call_later(2, gate.set)
    await source.take(0, lost=False)
    assert log.partitions[0].committed == 2
    assert seen == [b"quick", b"slow"]
    assert not consumer.lanes.held
    assert not consumer.lanes.chains
    log.append("k", b"other", partition=1)
    source.give(1)
    await until(lambda: seen[2:] == [b"other"])
    await consumer.stop(asyncio.get_running_loop().time() + 5)
    assert log.partitions[1].committed == 1


@virtual
async def test_retries_hold_the_watermark_and_only_their_lane_is_paused_by_the_window() -> None:
    log = Log(2)
    seen: list[bytes] = []

    async def handle(message: Message[Any]) -> None:
        if message.body == b"bad" and message.attempt < 4:
            raise ValueError("no")
        seen.append(message.body)

    consumer, host = a_consumer(log, handle, window=50, retry=Retry(base=400, cap=400), concurrency=4)
    consumer.draw.uniform = lambda low, high: high  # type: ignore[method-assign,assignment]
    await consumer.ready
    source = log.sources[0]
    log.append("bad", b"first")
    log.append("bad", b"bad")
    for n in range(300):
        log.append(f"k{n}", b"0", partition=0)
        log.append(f"k{n}", b"1", partition=1)
    source.give(0, 1)
    await asyncio.sleep(300)
    assert seen.count(b"1") == 300  # the other lane goes on
    assert 49 <= seen.count(b"0") < 50 + 300
    assert log.partitions[0].committed == 1
    assert consumer.full == {"t/0#1"}
    assert "paused" in consumer.detail
    (lane,) = [lane for name, lane in consumer.settler._open.items() if name == "t/0#1"]  # type: ignore[attr-defined]
    assert lane.size < 50 + 1000
    noted = msgspec.json.decode(log.partitions[0].note, type=Note)
    assert noted.attempts == 1
    await until(lambda: log.partitions[0].committed == 302, 4000)
    assert seen.count(b"bad") == 1
    assert not consumer.full
    assert host.events["retried"] == 3
    await consumer.stop(asyncio.get_running_loop().time() + 5)


@virtual
async def test_a_drain_commits_what_was_done() -> None:
    log = Log()
    seen: list[bytes] = []

    async def handle(message: Message[Any]) -> None:
        seen.append(message.body)
        await asyncio.sleep(0.5)

    consumer, _ = a_consumer(log, handle, concurrency=1)
    await consumer.ready
    for n in range(10):
        log.append("k", b"%d" % n)
    log.sources[0].give(0)
    await until(lambda: len(seen) == 3)
    await consumer.stop(asyncio.get_running_loop().time() + 5)
    assert len(seen) == 3
    assert log.partitions[0].committed == 3


@pytest.mark.parametrize("seed", range(12))
@virtual
async def test_whatever_happens_to_the_lanes_nothing_is_lost_or_overtaken(seed: int) -> None:
    draw = random.Random(seed)
    log = Log(3, note=draw.choice([0, 60, 4096]), revoke_within=draw.choice([0.1, 5.0]))
    first: dict[bytes, list[int]] = defaultdict(list)
    done: set[bytes] = set()
    running: set[bytes] = set()
    wrong: list[bytes] = []

    async def handle(message: Message[Any]) -> None:
        key, n = message.body.split(b"/")
        if key in running:
            wrong.append(message.body)
        running.add(key)
        try:
            if int(n) not in first[key]:
                first[key].append(int(n))
            await asyncio.sleep(draw.choice([0, 0, 0.01, 0.3, 3.0]))
            if draw.random() < 0.15:
                raise ValueError("no")
            done.add(message.body)
        finally:
            running.discard(key)

    consumer, host = a_consumer(log, handle, concurrency=4, window=40, retry=Retry(attempts=None, base=0.1, cap=2.0))
    await consumer.ready
    total = 0
    for _ in range(60):
        source = log.sources[-1]
        match draw.choice(["append", "append", "give", "give", "take", "lose", "rewind", "fault", "dead"]):
            case "append":
                for _ in range(draw.randrange(20)):
                    partition = draw.randrange(3)
                    key = f"{partition}{draw.choice('abc')}"
                    log.append(key, f"{key}/{total}".encode(), partition)
                    total += 1
            case "give":
                source.give(*(n for n in range(3) if n not in {p for p, _ in source.lanes.values()}))
            case "take":
                await source.take(draw.randrange(3), lost=False)
            case "lose":
                await source.take(draw.randrange(3), lost=True)
            case "rewind":
                source.rewind()
            case "fault":
                source.faults.append(Unavailable("gone"))
            case "dead":
                source.faults.append(Lost("gone"))
        for partition in log.partitions:
            told = [body for _, body in partition.messages[: partition.committed]]
            assert set(told) <= done, "acknowledged and never handled"
        await asyncio.sleep(draw.choice([0, 0.1, 2.0]))
    for _ in range(2000):
        if all(p.committed == len(p.messages) for p in log.partitions):
            break
        source = log.sources[-1]
        source.give(*(n for n in range(3) if n not in {p for p, _ in source.lanes.values()}))
        await asyncio.sleep(1)
    assert len(done) == total
    for found in first.values():
        assert found == sorted(found), "overtaken"
    assert not wrong, "two of a key at once"
    await until(lambda: not consumer.lanes.held)
    assert not consumer.lanes.chains
    assert not consumer.lanes.moved
    assert consumer.lanes.bytes == 0
    assert host.events["retried"] > 0 or total < 20
    await consumer.stop(asyncio.get_running_loop().time() + 5)
