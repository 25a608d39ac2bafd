"""Who is ready, and who waits behind whom."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from switchgear.driver import Delivery, Order
from switchgear.lanes import OVERHEAD, Lanes


def delivery(n: int, key: bytes | None = None) -> Delivery:
    return Delivery("t", b"x" * n, None, key, "", n, 1)


def test_without_order_all_are_ready() -> None:
    lanes = Lanes(Order.NONE)
    assert lanes.admit([delivery(1, b"a"), delivery(2, b"a")]) == 0
    assert [d.token for d in lanes.ready] == [1, 2]
    assert lanes.bytes == 3 + 2 * OVERHEAD
    lanes.free_all(list(lanes.held.values()))
    assert lanes.bytes == 0


def test_what_comes_again_takes_the_place_and_goes_to_the_end_of_the_leases() -> None:
    lanes = Lanes(Order.KEY)
    first, second = delivery(1, b"a"), delivery(2, b"b")
    lanes.admit([first, second])
    newer = delivery(1, b"a")
    assert lanes.admit([newer]) == 1
    assert list(lanes.held) == [2, 1]
    assert lanes.current(first) is newer
    assert lanes.bytes == 3 + 2 * OVERHEAD
    lanes.free(first)
    assert not lanes.moved
    assert list(lanes.held) == [2]


def test_restore_puts_each_in_its_place() -> None:
    lanes = Lanes(Order.KEY)
    lanes.admit([delivery(1, b"a"), delivery(2, b"a"), delivery(3, b"b"), delivery(4, b"a")])
    taken = [lanes.ready.popleft(), lanes.chains[b"a"].popleft(), lanes.ready.popleft()]  # type: ignore[union-attr]
    lanes.restore(taken)
    assert [d.token for d in lanes.ready] == [1, 3]
    assert [d.token for d in lanes.chains[b"a"] or ()] == [2, 4]


class Machine(RuleBasedStateMachine):
    """A broker that keeps order by key, may take messages away and hand them out again, and this process."""

    def __init__(self) -> None:
        super().__init__()
        self.lanes = Lanes(Order.KEY)
        self.store: dict[int, Delivery] = {}  # unsettled, by token
        self.out: set[int] = set()  # handed out and ours
        self.running: dict[int, Delivery] = {}
        self.leaving: list[Delivery] = []
        self.count = 0
        self.begun: dict[bytes, list[int]] = defaultdict(list)

    @rule(key=st.sampled_from([b"a", b"b", None]), n=st.integers(1, 4))
    def publish(self, key: bytes | None, n: int) -> None:
        for _ in range(n):
            self.count += 1
            self.store[self.count] = delivery(self.count, key)

    @rule(n=st.integers(1, 6))
    def receive(self, n: int) -> None:
        """The oldest that are not out; of a key nothing while an older one of it is elsewhere."""
        batch = [d for token, d in sorted(self.store.items()) if token not in self.out][:n]
        fresh = [Delivery("t", d.body, None, d.key, "", d.token, 1) for d in batch]
        again = self.lanes.admit(fresh)
        assert again == sum(d.token in self.running for d in batch)
        self.out.update(d.token for d in fresh)  # type: ignore[misc]
        self.leaving += self.lanes.turned
        self.lanes.turned = []

    @precondition(lambda self: self.lanes.ready)
    @rule()
    def start(self) -> None:
        d = self.lanes.ready.popleft()
        assert isinstance(d.token, int)
        if d.key is not None:
            assert all(other.key != d.key for other in self.running.values()), "two of a key at once"
            if d.token not in self.begun[d.key]:
                assert not self.begun[d.key] or max(self.begun[d.key]) < d.token, "overtaken"
                self.begun[d.key].append(d.token)
        self.running[d.token] = d

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        token = data.draw(st.sampled_from(sorted(self.running)))
        d = self.running.pop(token)
        current = self.lanes.current(d)
        assert (current is not None) == (token in self.out)
        if current is not None:
            assert current.token == token
            del self.store[token]
            self.out.discard(token)
        self.lanes.free(d)
        self.lanes.advance(d)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        token = data.draw(st.sampled_from(sorted(self.running)))
        d = self.running.pop(token)
        if self.lanes.current(d) is None:
            self.lanes.free(d)
            self.lanes.advance(d)
        else:
            self.lanes.delayed[token] = d

    @precondition(lambda self: self.lanes.delayed)
    @rule(data=st.data())
    def due(self, data: st.DataObject) -> None:
        token = data.draw(st.sampled_from(sorted(self.lanes.delayed)))  # type: ignore[type-var]
        self.lanes.ready.append(self.lanes.delayed.pop(token))

    @precondition(lambda self: self.out)
    @rule(data=st.data(), everything=st.booleans())
    def lose(self, data: st.DataObject, everything: bool) -> None:
        gone = self.out if everything else data.draw(st.sets(st.sampled_from(sorted(self.out)), min_size=1))
        gone = gone - {d.token for d in self.leaving}
        followers = self.lanes.lose(list(gone), self.running.keys())
        self.out -= gone
        for d in followers:
            assert d.token in self.lanes.held
            assert d.token not in self.running
        self.leaving += followers

    @precondition(lambda self: self.leaving)
    @rule(n=st.integers(1, 3))
    def give_back(self, n: int) -> None:
        """The broker says that it has them back."""
        for _ in range(min(n, len(self.leaving))):
            d = self.leaving.pop(0)
            self.lanes.free(d)
            self.out.discard(d.token)  # type: ignore[arg-type]

    @precondition(lambda self: self.lanes.ready)
    @rule(n=st.integers(1, 4))
    def gather_and_restore(self, n: int) -> None:
        taken: list[Delivery] = []
        before = [d.token for d in self.lanes.waiting()]
        while self.lanes.ready and len(taken) < n:
            d = self.lanes.ready.popleft()
            taken.append(d)
            chain = self.lanes.chains.get(d.key) if d.key is not None else None
            while chain and len(taken) < n:
                taken.append(chain.popleft())
        self.lanes.restore(taken)
        assert [d.token for d in self.lanes.waiting()] == before

    @invariant()
    def adds_up(self) -> None:
        lanes = self.lanes
        assert lanes.bytes == sum(OVERHEAD + len(d.body or b"") for d in lanes.held.values())
        waiting = [d.token for d in lanes.waiting()]
        assert len(set(waiting)) == len(waiting)
        assert set(lanes.held) == {*waiting, *lanes.delayed, *self.running, *(d.token for d in self.leaving)}
        assert set(lanes.leaving) == {d.token for d in self.leaving}
        keys = [d.key for d in [*lanes.ready, *lanes.delayed.values(), *self.running.values()] if d.key is not None]
        assert sorted(keys) == sorted(lanes.chains)
        assert set(lanes.moved) <= set(self.running) | set(lanes.held)


TestLanes = Machine.TestCase
TestLanes.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
