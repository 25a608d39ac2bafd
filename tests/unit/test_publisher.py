"""What a publish may claim: stored, not stored, or perhaps; in which order; and within which time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from switchgear import publisher as module
from switchgear.driver import Outgoing
from switchgear.errors import MaybeSent, NotSent, Refused, TransportError, Unavailable
from switchgear.publisher import Publisher
from switchgear.supervision import Link
from tests.support.scripted import ScriptedTransport, after, broken, fail, hang
from tests.support.virtual import virtual


def now() -> float:
    return asyncio.get_running_loop().time()


def message(name: object, key: str | None = None, body: bytes = b"{}") -> Outgoing:
    return Outgoing(topic="orders", body=body, key=None if key is None else key.encode(), dedup=str(name))


@asynccontextmanager
async def publishing(transport: ScriptedTransport, grace: float = 60.0) -> AsyncIterator[Publisher]:
    link = Link(transport, "double://")
    link.start()
    await link.wait()
    publisher = Publisher(transport, link)
    try:
        yield publisher
    finally:
        await publisher.close(now() + grace)
        await link.close()


def put(
    publisher: Publisher, name: object, key: str | None = None, timeout: float = 30.0, again: bool = True, **more: Any
) -> asyncio.Future[None]:
    out = message(name, key, **more)
    chain = None if out.key is None else (out.topic, out.key)
    return publisher.put(out, chain, now() + timeout, again)


@virtual
async def test_what_is_published_in_one_turn_leaves_together() -> None:
    transport = ScriptedTransport()
    async with publishing(transport) as publisher:
        await asyncio.gather(*(put(publisher, n) for n in range(250)))
    assert [len(call) for call in transport.calls] == [100, 100, 50]
    assert transport.ids == [str(n) for n in range(250)]


@virtual
async def test_what_comes_while_a_batch_is_on_its_way_leaves_with_the_next() -> None:
    transport = ScriptedTransport(after(1.0))
    async with publishing(transport) as publisher:
        first = put(publisher, 0)
        await asyncio.sleep(0.1)
        rest = []
        for n in range(1, 20):
            rest.append(put(publisher, n))
            await asyncio.sleep(0.01)
        await asyncio.gather(first, *rest)
    assert [len(call) for call in transport.calls] == [1, 19]


@virtual
@pytest.mark.parametrize("error", [Unavailable("away"), NotSent("full")])
async def test_what_is_certainly_not_stored_is_sent_again(error: TransportError) -> None:
    transport = ScriptedTransport(broken(error), fail(error))
    async with publishing(transport) as publisher:
        await put(publisher, "a")
    assert transport.ids == ["a"]
    assert len(transport.calls) == 3


@virtual
async def test_maybe_sent_is_sent_again() -> None:
    transport = ScriptedTransport(broken(MaybeSent("no answer"), stored=True))
    async with publishing(transport) as publisher:
        await put(publisher, "a")
    assert transport.ids == ["a", "a"]


@virtual
async def test_maybe_sent_is_raised_at_once_where_the_caller_wants_no_duplicate() -> None:
    transport = ScriptedTransport(broken(MaybeSent("no answer"), stored=True))
    async with publishing(transport) as publisher:
        with pytest.raises(MaybeSent, match="no answer"):
            await put(publisher, "a", again=False)
    assert transport.ids == ["a"]
    assert len(transport.calls) == 1


@virtual
@pytest.mark.parametrize("then", [Unavailable("away"), NotSent("full"), Refused("too large")])
async def test_once_maybe_sent_it_stays_so(then: TransportError) -> None:
    """A later definite answer speaks of the later try alone: the first may have been stored."""
    transport = ScriptedTransport(broken(MaybeSent("no answer"), stored=True), otherwise=broken(then))
    async with publishing(transport) as publisher:
        with pytest.raises(MaybeSent, match="no answer") as caught:
            await put(publisher, "a", timeout=3.0)
    if isinstance(then, Refused):
        assert "too large" in str(caught.value)


@virtual
async def test_refused_is_raised_at_once_and_concerns_one_message_alone() -> None:
    transport = ScriptedTransport(fail(None, Refused("too large"), None))
    async with publishing(transport) as publisher:
        outcomes = await asyncio.gather(*(put(publisher, n) for n in range(3)), return_exceptions=True)
    assert [type(o) for o in outcomes] == [type(None), Refused, type(None)]
    assert transport.ids == ["0", "2"]
    assert len(transport.calls) == 1


@virtual
async def test_an_error_of_a_whole_batch_is_not_one_object_for_all() -> None:
    """An instance raised by a hundred tasks would gather a hundred tracebacks."""
    transport = ScriptedTransport(broken(Refused("no rights")))
    async with publishing(transport) as publisher:
        outcomes = await asyncio.gather(*(put(publisher, n) for n in range(3)), return_exceptions=True)
    assert len({id(o) for o in outcomes}) == 3
    assert {str(o) for o in outcomes} == {"no rights"}


@virtual
async def test_the_timeout_covers_all_tries() -> None:
    transport = ScriptedTransport(otherwise=broken(NotSent("busy")))
    async with publishing(transport) as publisher:
        began = now()
        with pytest.raises(NotSent, match="busy"):
            await put(publisher, "a", timeout=5.0)
        assert now() - began == pytest.approx(5.0, abs=0.1)
    assert 3 < len(transport.calls) < 20, "tries back off"


@virtual
async def test_a_send_that_hangs_is_maybe_sent_at_the_timeout_and_does_not_hold_up_what_follows() -> None:
    transport = ScriptedTransport(hang)
    async with publishing(transport) as publisher:
        began = now()
        with pytest.raises(MaybeSent, match="did not answer"):
            await put(publisher, "a", "k", timeout=2.0)
        assert now() - began == pytest.approx(2.0, abs=0.1)
        await put(publisher, "b", "k")
    assert transport.ids == ["b"]


@virtual
async def test_a_short_timeout_ends_in_time_though_long_ones_fly_along() -> None:
    transport = ScriptedTransport(after(10.0))
    async with publishing(transport) as publisher:
        long, short = put(publisher, "long", timeout=30.0), put(publisher, "short", timeout=1.0)
        began = now()
        with pytest.raises(MaybeSent):
            await short
        assert now() - began == pytest.approx(1.0, abs=0.1)
        await long
        assert now() - began == pytest.approx(10.0, abs=0.1)


@virtual
async def test_what_never_left_the_buffer_is_not_sent() -> None:
    transport = ScriptedTransport(after(10.0))
    async with publishing(transport) as publisher:
        first = put(publisher, "first")
        await asyncio.sleep(0.5)
        with pytest.raises(NotSent, match="publish buffer"):
            await put(publisher, "second", timeout=1.0)
        await first
    assert transport.ids == ["first"]


@virtual
async def test_without_a_connection_it_is_unavailable_and_says_why() -> None:
    transport = ScriptedTransport(broken(Unavailable("connection reset")))
    transport.connects = [None, *[Unavailable("connection refused")] * 100]
    async with publishing(transport) as publisher:
        with pytest.raises(Unavailable, match="cannot reach double://: connection refused"):
            await put(publisher, "a", timeout=5.0)
    assert transport.ids == []


@virtual
async def test_a_connection_that_does_not_hold_is_not_made_anew_without_end() -> None:
    transport = ScriptedTransport(otherwise=broken(Unavailable("reset")))
    async with publishing(transport) as publisher:
        with pytest.raises(Unavailable):
            await put(publisher, "a", timeout=20.0)
    assert transport.connected < 30
    assert len(transport.calls) < 30


@virtual
async def test_a_terminal_error_reaches_everyone_who_waits() -> None:
    transport = ScriptedTransport(broken(Unavailable("reset")))
    transport.connects = [None, Refused("wrong password")]
    async with publishing(transport) as publisher:
        outcomes = await asyncio.gather(*(put(publisher, n) for n in range(3)), return_exceptions=True)
        assert [str(o) for o in outcomes] == ["wrong password"] * 3
        with pytest.raises(Refused, match="wrong password"):
            await put(publisher, "later")


@virtual
async def test_a_bug_in_send_reaches_the_caller_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    transport = ScriptedTransport(broken(KeyError("bug")))
    async with publishing(transport) as publisher:
        with pytest.raises(MaybeSent, match="KeyError") as caught:
            await put(publisher, "a", "k")
        assert isinstance(caught.value.__cause__, KeyError)
        await put(publisher, "b", "k")
    assert transport.ids == ["b"]
    assert "a bug of the transport" in caplog.text


@virtual
async def test_a_wrong_number_of_outcomes_is_a_bug_of_the_transport_and_loses_nobody() -> None:
    async def short(transport: ScriptedTransport, batch: Sequence[Outgoing], deadline: float) -> list[None]:
        return [None]

    transport = ScriptedTransport(short)
    async with publishing(transport) as publisher:
        outcomes = await asyncio.gather(*(put(publisher, n, "k" + str(n)) for n in range(3)), return_exceptions=True)
        assert [type(o) for o in outcomes] == [MaybeSent] * 3
        await put(publisher, "again", "k0")


@virtual
async def test_a_send_that_cancels_itself_is_maybe_sent() -> None:
    transport = ScriptedTransport(broken(asyncio.CancelledError()))
    async with publishing(transport) as publisher:
        with pytest.raises(MaybeSent, match="cancelled"):
            await put(publisher, "a")
        await put(publisher, "b")


@virtual
async def test_a_publish_cancelled_in_the_buffer_is_never_sent() -> None:
    transport = ScriptedTransport(after(1.0))
    async with publishing(transport) as publisher:
        first = put(publisher, "first")
        await asyncio.sleep(0.5)
        second, third = put(publisher, "second"), put(publisher, "third")
        second.cancel()
        await asyncio.gather(first, third)
    assert transport.ids == ["first", "third"]


@virtual
async def test_a_publish_cancelled_on_its_way_is_not_sent_again() -> None:
    transport = ScriptedTransport(after(1.0, broken(NotSent("no"))))
    async with publishing(transport) as publisher:
        cancelled, other = put(publisher, "cancelled", "k"), put(publisher, "other", "j")
        await asyncio.sleep(0.5)
        cancelled.cancel()
        await other
        await put(publisher, "next", "k")
    assert transport.ids == ["other", "next"]


@virtual
async def test_thousands_cancelled_in_the_buffer_do_not_hold_up_one_that_is_not() -> None:
    transport = ScriptedTransport(after(1.0), batch=10)
    async with publishing(transport) as publisher:
        first = put(publisher, "first")
        await asyncio.sleep(0.5)
        for n in range(5000):
            put(publisher, n).cancel()
        last = put(publisher, "last", timeout=5.0)
        await asyncio.gather(first, last)
    assert transport.ids == ["first", "last"]


@virtual
async def test_a_batch_has_at_most_so_many_bytes_and_no_key_is_forgotten_over_it() -> None:
    transport = ScriptedTransport(batch_bytes=10_000, send_order=True)
    async with publishing(transport) as publisher:
        await asyncio.gather(*(put(publisher, n, f"k{n % 7}", body=b"x" * 3000) for n in range(30)))
        await asyncio.gather(*(put(publisher, n, f"k{n % 7}") for n in range(30, 60)))
    assert len(transport.stored) == 60
    assert max(sum(len(m.body or b"") for m in call) for call in transport.calls) <= 10_000


@virtual
async def test_a_message_beyond_the_bytes_of_a_batch_leaves_alone() -> None:
    transport = ScriptedTransport(batch_bytes=1000)
    async with publishing(transport) as publisher:
        await asyncio.gather(put(publisher, 0), put(publisher, 1, body=b"x" * 5000), put(publisher, 2))
    assert [len(call) for call in transport.calls] == [1, 1, 1]


@virtual
async def test_the_brokers_limit_of_a_batch_goes_before_the_preferred_size() -> None:
    transport = ScriptedTransport(batch=100, batch_limit=10)
    async with publishing(transport) as publisher:
        await asyncio.gather(*(put(publisher, n) for n in range(25)))
    assert [len(call) for call in transport.calls] == [10, 10, 5]


@virtual
async def test_several_sends_run_at_once_and_keep_a_key_together() -> None:
    transport = ScriptedTransport(otherwise=after(1.0), sends=2, batch=2)
    async with publishing(transport) as publisher:
        began = now()
        await asyncio.gather(*(put(publisher, n) for n in range(8)))
        assert now() - began == pytest.approx(2.0, abs=0.1)
        await asyncio.gather(*(put(publisher, f"k{n}", "k") for n in range(3)))  # the double refuses two at once
    assert [i for i in transport.ids if i and i.startswith("k")] == ["k0", "k1", "k2"]


@virtual
async def test_room_is_waited_for_and_given_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CAPACITY", 10)
    transport = ScriptedTransport(otherwise=after(1.0), batch=5)
    async with publishing(transport) as publisher:
        sent = [put(publisher, n) for n in range(20)]
        assert publisher.full()
        order: list[int] = []

        async def wait(n: int) -> None:
            await publisher.room(now() + 30)
            order.append(n)

        await asyncio.gather(*(wait(n) for n in range(5)), *sent)
        assert order == [0, 1, 2, 3, 4]


@virtual
async def test_no_room_in_time_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CAPACITY", 10)
    transport = ScriptedTransport(after(10.0))
    async with publishing(transport) as publisher:
        sent = [put(publisher, 0)]
        await asyncio.sleep(0)
        sent += [put(publisher, n) for n in range(1, 20)]
        with pytest.raises(NotSent, match="no room in the publish buffer"):
            await publisher.room(now() + 1)
        await asyncio.gather(*sent)


@virtual
async def test_room_comes_back_when_what_waited_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CAPACITY", 10)
    transport = ScriptedTransport(after(5.0))
    async with publishing(transport) as publisher:
        first = put(publisher, "first")
        await asyncio.sleep(0)
        for n in range(20):
            put(publisher, n).cancel()
        await publisher.room(now() + 30)
        await first
    assert publisher._bytes == 0


@virtual
async def test_looking_for_deadlines_costs_no_pass_over_the_buffer_per_publish() -> None:
    transport = ScriptedTransport(otherwise=hang)
    passes = 0
    async with publishing(transport, grace=0.0) as publisher:
        overdue = publisher._overdue

        def counted() -> None:
            nonlocal passes
            passes += 1
            overdue()

        publisher._overdue = counted  # type: ignore[method-assign]
        sent = []
        for n in range(2000):
            sent.append(put(publisher, n, timeout=1.0))
            await asyncio.sleep(0.0001)
        outcomes = await asyncio.gather(*sent, return_exceptions=True)
    assert {type(o) for o in outcomes} <= {NotSent, MaybeSent}
    assert passes < 100


@virtual
async def test_closing_flushes_what_is_buffered() -> None:
    transport = ScriptedTransport(otherwise=after(1.0), batch=5)
    async with publishing(transport) as publisher:
        sent = [put(publisher, n) for n in range(20)]
    assert all(future.done() and future.exception() is None for future in sent)
    assert len(transport.stored) == 20


@virtual
async def test_closing_waits_until_the_deadline_and_then_tells_each_the_truth() -> None:
    transport = ScriptedTransport(otherwise=hang, batch=1)
    link = Link(transport, "double://")
    link.start()
    await link.wait()
    publisher = Publisher(transport, link)
    flying = put(publisher, "flying")
    await asyncio.sleep(0)
    waiting = put(publisher, "waiting")
    began = now()
    await publisher.close(began + 2.0)
    assert now() - began == pytest.approx(2.0, abs=0.1)
    assert isinstance(flying.exception(), MaybeSent)
    assert isinstance(waiting.exception(), NotSent)
    await link.close()


@virtual
async def test_closing_does_not_wait_for_what_was_cancelled() -> None:
    transport = ScriptedTransport()
    transport.connects = [None, *[Unavailable("away")] * 1000]
    link = Link(transport, "double://")
    link.start()
    await link.wait()
    publisher = Publisher(transport, link)
    link.down(Unavailable("reset"))
    put(publisher, "a").cancel()
    began = now()
    await publisher.close(began + 30.0)
    assert now() - began < 1.0
    await link.close()


@virtual
async def test_closing_ends_though_a_send_swallows_its_cancellation() -> None:
    release = asyncio.Event()

    async def stubborn(transport: ScriptedTransport, batch: Sequence[Outgoing], deadline: float) -> list[None]:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue
        return [None] * len(batch)

    transport = ScriptedTransport(stubborn)
    link = Link(transport, "double://")
    link.start()
    await link.wait()
    publisher = Publisher(transport, link)
    sent = put(publisher, "a")
    await asyncio.sleep(0)
    await publisher.close(now() + 1.0)
    assert isinstance(sent.exception(), MaybeSent)
    release.set()
    await link.close()
    await asyncio.sleep(0.1)


# ---- order and truth, whatever goes wrong ---------------------------------------------------------------------------

KEYS = st.sampled_from([None, "a", "b", "c"])


@st.composite
def publishes(draw: st.DrawFn) -> tuple[str | None, float, bool, float, float | None]:
    """Key, timeout, whether again after MaybeSent, pause before it, when it is cancelled."""
    return (
        draw(KEYS),
        draw(st.sampled_from([0.5, 3.0, 30.0])),
        draw(st.booleans()),
        draw(st.sampled_from([0.0, 0.0, 0.0, 0.01, 0.3])),
        draw(st.sampled_from([None, None, None, 0.0, 0.2, 2.0])),
    )


class Trouble:
    """A broker that fails as drawn, but never beyond what the contract of `send` allows."""

    def __init__(self, draws: list[int], send_order: bool) -> None:
        self._draws, self._send_order = draws, send_order

    def _next(self, n: int) -> int:
        return self._draws.pop() % n if self._draws else 0

    async def __call__(
        self, transport: ScriptedTransport, batch: Sequence[Outgoing], deadline: float
    ) -> list[TransportError | None]:
        what = self._next(8)
        await asyncio.sleep((0.0, 0.001, 0.2, 1.0)[self._next(4)])
        if what == 1:
            raise Unavailable("reset")
        if what == 2:
            raise MaybeSent("reset while waiting")
        if what == 3:
            transport.stored.extend(batch)
            raise MaybeSent("reset after storing")
        if what == 4:
            await hang(transport, batch, deadline)
        if what == 5:
            transport.stored.extend(batch)
            await hang(transport, batch, deadline)
        outcomes: list[TransportError | None] = []
        failed: set[bytes] = set()
        for m in batch:
            fate = self._next(6) if what > 5 else 0
            error: TransportError | None = None
            if self._send_order and m.key in failed:
                error = NotSent("after a failed one of its key")
            elif fate == 1:
                error = NotSent("no")
            elif fate == 2:
                error = Refused("no")
            elif fate == 3:
                error = MaybeSent("perhaps")
                transport.stored.append(m)
            if error is None:
                transport.stored.append(m)
            elif m.key is not None:
                failed.add(m.key)
            outcomes.append(error)
        return outcomes


@given(
    plan=st.lists(publishes(), min_size=1, max_size=25),
    draws=st.lists(st.integers(0, 1000), max_size=60),
    sends=st.integers(1, 3),
    batch=st.sampled_from([1, 3, 100]),
    send_order=st.booleans(),
    total=st.booleans(),
)
@settings(max_examples=120, deadline=None)
def test_returned_is_stored_and_first_occurrences_keep_call_order(
    plan: list[tuple[str | None, float, bool, float, float | None]],
    draws: list[int],
    sends: int,
    batch: int,
    send_order: bool,
    total: bool,
) -> None:
    @virtual
    async def run() -> None:
        transport = ScriptedTransport(
            otherwise=Trouble(draws, send_order), sends=sends, batch=batch, send_order=send_order
        )
        outcomes: dict[str, BaseException | None] = {}
        late: list[tuple[str, float]] = []
        keys: dict[str, str | None] = {}

        async def publish(publisher: Publisher, name: str, key: str | None, timeout: float, again: bool) -> None:
            deadline = now() + timeout
            try:
                await publisher.put(message(name, key), chain_of(key), deadline, again)
                outcomes[name] = None
            except TransportError as error:
                outcomes[name] = error
            if now() > deadline + 0.1:
                late.append((name, now() - deadline))

        def chain_of(key: str | None) -> tuple[str, bytes] | None:
            return ("orders", b"") if total else None if key is None else ("orders", key.encode())

        async with publishing(transport) as publisher:
            tasks = []
            for n, (key, timeout, again, pause, cancel) in enumerate(plan):
                if total:
                    key = "t"
                keys[str(n)] = key
                tasks.append(asyncio.create_task(publish(publisher, str(n), key, timeout, again)))
                if cancel is not None:
                    asyncio.get_running_loop().call_later(cancel, tasks[-1].cancel)
                await asyncio.sleep(pause)
            await asyncio.wait(tasks)
        assert not late, "a timeout is a timeout"
        stored = transport.ids
        returned = [name for name, outcome in outcomes.items() if outcome is None]
        assert set(returned) <= set(stored), "returned is stored"
        for name, outcome in outcomes.items():
            if isinstance(outcome, (Unavailable, NotSent, Refused)):
                assert name not in stored, f"{outcome!r} of a message that was stored"
        for key in {keys[name] for name in returned} - {None}:
            mine = sorted((int(name) for name in returned if keys[name] == key), key=int)
            assert sorted(mine, key=lambda n: stored.index(str(n))) == mine, "first occurrences in call order"

    run()
