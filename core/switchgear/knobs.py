"""What a subscription or a publish declares: every tunable once, with its unit and its default."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import datetime
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    Literal,
    ParamSpec,
    Protocol,
    TypeAlias,
    TypedDict,
    overload,
)

from .message import Message
from .units import Seconds, When

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    U = TypeVar("U", default=Any)
    D = TypeVar("D", default=Any)
else:
    from typing import TypeVar

    U = TypeVar("U")
    D = TypeVar("D")

PUBLISH = 30.0  # seconds of a publish's default timeout

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Retry:
    """Exponential backoff with full jitter: before attempt n+1 wait `random(0, min(cap, base * 2**(n-1)))` seconds."""

    attempts: int | None = 5
    """Calls of the handler, the first included; None: no limit."""
    base: float = 0.2
    cap: float = 60.0
    on: tuple[type[Exception], ...] = (Exception,)
    """What is worth another attempt; anything else is dead-lettered at once."""


@dataclass(frozen=True)
class DeadLetter:
    """Where exhausted messages go, and what becomes of their key where order is kept."""

    topic: str | None = None
    """None: the group's own, `sg.dlq.<topic>.<group>`."""
    after: Literal["continue", "park", "stop"] = "continue"


@dataclass(frozen=True)
class Batch:
    """The handler takes up to `size` messages at once; a first message waits up to `wait` seconds for others."""

    size: int
    wait: float = 0.0


@dataclass(frozen=True)
class Rate:
    """At most `limit` handlers started in `per` seconds."""

    limit: int
    per: float = 1.0


@dataclass(frozen=True)
class Breaker:
    """A circuit breaker: opens at a failure ratio in a window of seconds, probes after the cooldown."""

    name: str | None = None
    ratio: float = 0.5
    window: float = 10.0
    cooldown: float = 5.0
    probes: int = 1


class Depends:
    """In `Annotated[T, Depends(provider)]`: the argument is what `provider` returns or yields, once per message."""

    def __init__(self, provider: Callable[..., Any], *, scope: Literal["message", "bus"] = "message") -> None:
        self.provider = provider
        self.scope = scope


class Header:
    """In `Annotated[str | None, Header("tenant")]`: the argument is that header of the message."""

    def __init__(self, name: str) -> None:
        self.name = name


class Inbox(Protocol):
    """A store of completed message ids."""

    async def claim(self, id: str, lease: float) -> bool: ...
    async def complete(self, id: str) -> None: ...
    async def release(self, id: str) -> None: ...


class Tuning(Protocol):
    """Broker-specific settings, typed by the transport they are for and ignored by the others."""

    @property
    def scheme(self) -> str: ...


Handler: TypeAlias = Callable[[Message[Any]], Awaitable[object]]
Middleware: TypeAlias = Callable[[Handler], Handler]


class Knobs(TypedDict, total=False):
    """Every tunable of a subscription, once: keyword arguments of `subscribe`, keys in switchgear.toml."""

    order: Literal["none", "key", "total"]  # less than the topic's, never more
    concurrency: int  # 16: handlers (or batches) running at once in this process
    delivery: Literal["at_least_once", "at_most_once", "exactly_once"]  # at_least_once
    start: Literal["new", "earliest"] | datetime  # new
    timeout: Seconds  # none: one attempt's time, then TimeoutError as if the handler had raised it
    retry: Retry  # Retry()
    dead_letter: bool | str | DeadLetter  # True
    lease: Seconds  # 30: how long a dead member's messages wait; Kafka: session timeout
    max_handling: Seconds  # 1800: how long one attempt's lease is extended
    window: int  # 5000: messages of a lane held or finished behind its head
    unhandled: Literal["drop", "dead_letter"]  # dead_letter: a type that no handler of the group takes
    inbox: Inbox
    breaker: Breaker
    rate: Rate
    executor: Executor
    middleware: Sequence[Middleware]
    tuning: Sequence[Tuning]


class PublishOptions(TypedDict, total=False):
    """What one publish may say beside topic and value."""

    key: str
    headers: Mapping[str, str]
    delay: When
    expires: When
    priority: str
    id: str
    timeout: Seconds  # 30 (PUBLISH): waiting, sending and retries
    retry_indeterminate: bool  # True


Outcomes: TypeAlias = Sequence[Exception | None] | None


class Handles(Generic[D]):
    """What `subscribe` returns: it registers the function and gives it back unchanged."""

    @overload
    def __call__(self, fn: Callable[Concatenate[Message[D], P], R], /) -> Callable[Concatenate[Message[D], P], R]: ...
    @overload
    def __call__(self, fn: Callable[Concatenate[D, P], R], /) -> Callable[Concatenate[D, P], R]: ...

    def __call__(self, fn: Any, /) -> Any:
        return fn


class Chains(Generic[D, U]):
    """The same with `to=`: the returned value is what that topic carries, or None for nothing."""

    @overload
    def __call__(
        self, fn: Callable[Concatenate[D, P], Coroutine[Any, Any, U | None]], /
    ) -> Callable[Concatenate[D, P], Coroutine[Any, Any, U | None]]: ...
    @overload
    def __call__(self, fn: Callable[Concatenate[D, P], U | None], /) -> Callable[Concatenate[D, P], U | None]: ...

    def __call__(self, fn: Any, /) -> Any:
        return fn


class Batches(Generic[D]):
    """The same with `batch=`: a list in, one outcome per item (or None for success) out."""

    @overload
    def __call__(
        self, fn: Callable[Concatenate[list[Message[D]], P], Coroutine[Any, Any, Outcomes]], /
    ) -> Callable[Concatenate[list[Message[D]], P], Coroutine[Any, Any, Outcomes]]: ...
    @overload
    def __call__(
        self, fn: Callable[Concatenate[list[D], P], Coroutine[Any, Any, Outcomes]], /
    ) -> Callable[Concatenate[list[D], P], Coroutine[Any, Any, Outcomes]]: ...

    def __call__(self, fn: Any, /) -> Any:
        return fn
