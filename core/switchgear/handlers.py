"""A handler's signature becomes one call, compiled once when its subscription starts.

What a compiled handler is given it passes on as the function asks for it: body, Message, headers, dependencies, bus.
Where the function is a coroutine function and has no dependencies, no frame is added: the call gives its coroutine. So
calling (not only awaiting) may raise, a missing header for example.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, TypeAlias

from .codec import schema_name
from .dependencies import Getter, Graph, Services, Step, binder
from .errors import ConfigurationError
from .message import Message
from .signature import Parameter, Unresolved, admits, describe, handler_parameters, is_async
from .threads import call_in_thread, outlive, without_stop_iteration

__all__ = [
    "BatchCall",
    "Call",
    "Services",
    "body_schema",
    "check_signature",
    "compile_batch",
    "compile_handler",
    "describe",
    "runs_in_thread",
]

Call: TypeAlias = Callable[[Message[Any]], Awaitable[Any]]
BatchCall: TypeAlias = Callable[[list[Message[Any]]], Awaitable[Any]]
"""Resolves to one outcome (None or an exception) an item, or to None when all are well."""


def compile_handler(
    fn: Callable[..., Any], *, where: str, schema: Any, services: Services, executor: Executor | None = None
) -> Call:
    """The call of a handler of single messages.

    `where` is the subscription, for errors; `schema` what the topic carries (Any: anything). With `executor` the body
    alone is passed. Raises ConfigurationError for a signature that cannot be served.
    """
    parameters = _parameters(fn, where, schema, batch=False, executor=executor)
    if executor is not None:
        return lambda message: _run(executor, fn, message._body)
    if is_async(fn):
        direct = _direct(fn, parameters)
        if direct is not None:
            return direct
    return _assemble(fn, parameters, _body, services, batch=False)


def compile_batch(
    fn: Callable[..., Any], *, where: str, schema: Any, services: Services, executor: Executor | None = None
) -> BatchCall:
    """The call of a handler of batches; dependencies are made once a batch. Raises ConfigurationError likewise."""
    parameters = _parameters(fn, where, schema, batch=True, executor=executor)
    if executor is not None:
        return lambda batch: _run(executor, fn, [message._body for message in batch])
    return _assemble(fn, parameters, _bodies, services, batch=True)


def check_signature(
    fn: Callable[..., Any], *, where: str = "", schema: Any = Any, batch: bool = False, executor: Executor | None = None
) -> None:
    """Raise at decoration what can be known then; names that are defined further down the module are left for later."""
    try:
        parameters = _parameters(fn, where, schema, batch=batch, executor=executor)
        graph = Graph(None, batch=batch)
        for parameter in parameters:
            graph.argument(parameter, where)
    except Unresolved:
        pass


def body_schema(fn: Callable[..., Any], batch: bool = False) -> Any:
    """The type of the body as the handler's annotation says it, for a topic that has none; Any where it is silent."""
    parameters = handler_parameters(fn, batch=batch)
    told = [p.schema for p in parameters if p.wanted in ("body", "message") and p.schema is not Any]
    return told[0] if told else Any


def runs_in_thread(fn: Callable[..., Any]) -> bool:
    """Whether the handler is a plain `def`: once begun it cannot be cancelled."""
    return not is_async(fn)


# ---- checks ---------------------------------------------------------------------------------------------------------


def _parameters(
    fn: Callable[..., Any], where: str, schema: Any, *, batch: bool, executor: Executor | None
) -> tuple[Parameter, ...]:
    who = f"handler {describe(fn)}"
    if where and where != describe(fn):
        who = f"{where}: {who}"
    parameters = handler_parameters(fn, batch=batch)
    for p in parameters:
        if p.wanted in ("body", "message") and not admits(p.schema, schema):
            raise ConfigurationError(
                f"{who} takes {schema_name(p.schema)} as {p.name!r}, and the topic carries {schema_name(schema)}"
            )
        if batch and p.wanted == "header":
            raise ConfigurationError(
                f"{who} takes a batch, and {p.name!r} is the header of one message: "
                "take list[Message[…]] and read its headers"
            )
    if executor is not None:
        if is_async(fn):
            raise ConfigurationError(f"{who} is async, executor= runs `def` functions alone")
        for p in parameters:
            if p.wanted != "body":
                raise ConfigurationError(f"{who} asks for {p.name!r}, and with executor= the body alone is passed")
    return parameters


# ---- calls ----------------------------------------------------------------------------------------------------------


def _direct(fn: Callable[..., Any], parameters: Sequence[Parameter]) -> Call | None:
    """The three commonest signatures, without a list of arguments."""
    if any(p.keyword for p in parameters):
        return None
    match [p.wanted for p in parameters]:
        case ["body"]:
            return lambda message: fn(message._body)
        case ["message"]:
            return fn
        case ["body", "message"]:
            return lambda message: fn(message._body, message)
        case _:
            return None


def _assemble(
    fn: Callable[..., Any], parameters: Sequence[Parameter], body: Getter, services: Services, *, batch: bool
) -> Callable[[Any], Awaitable[Any]]:
    graph = Graph(services, batch=batch)
    asker = f"handler {describe(fn)}"
    bind = binder(parameters, [body if p.wanted == "body" else graph.argument(p, asker) for p in parameters])
    invoke = _invoker(fn, services)
    if not graph.steps:
        return lambda message: invoke(*bind(message, ()))
    return partial(_with_dependencies, graph.steps, bind, invoke)


async def _with_dependencies(
    steps: Sequence[Step],
    bind: Callable[[Any, Sequence[Any]], tuple[list[Any], dict[str, Any]]],
    invoke: Callable[[list[Any], dict[str, Any]], Awaitable[Any]],
    message: Any,
) -> Any:
    async with AsyncExitStack() as stack:
        values: list[Any] = []
        for step in steps:
            values.append(await step(message, values, stack))
        return await invoke(*bind(message, values))


def _invoker(fn: Callable[..., Any], services: Services) -> Callable[[list[Any], dict[str, Any]], Awaitable[Any]]:
    if is_async(fn):
        return lambda args, kwargs: fn(*args, **kwargs)
    pool = services.thread_pool()

    async def in_pool(args: list[Any], kwargs: dict[str, Any]) -> Any:
        result = await call_in_thread(pool, partial(fn, *args, **kwargs))
        # A decorator may hide a coroutine function behind a plain one.
        return await result if inspect.isawaitable(result) else result

    return in_pool


def _run(executor: Executor, fn: Callable[..., Any], argument: Any) -> Awaitable[Any]:
    return outlive(executor.submit(without_stop_iteration, fn, argument))


def _body(message: Any, _values: Sequence[Any]) -> Any:
    return message._body


def _bodies(batch: Any, _values: Sequence[Any]) -> Any:
    return [message._body for message in batch]
