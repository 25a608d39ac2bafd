"""What a subscription holds: which deliveries, which of them may be handled now, and in what order.

A delivery is *held* from the moment it is received until its settlement is confirmed. With key order all deliveries of
a key form a *chain*: the first is ready (or running, or waits for its retry), the others follow it one by one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Hashable, Iterable, Sequence

from .driver import Delivery, Order

WHOLE = b""  # the one chain of a totally ordered topic
OVERHEAD = 512  # bytes that a held delivery costs beside its body: measured with tracemalloc on CPython 3.11


class Lanes:
    """The deliveries of one subscription in this process."""

    __slots__ = (
        "_aside_heads",
        "aside",
        "bytes",
        "chains",
        "delayed",
        "held",
        "leaving",
        "moved",
        "order",
        "ready",
        "turned",
    )

    def __init__(self, order: Order) -> None:
        self.order = order
        self.held: dict[Hashable, Delivery] = {}
        """By token, in order of arrival (of the last lease extension), so that leases are looked at from the front."""
        self.ready: deque[Delivery] = deque()
        self.chains: dict[bytes, deque[Delivery] | None] = {}
        self.delayed: dict[Hashable, Delivery] = {}
        """By token, those that wait here for their next attempt and keep their chain meanwhile."""
        self.aside: dict[Hashable, Delivery] = {}
        """By token, those that nobody is to handle: their lane stands still, or is about to go."""
        self._aside_heads: set[Hashable] = set()
        self.moved: dict[Hashable, Delivery | None] = {}
        """Of a held token: the delivery that took its place, or None if it is no longer ours and nothing is settled."""
        self.leaving: dict[Hashable, bytes] = {}
        """By token, the chains of those that are being given back: nothing that comes later may go past them."""
        self.turned: list[Delivery] = []
        """What was admitted and may not be handled for that reason; it is to be given back, too."""
        self.bytes = 0

    def admit(self, batch: Sequence[Delivery]) -> int:
        """Hold a received batch; returns how many of it were held already (handed out again by the broker)."""
        held, ready, chains = self.held, self.ready, self.chains
        order = self.order
        if not order and not self.leaving:  # the usual case, done in bulk
            tokens = [delivery.token for delivery in batch]
            if held.keys().isdisjoint(tokens) and len(set(tokens)) == len(tokens):
                held.update(zip(tokens, batch, strict=True))
                ready.extend(batch)
                self.bytes += sum([len(d.body) for d in batch if d.body is not None]) + len(tokens) * OVERHEAD
                return 0
        leaving = set(self.leaving.values()) if self.leaving else ()
        again = 0
        size = 0
        for delivery in batch:
            token = delivery.token
            if token in held:
                again += 1
                del held[token]  # to the end: leases stay in order
                self.moved[token] = held[token] = delivery
                continue
            held[token] = delivery
            body = delivery.body
            if body is not None:
                size += len(body)
            if not order:
                ready.append(delivery)
                continue
            key = delivery.key if order == 1 else WHOLE
            if key is None:
                ready.append(delivery)
            elif leaving and key in leaving:
                self.leaving[token] = key
                self.turned.append(delivery)
            elif key in chains:
                waiting = chains[key]
                if waiting is None:
                    chains[key] = deque((delivery,))
                else:
                    waiting.append(delivery)
            else:
                chains[key] = None
                ready.append(delivery)
        self.bytes += size + (len(batch) - again) * OVERHEAD
        return again

    def at_hand(self) -> int:
        """How many are held and do not wait, themselves or behind another of their key, for a retry."""
        blocked = len(self.delayed)
        for delivery in self.delayed.values():
            key = self.chain_of(delivery)
            chain = self.chains.get(key) if key is not None else None
            blocked += len(chain) if chain else 0
        return len(self.held) - blocked

    def chain_of(self, delivery: Delivery) -> bytes | None:
        """The name of the chain that the delivery is in; None for none."""
        order = self.order
        return None if not order else delivery.key if order == 1 else WHOLE

    def advance(self, delivery: Delivery) -> None:
        """The delivery is done with: the next of its chain is ready."""
        key = self.chain_of(delivery)
        if key is not None:
            self.advance_key(key)

    def advance_key(self, key: bytes) -> None:
        """Nothing of the chain is at work any more: its next is ready."""
        waiting = self.chains.get(key)
        if waiting:
            self.ready.append(waiting.popleft())
        else:
            self.chains.pop(key, None)

    def free(self, delivery: Delivery) -> None:
        """Forget a delivery whose settlement is confirmed or pointless."""
        if self.held.pop(delivery.token, None) is not None:
            self.bytes -= OVERHEAD + (len(delivery.body) if delivery.body is not None else 0)
        if self.moved:
            self.moved.pop(delivery.token, None)
        if self.leaving:
            self.leaving.pop(delivery.token, None)

    def free_all(self, done: Sequence[Delivery]) -> None:
        """`free` for many."""
        if self.moved:
            for delivery in done:
                self.free(delivery)
            return
        pop = self.held.pop
        size = 0
        for delivery in done:
            if pop(delivery.token, None) is not None:
                body = delivery.body
                size += OVERHEAD if body is None else OVERHEAD + len(body)
        self.bytes -= size

    def current(self, delivery: Delivery) -> Delivery | None:
        """What to settle for a delivery that was handled: what took its place, or None where it is no longer ours."""
        if self.moved and delivery.token in self.moved:
            return self.moved[delivery.token]
        return delivery

    def waiting(self) -> Iterable[Delivery]:
        """Held and not yet handed to a handler: the ready ones and those behind them in their chains."""
        yield from self.ready
        for chain in self.chains.values():
            if chain:
                yield from chain

    def lose(self, tokens: Collection[Hashable], busy: Collection[Hashable]) -> list[Delivery]:
        """These are no longer ours. Those that nobody is at are forgotten; of the `busy` the outcome settles nothing.

        Returns what followed them in their chains and is still ours: it may not be handled before them, so it is taken
        out of the chains (still held) and is to be released.
        """
        held = self.held
        gone = {token for token in tokens if token in held}
        if not gone:
            return []
        followers: list[Delivery] = []
        for key in {self.chain_of(held[token]) for token in gone}:
            chain = self.chains.get(key) if key is not None else None
            if key is not None and chain:
                behind = [d for d in chain if d.token not in gone]
                followers += behind
                self.leaving.update((d.token, key) for d in behind)
                chain.clear()
        for token in gone.intersection(busy):
            self.moved[token] = None
        idle = gone.difference(busy)
        heads = [d for d in self.ready if d.token in idle]
        if heads:
            self._remove(self.ready, idle)
        heads += [self.delayed.pop(token) for token in idle if token in self.delayed]
        for token in idle.intersection(self.aside):
            delivery = self.aside.pop(token)
            if token in self._aside_heads:
                self._aside_heads.discard(token)
                heads.append(delivery)
        for token in idle:
            self.free(held[token])
        for head in heads:
            self.advance(head)
        return followers

    def set_aside(self, deliveries: Iterable[Delivery]) -> None:
        """Out of the queues and out of everybody's reach, but held."""
        out = {d.token: d for d in deliveries if d.token not in self.aside}
        if not out:
            return
        heads = set(out)
        for chain in self.chains.values():
            if chain and any(d.token in out for d in chain):
                heads.difference_update(d.token for d in chain)
                self._remove(chain, out)
        self._remove(self.ready, out)
        self.aside.update(out)
        self._aside_heads |= heads

    @staticmethod
    def _remove(queue: deque[Delivery], tokens: Collection[Hashable]) -> None:
        kept = [d for d in queue if d.token not in tokens]
        queue.clear()
        queue.extend(kept)

    def restore(self, taken: Sequence[Delivery]) -> None:
        """Give back what was taken in this order and not handled, each to its place: one of a chain is ready."""
        heads: list[Delivery] = []
        followers: list[Delivery] = []
        seen: set[bytes] = set()
        for delivery in taken:
            key = self.chain_of(delivery)
            if key is not None and key in seen:
                followers.append(delivery)
                continue
            if key is not None:
                seen.add(key)
            heads.append(delivery)
        self.follow_first(followers)
        self.ready.extendleft(reversed(heads))

    def follow_first(self, followers: Sequence[Delivery]) -> None:
        """Put these, in this order, right behind the heads of their chains."""
        for delivery in reversed(followers):
            key = self.chain_of(delivery)
            assert key is not None
            chain = self.chains.get(key)
            if chain is None:
                chain = self.chains[key] = deque()
            chain.appendleft(delivery)

    def hold_again(self, delivery: Delivery) -> None:
        """Hold what was handed out again while its settlement was on its way; it is only to be settled."""
        self.held[delivery.token] = delivery
        self.bytes += OVERHEAD + (len(delivery.body) if delivery.body is not None else 0)
