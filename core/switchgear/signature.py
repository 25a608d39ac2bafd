"""What a function asks for: each parameter of a handler or a dependency, told by its annotation."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MethodType, NoneType, SimpleNamespace, UnionType
from typing import Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

from .codec import schema_name
from .errors import ConfigurationError
from .knobs import Depends, Header
from .message import Message

Wanted: TypeAlias = Literal["body", "message", "header", "depends", "bus", "sync_bus"]
EMPTY: Any = inspect.Parameter.empty

_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class Unresolved(ConfigurationError):
    """An annotation names what is not there (yet): at decoration time it may be defined further down."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One argument that we pass. In a batch handler "body" and "message" are lists of these."""

    name: str
    wanted: Wanted
    keyword: bool
    """Pass it by name."""
    schema: Any = Any
    """The value's type: of the body, of a message's body, of a header; Any where it is not said."""
    header: str = ""
    depends: Depends | None = None
    default: Any = EMPTY


def handler_parameters(fn: Callable[..., Any], *, batch: bool) -> tuple[Parameter, ...]:
    """The arguments of a handler in its own order. Raises ConfigurationError for what cannot be given.

    The body is the first parameter that is nothing else by its annotation; parameters with a default that ask for
    nothing of ours are left alone.
    """
    if inspect.isgeneratorfunction(function(fn)) or inspect.isasyncgenfunction(function(fn)):
        raise ConfigurationError(f"handler {describe(fn)} yields: a handler returns, only a dependency may yield")
    known, others = _sort(fn, "handler", batch=batch)
    bodies = [p for p in others if p.default is EMPTY and p.kind not in _VARIADIC]
    if len(bodies) > 1:
        raise ConfigurationError(_surplus("handler", fn, bodies[1].name))
    if not bodies and not any(p.wanted == "message" for p in known.values()):
        bodies = [p for p in others if p.kind is not inspect.Parameter.VAR_KEYWORD]
    for body in bodies[:1]:
        hint = _hint(fn, "handler", body)
        schema = _items(fn, body.name, hint) if batch else hint
        known[body.name] = Parameter(body.name, "body", body.kind is inspect.Parameter.KEYWORD_ONLY, schema)
    if not any(p.wanted in ("body", "message") for p in known.values()):
        raise ConfigurationError(f"handler {describe(fn)} takes neither the body nor the Message: add a parameter")
    return _in_order(fn, "handler", known)


def provider_parameters(provider: Callable[..., Any]) -> tuple[Parameter, ...]:
    """The arguments of a dependency: Message, Header, Depends and Bus. Raises ConfigurationError for another."""
    known, others = _sort(provider, "dependency", batch=False)
    for p in others:
        if p.default is EMPTY and p.kind not in _VARIADIC:
            raise ConfigurationError(_surplus("dependency", provider, p.name))
    return _in_order(provider, "dependency", known)


def signature(fn: Callable[..., Any], role: str) -> inspect.Signature:
    """Raises ConfigurationError where there is none."""
    try:
        return inspect.signature(fn)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"{role} {describe(fn)}: its signature cannot be read ({error}): wrap it in a function of your own"
        ) from None


def function(fn: Callable[..., Any]) -> Callable[..., Any]:
    """What is called in the end: beneath partials and methods; of an object its `__call__`; of a class itself."""
    while True:
        if isinstance(fn, partial):
            fn = fn.func
        elif isinstance(fn, MethodType):
            fn = fn.__func__
        elif inspect.isroutine(fn) or inspect.isclass(fn):
            return fn
        else:
            call = type(fn).__call__
            return call if inspect.isfunction(call) else fn


def is_async(fn: Callable[..., Any]) -> bool:
    """Whether calling it gives a coroutine."""
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(function(fn))


def describe(fn: Callable[..., Any]) -> str:
    """A function's name and where it is written, for messages."""
    target = function(fn)
    name = getattr(target, "__qualname__", None) or type(fn).__qualname__
    code = getattr(inspect.unwrap(target), "__code__", None)
    place = f"{code.co_filename}:{code.co_firstlineno}" if code else getattr(target, "__module__", None) or "built in"
    return f"{name} ({place})"


def _sort(fn: Callable[..., Any], role: str, *, batch: bool) -> tuple[dict[str, Parameter], list[inspect.Parameter]]:
    known: dict[str, Parameter] = {}
    others: list[inspect.Parameter] = []
    for p in signature(fn, role).parameters.values():
        found = None if p.kind in _VARIADIC else _recognise(fn, role, p, _hint(fn, role, p), batch)
        if found is None:
            others.append(p)
        else:
            known[p.name] = found
    return known, others


def _recognise(fn: Callable[..., Any], role: str, p: inspect.Parameter, hint: Any, batch: bool) -> Parameter | None:
    keyword = p.kind is inspect.Parameter.KEYWORD_ONLY
    if get_origin(hint) is Annotated:
        hint, *notes = get_args(hint)
        for note in notes:
            if note is Header or note is Depends:
                raise ConfigurationError(
                    f"{role} {describe(fn)}: parameter {p.name!r} is annotated with {note.__name__} itself: "
                    f"write Annotated[…, {note.__name__}(…)]"
                )
            if isinstance(note, Header):
                return Parameter(p.name, "header", keyword, hint, header=note.name, default=p.default)
            if isinstance(note, Depends):
                return Parameter(p.name, "depends", keyword, hint, depends=note, default=p.default)
    if batch:
        items = _list_items(hint)
        if items is not None and (items is Message or get_origin(items) is Message):
            return Parameter(p.name, "message", keyword, _message_schema(items))
    if hint is Message or get_origin(hint) is Message:
        if batch:
            raise ConfigurationError(
                f"{role} {describe(fn)} takes a batch: parameter {p.name!r} must be list[Message[…]], not one Message"
            )
        return Parameter(p.name, "message", keyword, _message_schema(hint))
    if _is_bus(hint, "switchgear.bus"):
        return Parameter(p.name, "bus", keyword)
    if _is_bus(hint, "switchgear.sync"):
        return Parameter(p.name, "sync_bus", keyword)
    return None


def _in_order(fn: Callable[..., Any], role: str, known: dict[str, Parameter]) -> tuple[Parameter, ...]:
    """Behind a parameter that is left alone, arguments go by name."""
    ordered: list[Parameter] = []
    gap = False
    for p in signature(fn, role).parameters.values():
        found = known.get(p.name)
        if found is None:
            gap = gap or p.kind not in _VARIADIC
        elif gap and p.kind is inspect.Parameter.POSITIONAL_ONLY:
            raise ConfigurationError(f"{role} {describe(fn)}: {p.name!r} stands behind a parameter that gets no value")
        else:
            ordered.append(replace(found, keyword=True) if gap else found)
    return tuple(ordered)


def _is_bus(hint: Any, module: str) -> bool:
    # Whoever annotates with a bus has imported its module; importing it here would be a circle.
    bus = getattr(sys.modules.get(module), "Bus", None)
    return isinstance(bus, type) and isinstance(hint, type) and get_origin(hint) is None and issubclass(hint, bus)


def _message_schema(hint: Any) -> Any:
    return (get_args(hint) or (Any,))[0]


def _list_items(hint: Any) -> Any | None:
    origin = get_origin(hint)
    return get_args(hint)[0] if origin is list or origin is Sequence else None


def _items(fn: Callable[..., Any], name: str, hint: Any) -> Any:
    if hint is Any or hint is list or hint is Sequence:
        return Any
    items = _list_items(hint)
    if items is None:
        raise ConfigurationError(
            f"handler {describe(fn)} takes a batch: parameter {name!r} must be list[…] of bodies or of Message, "
            f"not {schema_name(hint)}"
        )
    return items


def _hint(fn: Callable[..., Any], role: str, p: inspect.Parameter) -> Any:
    if p.annotation is EMPTY:
        return Any
    target = inspect.unwrap(function(fn))
    scope = sys.modules.get(getattr(target, "__module__", None) or "")
    names = getattr(target, "__globals__", None) or vars(scope or SimpleNamespace())
    code, cells = getattr(target, "__code__", None), getattr(target, "__closure__", None)
    local: dict[str, Any] = {}
    if code is not None and cells:
        local = {name: cell.cell_contents for name, cell in zip(code.co_freevars, cells, strict=True) if _filled(cell)}
    holder = SimpleNamespace(__annotations__={p.name: p.annotation})
    try:
        return get_type_hints(holder, names, local, include_extras=True)[p.name]
    except NameError as error:
        raise Unresolved(
            f"{role} {describe(fn)}: the annotation of parameter {p.name!r} cannot be resolved: {error}. "
            "Define or import it at module level, and not under TYPE_CHECKING"
        ) from None
    except (TypeError, SyntaxError, AttributeError) as error:
        raise ConfigurationError(
            f"{role} {describe(fn)}: the annotation of parameter {p.name!r} is no type: {error}"
        ) from None


def _filled(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:  # a name of the enclosing function that has no value yet
        return False
    return True


def _surplus(role: str, fn: Callable[..., Any], name: str) -> str:
    return (
        f"{role} {describe(fn)}: nothing is known to pass for parameter {name!r}: annotate it as Message, Bus, "
        "Annotated[…, Header(…)] or Annotated[…, Depends(…)], or give it a default"
    )


def admits(hint: Any, schema: Any) -> bool:
    """Whether a parameter annotated `hint` takes what a topic of `schema` carries, as far as classes can tell."""
    takes, carries = _classes(hint), _classes(schema)
    if takes is None or carries is None:
        return True
    try:
        return all(any(issubclass(c, t) or (c is int and t in (float, complex)) for t in takes) for c in carries)
    except TypeError:  # a TypedDict, a protocol: only a type checker can tell
        return True


def _classes(hint: Any) -> list[type] | None:
    """The classes of a class or a union of them; None where it is more than that."""
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if get_origin(hint) in (Union, UnionType):
        parts = [_classes(part) for part in get_args(hint)]
        return None if any(part is None for part in parts) else [c for part in parts for c in part or ()]
    if hint is None:
        return [NoneType]
    return [hint] if isinstance(hint, type) and hint is not Any and get_origin(hint) is None else None
