"""Dependencies of a handler: what each provider gives is made in order, once per message, and unmade in reverse.

A generator is resumed after the handler succeeded, and gets its error thrown in where it failed (cancellation
included), before the call ends: what it raises then is the handler's error. It can replace an error and cannot swallow
one: a failed call stays failed, and the generators around it see that.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from types import TracebackType
from typing import Any, Protocol, TypeAlias

import msgspec

from .codec import admits_none, schema_name
from .errors import CodecError, ConfigurationError
from .knobs import Depends
from .signature import EMPTY, Parameter, describe, function, is_async, provider_parameters
from .threads import call_in_thread, in_thread

Getter: TypeAlias = Callable[[Any, Sequence[Any]], Any]
"""An argument, from the message (or the batch) and the values of the dependencies made so far."""
Step: TypeAlias = Callable[[Any, Sequence[Any], AsyncExitStack], Awaitable[Any]]
"""Makes the next value, and leaves on the stack how to unmake it."""
Bind: TypeAlias = Callable[[Any, Sequence[Any]], tuple[list[Any], dict[str, Any]]]
_Make: TypeAlias = Callable[[list[Any], dict[str, Any], AsyncExitStack], Awaitable[Any]]


class Services(Protocol):
    """What a running bus gives to handlers and dependencies."""

    @property
    def bus(self) -> object:
        """For a parameter annotated `Bus`."""
        ...

    @property
    def overrides(self) -> Mapping[Callable[..., Any], Callable[..., Any]]:
        """Providers that a test replaces, and by what."""
        ...

    def sync_bus(self) -> object:
        """For a parameter annotated `sync.Bus`: a facade of the running bus."""
        ...

    async def bus_scoped(self, provider: Callable[..., Any], open: Callable[[], Awaitable[object]], /) -> object:
        """The value of a dependency with `scope="bus"`, opened once; calls overlap, and a failed `open` is no value."""
        ...

    def bus_stack(self) -> AsyncExitStack:
        """Unwound when the bus closes."""
        ...

    def thread_pool(self) -> Executor:
        """Where plain `def` handlers and dependencies run."""
        ...


class Graph:
    """The providers of one handler, in the order in which they are made."""

    def __init__(self, services: Services | None, *, batch: bool) -> None:
        """Without services it can be checked and not run."""
        self.steps: list[Step] = []
        self._services = services
        self._batch = batch
        self._slots: dict[tuple[Callable[..., Any], str], int] = {}
        self._path: list[Callable[..., Any]] = []

    def argument(self, p: Parameter, asker: str) -> Getter:
        """How a parameter that is no body gets its value. Raises ConfigurationError for what cannot be given."""
        services = self._services
        if p.depends is not None:
            slot = self._add(p.depends)
            return lambda _message, values: values[slot]
        if p.wanted == "header":
            return _header(p, asker)
        if p.wanted == "message":
            return lambda message, _values: message
        bus = None if services is None else services.bus if p.wanted == "bus" else services.sync_bus()
        return lambda _message, _values: bus

    def _add(self, depends: Depends) -> int:
        provider = depends.provider
        if self._services is not None:
            provider = self._services.overrides.get(provider, provider)
        found = self._slots.get((provider, depends.scope))
        if found is not None:
            return found
        if provider in self._path:
            circle = " → ".join(describe(one) for one in [*self._path[self._path.index(provider) :], provider])
            raise ConfigurationError(f"dependencies go in a circle: {circle}")
        self._path.append(provider)
        parameters = provider_parameters(provider)
        for p in parameters:
            self._check_scope(provider, depends.scope, p)
        bind = binder(parameters, [self.argument(p, f"dependency {describe(provider)}") for p in parameters])
        self._path.pop()
        if self._services is not None:
            self.steps.append(_step(provider, depends.scope, bind, self._services))
        slot = self._slots[provider, depends.scope] = len(self._slots)
        return slot

    def _check_scope(self, provider: Callable[..., Any], scope: str, p: Parameter) -> None:
        of_message = p.wanted in ("message", "header")
        if scope == "bus" and (of_message or (p.depends is not None and p.depends.scope != "bus")):
            raise ConfigurationError(
                f'dependency {describe(provider)} has scope="bus" and its parameter {p.name!r} is made per message: '
                'give that scope="bus" as well, or this one scope="message"'
            )
        if self._batch and of_message:
            raise ConfigurationError(
                f"dependency {describe(provider)} asks for the message ({p.name!r}) and is used by a batch handler, "
                "which makes it once a batch"
            )


def binder(parameters: Sequence[Parameter], getters: Sequence[Getter]) -> Bind:
    """All arguments of a call: positional ones, and those by name."""
    positional = [get for p, get in zip(parameters, getters, strict=True) if not p.keyword]
    named = [(p.name, get) for p, get in zip(parameters, getters, strict=True) if p.keyword]
    return lambda message, values: (
        [get(message, values) for get in positional],
        {name: get(message, values) for name, get in named},
    )


def _header(p: Parameter, asker: str) -> Getter:
    name, schema, default = p.header, p.schema, p.default
    if default is EMPTY and schema is not Any and admits_none(schema):
        default = None
    as_text = schema is Any or _takes_text(schema)

    def get(message: Any, _values: Sequence[Any]) -> Any:
        text = message.headers.get(name)
        if text is None:
            if default is EMPTY:
                raise CodecError(f"the header {name!r} is missing, and {asker} needs it")
            return default
        if as_text:
            return text
        try:
            return msgspec.convert(text, schema, strict=False)
        except msgspec.ValidationError:
            raise CodecError(f"the header {name!r} is no {schema_name(schema)}, as {asker} needs it") from None

    return get


def _takes_text(schema: Any) -> bool:
    try:
        msgspec.convert("", schema)
    except (msgspec.ValidationError, TypeError):
        return False
    return True


def _step(provider: Callable[..., Any], scope: str, bind: Bind, services: Services) -> Step:
    make = _maker(provider, services)
    if scope == "bus":

        async def shared(_message: Any, values: Sequence[Any], _stack: AsyncExitStack) -> Any:
            return await services.bus_scoped(provider, lambda: make(*bind(None, values), services.bus_stack()))

        return shared

    def fresh(message: Any, values: Sequence[Any], stack: AsyncExitStack) -> Awaitable[Any]:
        return make(*bind(message, values), stack)

    return fresh


def _maker(provider: Callable[..., Any], services: Services) -> _Make:
    target = function(provider)
    if inspect.isasyncgenfunction(target):
        open_async = asynccontextmanager(provider)

        async def generate(args: list[Any], kwargs: dict[str, Any], stack: AsyncExitStack) -> Any:
            manager = open_async(*args, **kwargs)
            value = await manager.__aenter__()
            stack.push_async_exit(partial(_leave, manager.__aexit__))
            return value

        return generate
    if inspect.isgeneratorfunction(target):
        open_sync = contextmanager(provider)
        pool = services.thread_pool()

        async def generate_in_thread(args: list[Any], kwargs: dict[str, Any], stack: AsyncExitStack) -> Any:
            manager = open_sync(*args, **kwargs)
            entering = in_thread(pool, manager.__enter__)

            async def leave(*error: Any) -> None:
                await asyncio.wait([entering])  # a thread cannot be cancelled: what it opens is closed all the same
                if entering.exception() is None:
                    await asyncio.shield(in_thread(pool, manager.__exit__, *error))

            stack.push_async_exit(partial(_leave, leave))
            return await asyncio.shield(entering)

        return generate_in_thread
    if is_async(provider):

        async def call(args: list[Any], kwargs: dict[str, Any], _stack: AsyncExitStack) -> Any:
            return await provider(*args, **kwargs)

        return call
    if inspect.isclass(provider):

        async def construct(args: list[Any], kwargs: dict[str, Any], _stack: AsyncExitStack) -> Any:
            return provider(*args, **kwargs)

        return construct
    pool = services.thread_pool()

    async def call_plain(args: list[Any], kwargs: dict[str, Any], _stack: AsyncExitStack) -> Any:
        return await call_in_thread(pool, partial(provider, *args, **kwargs))

    return call_plain


async def _leave(
    leave: Callable[..., Awaitable[object]],
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
) -> bool:
    await leave(kind, error, traceback)
    return False  # whatever it says: nothing swallows the handler's error
