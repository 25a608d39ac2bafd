"""Retry and delay where the broker has neither: copies to the group's return address, and delay topics."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from switchgear import Bus, DeadLetter, Message, Retry, RetryAfter, Topic
from switchgear.driver import Capabilities, Order, Outgoing, Provisioner, Resource
from switchgear.emulate import retry_topics
from switchgear.emulate.delay import TIERS, WINDOW, Delays, ready_at, tier_for
from switchgear.errors import NotSent, Refused, Unavailable, Unsupported
from switchgear.guarantees import explain
from switchgear.settings import Settings
from switchgear_conformance.schemes import installed
from switchgear_conformance.virtual import LoopTime
from switchgear_conformance.weakened import weak_url
from tests.support.scripted import ScriptedTransport
from tests.support.serving import Events, fresh, until
from tests.support.virtual import virtual

mails = Topic("mails", str)
keyed = Topic("keyed", str, key=lambda body: body[0], order="key")
KINDS = pytest.mark.parametrize("kind", ["", "log"])


@pytest.fixture(autouse=True)
def weak(tmp_path: Path) -> Any:
    """The scheme of weakened transports."""
    with installed(tmp_path):
        yield


def a_bus(url: str, *, events: Events | None = None, **more: Any) -> Bus:
    bus = Bus(url, name="app", config={}, observers=[events] if events else [], **more)
    bus._test_clock = LoopTime()
    return bus


def sent(bus: Bus) -> list[Outgoing]:
    """What the bus's transport stores from now on."""
    assert bus._open is not None
    found: list[Outgoing] = []
    transport: Any = bus._open.transport
    send = transport.send

    async def watched(batch: Sequence[Outgoing], deadline: float) -> Any:
        outcomes = await send(batch, deadline)
        found.extend(m for m, outcome in zip(batch, outcomes, strict=True) if outcome is None)
        return outcomes

    transport.send = watched
    return found


def failing(bus: Bus, seen: list[tuple[str, int, float]], waits: Sequence[float], **knobs: Any) -> None:
    """A handler that asks for its messages again, after each of these times."""

    @bus.subscribe(mails, group="sender", **knobs)
    async def handle(message: Message[str]) -> None:
        seen.append((message.body, message.attempt, asyncio.get_running_loop().time()))
        if message.attempt <= len(waits):
            raise RetryAfter(waits[message.attempt - 1])


# ---- who needs copies -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capabilities", "order", "group", "delivery", "copies"),
    [
        ({"retry_delay": math.inf, "counting": "exact"}, Order.NONE, "g", "at_least_once", False),
        ({"retry_delay": math.inf, "counting": "none"}, Order.NONE, "g", "at_least_once", True),
        ({"retry_delay": 600.0, "counting": "exact"}, Order.NONE, "g", "at_least_once", True),
        ({"retry_delay": math.inf, "counting": "exact", "waiting": 100}, Order.NONE, "g", "at_least_once", True),
        ({"retry_delay": None}, Order.NONE, "g", "at_least_once", True),
        ({"retry_delay": None}, Order.KEY, "g", "at_least_once", False),
        ({"retry_delay": None}, Order.NONE, None, "at_least_once", False),
        ({"retry_delay": None}, Order.NONE, "g", "at_most_once", False),
    ],
)
def test_who_needs_copies(
    capabilities: dict[str, Any], order: Order, group: str | None, delivery: str, copies: bool
) -> None:
    assert retry_topics.needed(Settings(delivery=delivery), Capabilities(**capabilities), order, group) is copies


# ---- retry ----------------------------------------------------------------------------------------------------------


@KINDS
@virtual
async def test_a_failed_message_is_copied_and_counted(kind: str) -> None:
    url, seen = weak_url(fresh(), kind), list[tuple[str, int, float]]()
    bus = a_bus(url)
    failing(bus, seen, (5.0, 0.3, 40.0), retry=Retry(attempts=9))
    async with bus.serving():
        began = asyncio.get_running_loop().time()
        stored = sent(bus)
        id_ = await bus.publish(mails, "a", headers={"x": "y"})
        await until(lambda: len(seen) == 4)
    assert [(body, attempt) for body, attempt, _ in seen] == [("a", n) for n in (1, 2, 3, 4)]
    assert [round(at - began, 1) for _, _, at in seen] == [0.0, 5.0, 5.3, 45.3]
    assert stored[0].topic == "mails"
    hops = [m.topic for m in stored[1:]]
    back = "sg.retry.mails.sender"
    assert hops == ["sg.delay.5s", back, "sg.delay.30s", "sg.delay.5s", "sg.delay.5s", back]  # 0.3 s were waited here
    copies = [dict(m.headers) for m in stored if m.topic == back]
    assert [h["ce-sgattempt"] for h in copies] == [b"2", b"4"]
    assert {(h["ce-id"], h["x"], h["ce-sgtopic"], h["ce-sgposition"]) for h in copies} == {
        (id_.encode(), b"y", b"mails", b"1")
    }
    assert len({h["ce-sgfirstfailure"] for h in copies}) == len({h["ce-sgtime"] for h in copies}) == 1
    assert len({m.dedup for m in stored}) == len(stored), "two sends have one token"


@KINDS
@virtual
async def test_the_rest_goes_on_and_another_group_sees_nothing(kind: str) -> None:
    bus, seen, other = a_bus(weak_url(fresh(), kind)), list[tuple[str, int, float]](), list[str]()
    failing(bus, seen, (2.0,), window=200 if kind else 20)  # of a lane that was full a log is asked once a second

    @bus.subscribe(mails, group="archive")
    async def keep(message: Message[str]) -> None:
        assert message.attempt == 1
        other.append(message.body)

    async with bus.serving():
        began = asyncio.get_running_loop().time()
        await bus.publish_many(mails, [str(n) for n in range(100)])
        await until(lambda: len(seen) == 200)
        await asyncio.sleep(10)
    assert max(at for _, attempt, at in seen if attempt == 1) - began < 1.0, "a waiting message held up others"
    assert sorted(int(body) for body, attempt, _ in seen if attempt == 2) == list(range(100))
    assert sorted(map(int, other)) == list(range(100))


@virtual
async def test_short_waits_are_copied_too_when_many_wait_here() -> None:
    bus, seen = a_bus(weak_url(fresh())), list[tuple[str, int, float]]()
    failing(bus, seen, (0.5,), window=20)
    async with bus.serving():
        stored = sent(bus)
        await bus.publish_many(mails, [str(n) for n in range(100)])
        await until(lambda: len(seen) == 200)
        copies = [m for m in stored if m.topic == "sg.retry.mails.sender"]
    assert 80 <= len(copies) <= 95


@virtual
async def test_a_dead_letter_of_a_copy_tells_of_the_original() -> None:
    bus, letters = a_bus(weak_url(fresh())), list[Message[str]]()

    @bus.subscribe(mails, group="sender", retry=Retry(attempts=3), dead_letter=DeadLetter(topic="graves"))
    async def handle(message: Message[str]) -> None:
        raise RetryAfter(2)

    @bus.subscribe(Topic("graves", str), group="digger")
    async def dig(message: Message[str]) -> None:
        letters.append(message)
        if message.attempt < 3:  # a copy of a dead letter counts anew, and goes on telling what it is
            raise RetryAfter(2)

    async with bus.serving():
        began = bus._test_clock.now()  # type: ignore[union-attr]
        await bus.publish(mails, "x")
        await bus.publish(mails, "a")
        await until(lambda: len(letters) == 6)
        ours = [m for m in letters if m.body == "a"]
        assert [m.attempt for m in ours] == [1, 2, 3]
        for m in ours:
            said = m._attributes().extensions
            assert (said["sgtopic"], said["sggroup"], said["sgposition"]) == ("mails", "sender", "2")
            assert m._attributes().first_failure == pytest.approx(began if m is ours[0] else began + 4, abs=0.1)


@virtual
async def test_a_plain_message_keeps_its_id() -> None:
    plain = Topic("plain", str, envelope="none")
    bus, ids = a_bus(weak_url(fresh())), list[tuple[str, float, int]]()

    @bus.subscribe(plain, group="sender")
    async def handle(message: Message[str]) -> None:
        ids.append((message.id, message.time.timestamp(), message.attempt))
        if message.attempt < 3:
            raise RetryAfter(1)

    async with bus.serving():
        await bus.publish(plain, "a")
        await until(lambda: len(ids) == 3)
    assert [attempt for _, _, attempt in ids] == [1, 2, 3]
    assert {id_ for id_, _, _ in ids} == {"plain/1"}
    assert ids[2][1] == pytest.approx(ids[0][1], abs=0.002), "its time is that of the copy"


@virtual
async def test_a_structured_event_is_counted() -> None:
    bus, tries = a_bus(weak_url(fresh())), list[tuple[str, int, str]]()

    @bus.subscribe(mails, group="sender")
    async def handle(message: Message[str]) -> None:
        tries.append((message.id, message.attempt, message.body))
        if message.attempt < 3:
            raise RetryAfter(1)

    async with bus.serving():
        assert bus._open is not None
        event = b'{"specversion":"1.0","id":"7","source":"/s","type":"t","data":"a"}'
        foreign = Outgoing("mails", event, b"application/cloudevents+json", [], marked=True)
        await bus._open.transport.send([foreign], math.inf)
        await until(lambda: len(tries) == 3)
    assert tries == [("7", 1, "a"), ("7", 2, "a"), ("7", 3, "a")]


@virtual
async def test_what_cannot_be_copied_is_held() -> None:
    bus, seen = a_bus(weak_url(fresh())), list[tuple[str, int, float]]()
    failing(bus, seen, (2.0,))
    async with bus.serving():
        assert bus._open is not None
        transport: Any = bus._open.transport
        send, refusals = transport.send, 0

        async def refuse(batch: Sequence[Outgoing], deadline: float) -> Any:
            nonlocal refusals
            if batch[0].topic.startswith("sg."):
                refusals += 1
                return [Refused("no right to write there")]
            return await send(batch, deadline)

        transport.send = refuse
        await bus.publish(mails, "a")
        await until(lambda: len(seen) == 2)
    assert [attempt for _, attempt, _ in seen] == [1, 2]
    assert seen[1][2] - seen[0][2] == pytest.approx(2.0, abs=0.1)
    assert refusals == 1


@KINDS
@virtual
async def test_what_is_held_at_the_end_is_copied_with_its_count(kind: str) -> None:
    url = weak_url(fresh(), kind)
    keeps = a_bus(url)
    before, after = list[tuple[str, int, float]](), list[tuple[str, int, float]]()
    async with keeps:
        bus = a_bus(url)
        failing(bus, before, (0.9,) * 9)
        async with bus.serving():
            await keeps.publish(mails, "a")
            await until(lambda: len(before) == 2)
        bus = a_bus(url)
        failing(bus, after, ())
        async with bus.serving():
            await until(lambda: after)
            await asyncio.sleep(5)
    assert [attempt for _, attempt, _ in after] == [3]


@virtual
async def test_the_broker_returns_as_many_as_it_can() -> None:
    events = Events()
    bus, seen = a_bus(fresh(), events=events), list[tuple[str, int, float]]()
    failing(bus, seen, (30.0,))
    async with bus:
        transport: Any = bus.transport
        less = replace(transport.capabilities, waiting=3)
        transport.capabilities = less
        subscribe = transport.subscribe

        async def weaker(*given: Any) -> Any:
            source = await subscribe(*given)
            source.capabilities = less
            return source

        transport.subscribe = weaker
        async with bus.serving():
            stored = sent(bus)
            await bus.publish_many(mails, [str(n) for n in range(10)])
            await until(lambda: len(seen) == 20)
    assert len([m for m in stored if m.topic == "sg.retry.mails.sender"]) == 7
    assert {attempt for _, attempt, _ in seen} == {1, 2}
    assert max(at for _, attempt, at in seen if attempt == 2) - seen[0][2] < 31


# ---- delay ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "tier"),
    [(0.1, "1s"), (1, "1s"), (4.9, "1s"), (5, "5s"), (29, "5s"), (59, "30s"), (3600, "1h"), (86400 * 365, "6h")],
)
def test_tiers(seconds: float, tier: str) -> None:
    assert tier_for(seconds) == tier


def test_names_of_tiers_are_what_they_say() -> None:
    units = {"s": 1, "m": 60, "h": 3600}
    assert {name: int(name[:-1]) * units[name[-1]] for name in TIERS} == TIERS


def test_ready_at() -> None:
    assert ready_at(due=100.0, stored=90.0, tier="5s") == 95.0
    assert ready_at(due=100.0, stored=94.5, tier="5s") == 100.0, "half a second is no hop"
    assert ready_at(due=90.0, stored=94.5, tier="5s") == 90.0


@KINDS
@pytest.mark.parametrize("delay", [0.2, 1.0, 1.7, 59.0, 4000.5])
@virtual
async def test_a_delayed_message_comes_at_its_time_as_it_was(kind: str, delay: float) -> None:
    bus, came = a_bus(weak_url(fresh(), kind)), list[tuple[Message[str], float]]()
    clock: Any = bus._test_clock

    @bus.subscribe(keyed, group="sender")
    async def handle(message: Message[str]) -> None:
        came.append((message, clock.now()))

    async with bus.serving():
        due = clock.now() + delay
        stored = sent(bus)
        id_ = await bus.publish(keyed, "later", delay=delay, headers={"x": "y"}, expires=delay + 60)
        await bus.publish(keyed, "now")
        await asyncio.sleep(delay)
        await until(lambda: len(came) == 2)
        assert [m.body for m, _ in came] == ["now", "later"]
        last, at = came[1]
        assert (last.id, last.attempt, last.key, last.headers) == (id_, 1, "l", {"x": "y"})
        assert last.expires is not None
        assert last.expires.timestamp() == pytest.approx(due + 60, abs=0.01)
        assert 0 <= at - due < 0.05
        (final,) = [m for m in stored if m.topic == "keyed" and m.body == b'"later"']
    assert not [name for name, _ in final.headers if name.startswith("ce-sg")]
    assert (final.dedup, final.marked, final.private) == (id_, True, False)
    assert final.expires == pytest.approx(due + 60, abs=0.01)
    hops = [m for m in stored if m.topic.startswith("sg.delay.")]
    assert len(hops) <= 30
    assert len({m.dedup for m in hops}) == len(hops), "two hops have one token"


@virtual
async def test_a_bus_that_only_publishes_forwards_nothing_and_needs_no_reader() -> None:
    url, came = weak_url(fresh()), list[float]()
    member, publisher = a_bus(url), a_bus(url)

    @member.subscribe(mails, group="sender")
    async def handle(mail: str) -> None:
        came.append(asyncio.get_running_loop().time())

    async with publisher:
        async with member.serving():
            pass  # there is a group
        began = asyncio.get_running_loop().time()
        await publisher.publish(mails, "a", delay=10)
        assert publisher._open is not None
        assert publisher._open.delays.consumers == []
        await asyncio.sleep(60)
        async with member.serving():
            await until(lambda: came)
            assert came[0] - began < 61


@virtual
async def test_delays_are_found_out_by_who_serves_already() -> None:
    url, came = weak_url(fresh()), list[float]()
    member, publisher = a_bus(url), a_bus(url)

    @member.subscribe(mails, group="sender")
    async def handle(mail: str) -> None:
        came.append(asyncio.get_running_loop().time())

    async with member.serving(), publisher:
        assert member._open is not None
        assert member._open.delays.consumers == [], "nothing waits, so nobody has to look"
        began = asyncio.get_running_loop().time()
        await publisher.publish(mails, "a", delay=10)
        await until(lambda: came)
    assert 10 <= came[0] - began < 10.1


@KINDS
@virtual
async def test_a_forwarder_that_ends_before_its_acknowledgement_says_the_same_again(kind: str) -> None:
    """The next to forward a message sends it under the token of the first, so that a broker that knows drops it."""
    url = weak_url(fresh(), kind)
    keeps, came = a_bus(url), list[str]()
    tokens: list[set[str | None]] = []
    async with keeps:
        for _ in range(2):
            bus = a_bus(url)

            @bus.subscribe(mails, group="sender")
            async def handle(message: Message[str]) -> None:
                came.append(message.id)

            async with bus.serving():
                if not tokens:
                    await bus.publish(mails, "a", delay=7, id="one")
                stored = sent(bus)
                transport: Any = bus.transport
                bug = transport.bug
                lost = not tokens

                async def settle(s: Any, batch: Any, settle: Any = bug.settle, lost: bool = lost) -> Any:
                    gone = lost and any(m.topic == "sg.delay.1s" for m in stored)  # noqa: B023
                    if gone and batch[0].delivery.topic == "sg.delay.5s":
                        raise Unavailable("the line is down")
                    return await settle(s, batch)

                bug.settle = settle
                await until(lambda: len(came) > len(tokens))
                tokens.append({m.dedup for m in stored if m.topic == "sg.delay.1s"})
                bus._end_at = asyncio.get_running_loop().time() + 0.1
    assert tokens[0] & tokens[1], f"tokens of the same hop: {tokens}"
    assert set(came) == {"one"}


@virtual
async def test_a_message_that_does_not_say_where_it_goes_is_a_dead_letter() -> None:
    bus = a_bus(weak_url(fresh()))

    @bus.subscribe(mails, group="sender")
    async def handle(mail: str) -> None: ...

    async with bus.serving():
        await bus.publish(mails, "a", delay=1)
        stored = sent(bus)
        await bus.transport.send([Outgoing("sg.delay.1s", b"x", marked=True)], math.inf)
        await until(lambda: any(m.topic == "sg.dlq.delay" for m in stored))
    (letter,) = [m for m in stored if m.topic == "sg.dlq.delay"]
    assert b"sgdue" in dict(letter.headers)["ce-sgreason"]


@virtual
async def test_a_message_whose_time_is_unreadable_is_a_dead_letter() -> None:
    bus = a_bus(weak_url(fresh()))

    @bus.subscribe(mails, group="sender")
    async def handle(mail: str) -> None: ...

    async with bus.serving():
        await bus.publish(mails, "a", delay=1)
        stored = sent(bus)
        headers = [("ce-sgdue", b"soon"), ("ce-sgtarget", b"mails"), ("ce-time", b"whenever")]
        await bus.transport.send([Outgoing("sg.delay.1s", b"x", headers=headers, marked=True)], math.inf)
        await until(lambda: any(m.topic == "sg.dlq.delay" for m in stored))
    (letter,) = [m for m in stored if m.topic == "sg.dlq.delay"]
    assert b"RFC 3339" in dict(letter.headers)["ce-sgreason"]


@KINDS
@virtual
async def test_of_those_that_go_on_together_each_has_its_own_outcome(kind: str) -> None:
    bus, came, began = a_bus(weak_url(fresh(), kind)), dict[str, float](), asyncio.get_running_loop().time()

    @bus.subscribe(mails, group="sender")
    async def handle(mail: str) -> None:
        came[mail] = asyncio.get_running_loop().time() - began

    async with bus.serving():
        await bus.publish_many(mails, ["first"])
        for mail in ("one", "refused", "unsent", "two"):
            await bus.publish(mails, mail, delay=0.5)
        transport: Any = bus.transport
        send, unsent = transport.send, list[Outgoing]()

        async def picky(batch: Sequence[Outgoing], deadline: float) -> Any:
            outcomes: list[Any] = []
            for m in batch:
                if m.topic == "mails" and m.body == b'"refused"':
                    outcomes.append(Refused("of no use"))
                elif m.topic == "mails" and m.body == b'"unsent"' and len(unsent) < 2:
                    unsent.append(m)
                    outcomes.append(NotSent("not now"))
                else:
                    outcomes += await send([m], deadline)
            return outcomes

        transport.send = picky
        stored = sent(bus)
        await until(lambda: len(came) == 4 and any(m.topic == "sg.dlq.delay" for m in stored))
    (letter,) = [m for m in stored if m.topic == "sg.dlq.delay"]
    assert (letter.body, dict(letter.headers)["ce-sgreason"]) == (b'"refused"', b"of no use")
    assert came.keys() == {"first", "one", "two", "unsent"}
    assert max(came["one"], came["two"]) < 0.6
    assert len({m.dedup for m in unsent}) == 1


@virtual
async def test_without_groups_a_delay_is_refused() -> None:
    class Nobody:
        scheme = "small"
        transport = ScriptedTransport(groups=False, delay=60.0)
        clock = LoopTime

        def physical(self, name: str) -> str:
            return name

    core: Any = Nobody()
    core.clock = LoopTime()
    now = core.clock.now()
    delays = Delays(core)
    near = Outgoing("mails", b"", due=now + 50)
    assert delays.placed(near, "mails") is near
    past = delays.placed(Outgoing("mails", b"", due=now - 1), "mails")
    assert (past.topic, past.due) == ("mails", None)
    with pytest.raises(Unsupported, match="up to 60 s, not by 90 s"):
        delays.placed(Outgoing("mails", b"", due=now + 90), "mails")


@virtual
async def test_a_backlog_of_delays_is_left_on_the_broker() -> None:
    bus = a_bus(weak_url(fresh()))

    @bus.subscribe(mails, group="sender")
    async def handle(mail: str) -> None: ...

    async with bus.serving():
        assert bus._open is not None
        await bus.publish(mails, "first", delay=7000)
        delays = bus._open.delays
        first = sent(bus)
        await bus.publish(mails, "second", delay=7000)
        (pattern,) = [m for m in first if m.topic == "sg.delay.1h"]
        for _ in range(5 * WINDOW):
            await bus.transport.send([pattern], math.inf)
        await asyncio.sleep(300)
        held = sum(len(consumer.lanes.held) for consumer in delays.consumers)
    assert held <= 2 * WINDOW


@virtual
async def test_cancel_says_what_to_do_instead() -> None:
    async with a_bus(weak_url(fresh())) as bus:
        id_ = await bus.publish(mails, "a", delay=5)
        with pytest.raises(Unsupported, match="handler"):
            await bus.cancel(mails, id_)


# ---- what is told, and made -----------------------------------------------------------------------------------------


@asynccontextmanager
async def explained(url: str) -> AsyncIterator[Any]:
    bus = a_bus(url)
    failing(bus, [], ())
    yield await explain(bus)


@virtual
async def test_explain_tells_how_and_by_which_names() -> None:
    async with explained(weak_url(fresh())) as found:
        told = {need.need: (need.how, need.detail) for need in found.needs}
        assert told["retry"][0] == "emulated"
        assert "return address" in told["retry"][1]
        assert told["delay"] == ("emulated", "in delay topics, forwarded by every serving bus")
        names = {logical: (physical, kind) for logical, physical, kind in found.names}
        assert names["sg.retry.mails.sender"] == ("sg.retry.mails.sender", "retry")
        assert names["sg.delay.1s"] == ("sg.delay.1s", "delay")
    async with explained(fresh()) as found:
        assert "delay" not in {need.need for need in found.needs}
        assert {kind for _, _, kind in found.names} == {"topic", "group", "dead letters"}


@virtual
async def test_what_is_made_before_it_is_needed() -> None:
    from switchgear.provisioning import provision

    bus = a_bus(weak_url(fresh()))
    failing(bus, [], ())
    async with bus:
        wanted = [drift.resource for drift in await provision(bus, True)]
        assert isinstance(bus.transport, Provisioner)
        there = {info.name for info in await bus.transport.topics("")}
    topics = {resource.name for resource in wanted if resource.kind == "topic"}
    assert topics == {"mails", "sg.retry.mails.sender", *(f"sg.delay.{tier}" for tier in TIERS)}
    assert topics <= there
    assert Resource(kind="group", name="sender", topic="sg.retry.mails.sender") in wanted
