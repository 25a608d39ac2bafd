"""The contract between the core and a transport.

A transport maps words. It never coalesces, logs, parses bodies, starts a task that outlives `close`, and never retries,
except inside a client whose own resend the broker deduplicates, bounded by `deadline`. Coalescing, order, retries,
leases, dead letters, envelopes and codecs are done once, in the core, for every transport.

`deadline` is always an instant of `asyncio.get_running_loop().time()`. `send`, `settle` and `receive` may overlap.
Only exceptions of the client and of the system are mapped to errors of ours (a short table near the driver's top, the
client's exception as `__cause__`); anything else is a bug and propagates.

Names that reach a driver are physical: namespace, escaping and partition number are already in them.
"""

import math
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Hashable, Mapping, Sequence
from enum import Enum, IntEnum
from typing import Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import msgspec

from .clock import Clock
from .errors import TransportError

Headers: TypeAlias = list[tuple[str, bytes]]
Start: TypeAlias = Literal["new", "earliest"] | float
"""Where a new group begins; a float is unix seconds. A position (a string) goes only through `Seekable`."""


class Verdict(Enum):
    """What becomes of a delivery."""

    ACK = "ack"  # handled: never again to this group
    RETRY = "retry"  # failed: again after `seconds`, its delivery counted
    EXTEND = "extend"  # still being handled: the lease is `seconds` from now
    RELEASE = "release"  # not handled: give it back at once, its delivery not counted


class Settling(Enum):
    """How a broker acknowledges."""

    INDIVIDUAL = "individual"  # message by message
    CUMULATIVE = "cumulative"  # a position per lane: all up to and including it


class Order(IntEnum):
    """What order a group sees; a higher grade includes the lower. "none", "key" and "total" in the public API."""

    NONE = 0
    KEY = 1
    TOTAL = 2


class Outgoing(msgspec.Struct, frozen=True, gc=False):
    """One message to store. The driver changes nothing of it."""

    topic: str
    """Physical name."""
    body: bytes | None
    """None: a tombstone; only where `capabilities.tombstones`."""
    media: bytes | None = None
    """Content type; None for plain bytes of unknown kind."""
    headers: Headers = []
    """In order, names may repeat; the same list object may be shared between messages: not to be changed."""
    key: bytes | None = None
    dedup: str | None = None
    """Token of one logical send. A broker that deduplicates may drop a second message with the same token."""
    due: float | None = None
    """Not to be delivered before, unix seconds; only where `capabilities.delay` reaches that far: the core asks for
    no more, and a driver that is asked all the same refuses, or keeps it."""
    expires: float | None = None
    """Worthless after, unix seconds. A driver may use the broker's time-to-live, or ignore it: the core judges too."""
    priority: int | None = None
    """Only where `capabilities.priority`; elsewhere the core refuses it."""
    private: bool = False
    """Read by one group alone (retry, delay, dead letter, reply): a topic that `send` may create without a plan."""
    marked: bool = False
    """The headers hold an attribute on which the core acts before the handler (expiry, reply address, attempts)."""


class Delivery(msgspec.Struct, gc=False):
    """One message handed out. What is costly to derive (headers, position, time) the source reads on demand."""

    topic: str
    """Physical name, as subscribed (of a partitioned topic the partition's)."""
    body: bytes | None
    media: bytes | None
    key: bytes | None
    lane: str
    """Where the broker keeps an order: unique per assignment ("orders/3#17"); "" where there are no lanes."""
    token: Hashable
    """Unique among all that this source hands out, over all topics; equal when the same stored message is handed out
    again. For CUMULATIVE it is, or ends in, an int that rises along the lane: the offset."""
    deliveries: int | None
    """1 for the first time; the broker's count less releases where the driver can. None where the broker has none."""
    until: float = math.inf
    """End of the lease on the loop's clock; one value for all of a batch."""
    fence: int = 0
    """Rises whenever the lane (or the key) changes hands; 0 where no order is kept."""
    native: object = None
    """The client's own message, or what the source needs to answer `headers`, `position` and `time`."""
    marked: bool = True
    """False only where the driver knows that `Outgoing.marked` was False: the core then reads no header."""


class Settlement(msgspec.Struct, gc=False):
    """A verdict on one delivery."""

    delivery: Delivery
    verdict: Verdict
    seconds: float = 0.0
    """RETRY: not before; EXTEND: the lease from now."""
    note: str = ""
    """CUMULATIVE: the core's state of the lane, stored with the watermark (at most `capabilities.note` bytes)."""


class Fence(msgspec.Struct, frozen=True):
    """A `Registry` row and the revision under which we hold it: a settlement under an older revision is refused."""

    row: str
    revision: int


class Subscription(msgspec.Struct, frozen=True, kw_only=True):
    """What one source reads."""

    topics: Mapping[str, Fence | None]
    """Physical names; a Fence where the core leases the topic (a partition), else None."""
    group: str | None
    """Physical name; None: broadcast, every source sees everything."""
    consumer: str
    """Unique, new at every start: bus name, host, pid, random."""
    start: Start = "new"
    order: Order = Order.NONE
    """For a group at most `capabilities.order`; a driver raises Unsupported for more."""
    lease: float = 30.0
    """Seconds after which the unsettled deliveries of a dead member go to others."""
    outstanding: int = 5000
    """The most deliveries that will be unsettled at once (max_ack_pending and the like)."""
    private: bool = False
    own: Collection[str] = ()
    """Topics, now or later among `topics`, that no other group ever reads: what is settled there may be deleted."""
    transacts: bool = False
    """What is settled will be settled by `Transactional.commit`; a driver may get ready for it."""


class Dedup(msgspec.Struct, frozen=True):
    """What the broker deduplicates by `Outgoing.dedup`."""

    scope: Literal["topic", "broker"]
    window: float
    """Seconds."""


class HeaderLimits(msgspec.Struct, frozen=True):
    """The broker's own bounds on headers; the core refuses what is beyond them before sending."""

    count: int = sys.maxsize
    name: int = sys.maxsize  # bytes
    value: int = sys.maxsize  # bytes
    total: int = sys.maxsize  # bytes, names and values
    text: bool = False
    """Values must be text (UTF-8)."""


class NameRules(msgspec.Struct, frozen=True):
    """What the broker admits in a physical name; the core escapes every other character and cuts with a hash."""

    extra: str = "_.-"
    """Characters admitted beside ASCII letters and digits."""
    length: int = 200


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What the broker itself does, graded. The runtime enforces the same values that the conformance suite tests.

    Before `connect` it is the most that the transport can be, afterwards what this server gives: probed, never assumed
    from a version. The defaults are the weakest.
    """

    settling: Settling = Settling.INDIVIDUAL
    order: Order = Order.NONE
    """The most that the broker keeps for a group of several members without the core's partitions and leases."""
    sends: int = 1
    """How many `send` calls may run at once."""
    send_order: bool = False
    """Within one `send`, after a failed item no later item of its key and topic is stored."""
    immediate: bool = False
    """`send` stores without waiting for anything; the core then sends message by message."""
    batch: int = 500
    """Preferred number of messages in a `send`."""
    batch_limit: int = sys.maxsize
    """Most messages in a `send`."""
    batch_bytes: int = sys.maxsize
    """Most bytes (bodies, keys and headers) in a `send`."""
    body: int = 1_000_000
    """Longest body, bytes."""
    headers: HeaderLimits = HeaderLimits()
    names: NameRules = NameRules()
    binding: str = "ce-"
    """Prefix of CloudEvents attributes in headers, as in the broker's protocol binding."""
    tombstones: bool = False
    groups: bool = False
    broadcast: bool = False
    residue: float = 0.0
    """Seconds that a crashed broadcast subscriber's leftovers stay on the broker."""
    persistent: bool = False
    """Stored messages survive the end of the process and of the broker."""
    ready: float = 0.0
    """Seconds after `subscribe` returned until everything published is delivered; 0: at once."""
    ack_durable: bool = False
    """A confirmed settlement survives a crash of the broker."""
    starts: frozenset[str] = frozenset({"new"})
    """Of "new", "earliest", "time"."""
    retry_delay: float | None = None
    """Longest RETRY delay, seconds; 0: at once only; None: RETRY is not accepted."""
    waiting: int = sys.maxsize
    """How many deliveries of a group may wait for their RETRY time."""
    delay: float = 0.0
    """Longest delay of `Outgoing.due`, seconds; 0: none."""
    counting: Literal["none", "deliveries", "exact"] = "none"
    """`Delivery.deliveries` counts nothing; every hand-out but releases; or RETRY verdicts alone."""
    dedup: Dedup | None = None
    lease_cap: float = 0.0
    """Longest lease, seconds; 0: no leases."""
    fencing: bool = False
    """A settlement by a member that lost its lease is refused (`Lost`), not merely harmless."""
    priority: int = 0
    """How many priorities."""
    ttl: bool = False
    filter: bool = False
    transactions: bool = False
    """The transport is `Transactional`."""
    note: int = 0
    """CUMULATIVE: bytes of `Settlement.note`."""
    revoke_within: float = 0.0
    """Seconds that `revoked` may take before the broker gives the lanes away."""


Revoked: TypeAlias = Callable[[Collection[str], bool], Awaitable[None]]
"""Called by a source with the lanes that are taken away and whether they are already lost (then nothing may be
settled). It may be called from inside `receive`; inside it only `settle` is legal, within `capabilities.revoke_within`
seconds."""


class Source(Protocol):
    """One open subscription."""

    @property
    def capabilities(self) -> Capabilities:
        """Of this subscription; may be less than the transport's."""
        ...

    async def receive(self, limit: int, held: Collection[str] = ()) -> Sequence[Delivery]:
        """Hand out up to `limit` messages; wait up to about a second for the first; may return nothing.

        Called by one task at a time, never cancelled, and at least once a second: with `limit=0` when the core has no
        room, and then it only keeps membership and heartbeats alive. Lanes in `held` are not fetched. A message's
        content never makes it raise. It raises `Unavailable` when the broker cannot be reached: the core calls
        `Transport.connect` and then `receive` again, on this same source, which must then hand out again what it may
        have missed (a stored message handed out twice is recognised by its token). It raises `Lost` when this source
        can't go on: the core closes it and subscribes anew as a new consumer.
        """
        ...

    async def settle(self, batch: Sequence[Settlement]) -> Sequence[TransportError | None]:
        """Carry out verdicts; one outcome an item, in order, confirmed as far as the broker confirms.

        Idempotent. `Lost` means that the delivery is no longer ours, and that the verdict had no effect (for a whole
        topic or lane where the broker tells no more). Raises `Unavailable`: the core settles the batch again later.
        With CUMULATIVE only ACK comes, of a lane's new watermark.
        """
        ...

    async def assign(self, topics: Mapping[str, Fence | None]) -> None:
        """Read these topics from now on instead of those of the subscription (partitions that change hands)."""
        ...

    def note(self, lane: str) -> str:
        """CUMULATIVE: the note stored with the lane's last settlement, "" where there is none."""
        ...

    def headers(self, delivery: Delivery) -> Headers:
        """The message's headers in order. Pure, computed when asked for, like the next two."""
        ...

    def position(self, delivery: Delivery) -> str:
        """Where the message is in its topic, in the broker's terms, as `Seekable` and dead letters use it."""
        ...

    def time(self, delivery: Delivery) -> float:
        """When the broker stored it, unix seconds."""
        ...

    async def close(self) -> None:
        """Leave the group. A pending `receive` returns []. Idempotent; what is unsettled returns to the group."""
        ...


class Transport(Protocol):
    """One connection (or pool) to one broker."""

    @property
    def capabilities(self) -> Capabilities: ...

    async def connect(self, deadline: float) -> None:
        """Reach the broker and probe it. Idempotent: called again after every `Unavailable`, it mends what is broken.

        Raises `Unavailable` (worth trying again), `Refused` (rights) or `ConfigurationError` (not worth it).
        """
        ...

    async def send(self, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        """Store the batch; return when the broker has stored it, one outcome an item, in order.

        `Unavailable`, `NotSent` and `Refused` are definite: not stored. `MaybeSent` is not. It may also raise one of
        these for the whole batch. May run `capabilities.sends` times at once; on ordered topics the core never has one
        key in two running calls, and a key twice in one call only with `capabilities.send_order`. A cancelled call
        counts as MaybeSent for all.
        """
        ...

    async def subscribe(self, subscription: Subscription, revoked: Revoked) -> Source:
        """Join. Returns when everything published from then on will be delivered (where a cloud settles eventually it
        waits, and says so in `capabilities.ready`). Creates the group, and the topic where `provision` did not, or
        raises NotFound."""
        ...

    async def close(self) -> None:
        """Give everything back. Idempotent, bounded, leaves no task, thread or socket."""
        ...


# ---- optional: found by the core with isinstance --------------------------------------------------------------------


class Row(NamedTuple):
    """A row of the registry."""

    value: bytes
    revision: int


@runtime_checkable
class Registry(Protocol):
    """Small shared rows on the broker: leases, members, topic plans, held-back keys."""

    async def read(self, prefix: str) -> Mapping[str, Row]:
        """All live rows whose names start with `prefix`; names are physical."""
        ...

    async def write(self, name: str, value: bytes | None, *, expect: int | None, ttl: float | None) -> int | None:
        """Write one row and return its revision, or None when somebody else was quicker.

        `expect`: None writes in any case, 0 only if there is no live row, else only over that revision. `value=None`
        deletes (and returns the revision deleted, or 0). `ttl` in seconds; None: for good. Revisions of a name only
        rise, over expiry and deletion too. Writing the value that the row already has renews its ttl and keeps its
        revision, so that a lease can be renewed without a new fence.
        """
        ...


@runtime_checkable
class Scheduling(Protocol):
    """The broker keeps what is due later, and somebody must move it."""

    async def promote(self, limit: int) -> float | None:
        """Move up to `limit` messages that are due into their topics, atomically; return the seconds to the next one
        (0: more are due now), None when nothing waits. Any number of processes may call it."""
        ...

    async def cancel(self, topic: str, dedup: str) -> bool:
        """Take back one delayed message that is not yet due; False when there is none."""
        ...


@runtime_checkable
class Seekable(Protocol):
    async def seek(self, topic: str, group: str, to: Start | str) -> None:
        """Move a stopped group (else `Refused`); a str is a position."""
        ...


@runtime_checkable
class Lagged(Protocol):
    async def lag(self, topics: Sequence[str], group: str) -> Mapping[str, int]:
        """Messages not yet settled by the group, by lane (by topic where there are no lanes)."""
        ...


@runtime_checkable
class Browsable(Protocol):
    def browse(self, topic: str, start: Start, end: float | None) -> AsyncIterator[tuple[Delivery, Headers]]:
        """Read what is stored without a group, in stored order, to what is stored now or to `end` (unix seconds)."""
        ...


class Resource(msgspec.Struct, frozen=True, kw_only=True):
    """A topic or group that should exist."""

    kind: Literal["topic", "group"]
    name: str
    """Physical."""
    topic: str | None = None
    """A group's topic, physical."""
    order: Order = Order.NONE
    partitions: int | None = None
    retention: float | None = None
    """Seconds; messages older than this are trimmed, read or not. None: the transport's default."""
    start: Start = "new"
    private: bool = False


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """A difference between what is wanted and what is there; `field="exists"` for a missing resource."""

    resource: Resource
    field: str
    wanted: object
    found: object
    applied: bool


class TopicInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What `topics` knows of a stored topic."""

    name: str
    messages: int | None
    groups: tuple[str, ...]


@runtime_checkable
class Provisioner(Protocol):
    async def provision(self, wanted: Sequence[Resource], apply: bool) -> Sequence[Drift]:
        """Compare with what is there and, with `apply`, create and correct it. Returns every difference found."""
        ...

    async def topics(self, prefix: str) -> Sequence[TopicInfo]:
        """Stored topics whose physical names start with `prefix`, by name."""
        ...


@runtime_checkable
class Trimming(Protocol):
    """A source that knows what retention took from its group."""

    @property
    def trimmed(self) -> Mapping[str, int]:
        """By topic, how many messages this source saw trimmed before the group had handled them; only rises."""
        ...


@runtime_checkable
class Membership(Protocol):
    """A source whose lanes go to others when the group has not heard of this member for a while."""

    @property
    def valid_until(self) -> float:
        """Until when no other member can have its lanes, as far as it is proven, on the loop's clock.

        No handler starts later. It is asked for again and again once it has passed: the source proves its membership
        anew (in `receive`, or whenever its client speaks with the group) and then tells a later instant, or it calls
        `revoked`. Time in which the process stood still counts: what was proven before it is no proof after it.
        """
        ...


@runtime_checkable
class Transactional(Protocol):
    async def commit(
        self, source: Source, settled: Sequence[Settlement], produced: Sequence[Outgoing], deadline: float
    ) -> None:
        """Store `produced`, in order, and carry out `settled` (deliveries of `source`), both or neither.

        Nobody sees any of it before all of it is decided. `settled` is what `Source.settle` would be given; `produced`
        may be more than `capabilities.batch`. Every topic of it may be one that `send` would have made.

        Raises `Lost` where one of `settled` is no longer ours: then nothing was done. `Unavailable` and `NotSent` say
        the same for other reasons, and are tried again; `Refused` is not. `MaybeSent`: nobody knows; the core closes
        the source and subscribes anew, and is then handed out what was not committed. A cancelled call counts as that.
        """
        ...


@runtime_checkable
class Advising(Protocol):
    """A transport that knows a way to a guarantee that it doesn't give as it was opened."""

    def advice(self, need: str) -> str:
        """What to change so that this need (`"exactly_once"`) is met, as the end of a sentence; "" for nothing."""
        ...


@runtime_checkable
class Clocked(Protocol):
    """A transport that lives in this process and takes its time from outside."""

    def set_clock(self, clock: Clock) -> None:
        """Use this clock from now on; called before `connect`."""
        ...
