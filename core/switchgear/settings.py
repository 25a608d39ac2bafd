"""The knobs of a subscription: what is valid, what several handlers agree on, what they come to."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import fields, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, cast

import msgspec

from .errors import ConfigurationError
from .knobs import Batch, Breaker, DeadLetter, Inbox, Middleware, Rate, Retry, Tuning
from .topic import ORDERS, check_topic_name
from .units import Seconds, instant, seconds

if TYPE_CHECKING:
    from .config import Config
    from .driver import Start

CODE, DEFAULT = "code", "default"
DELIVERIES = ("at_least_once", "at_most_once", "exactly_once")


class Settings(msgspec.Struct, frozen=True):
    """A subscription's knobs, resolved: durations in seconds, what was left out as its default."""

    order: Literal["none", "key", "total"] | None = None
    """None: the topic's."""
    concurrency: int = 16
    delivery: str = "at_least_once"
    start: Start = "new"
    timeout: float | None = None
    retry: Retry = msgspec.field(default_factory=Retry)
    dead_letter: DeadLetter | None = msgspec.field(default_factory=DeadLetter)
    """None: exhausted messages are logged and dropped."""
    lease: float = 30.0
    max_handling: float = 1800.0
    window: int = 5000
    unhandled: str = "dead_letter"
    inbox: Inbox | None = None
    breaker: Breaker | None = None
    rate: Rate | None = None
    executor: Executor | None = None
    middleware: tuple[Middleware, ...] = ()
    tuning: tuple[Tuning, ...] = ()
    batch: Batch | None = None


def check_knobs(code: Mapping[str, object], where: str) -> None:
    """Raises ConfigurationError for a knob that does not exist, naming the nearest, or whose value is wrong."""
    for name, value in code.items():
        if name not in KNOBS:
            raise ConfigurationError(f"{where}: there is no knob {name!r}{nearest(name, KNOBS)}")
        check(name, value, where)


def merge(declared: Iterable[tuple[str, Mapping[str, object]]], topic: str, group: str | None) -> dict[str, object]:
    """The knobs of all handlers of one (topic, group), each with its place in the code.

    Raises ConfigurationError naming both handlers where they differ on a knob that both give, or where one takes
    batches and another does not.
    """
    found: dict[str, tuple[str, object]] = {}
    places = list(declared)
    for place, knobs in places:
        for name, value in knobs.items():
            other, before = found.setdefault(name, (place, value))
            if check(name, before, other) != check(name, value, place):
                raise ConfigurationError(
                    f"{_label(topic, group)}: {name} is {before!r} at {other} and {value!r} at {place}; handlers "
                    "of one group share one consumer: give it once, or the same everywhere"
                )
    if "batch" in found:
        single = next((place for place, knobs in places if "batch" not in knobs), None)
        if single is not None:
            raise ConfigurationError(
                f"{_label(topic, group)}: {found['batch'][0]} takes batches and {single} single messages; "
                "use another group for one of them"
            )
    return {name: value for name, (_, value) in found.items()}


def resolve(
    topic: str, group: str | None, code: Mapping[str, object], config: Config
) -> tuple[Settings, dict[str, str]]:
    """A subscription's settings and where each comes from: the file goes before the code, the code before the default.

    Raises ConfigurationError for an unknown knob or a wrong value, naming its origin, and for what broadcast
    (`group=None`) has not: dead letters, an inbox, order across members.
    """
    label = _label(topic, group)
    check_knobs(code, label)
    values = {name: check(name, value, label) for name, value in code.items()}
    origins = {name: CODE if name in code else DEFAULT for name in Settings.__struct_fields__}
    section, origin = config.subscription(topic, group)
    for name, raw in section.items():
        base = values.get(name, DeadLetter() if name == "dead_letter" else getattr(Settings(), name))
        if name == "batch" and "batch" not in code:
            raise ConfigurationError(f"{origin}: batch is set for a subscription whose handler takes single messages")
        values[name] = from_file(name, raw, base, origin)
        origins[name] = origin
    if group is None:
        for name in ("dead_letter", "inbox", "order"):
            if values.get(name) not in (None, "none"):
                raise ConfigurationError(
                    f"{label}: {name} is set for broadcast (group=None), which has no {name.replace('_', ' ')} "
                    f"shared by its members: give a group, or leave {name} out"
                )
        values["dead_letter"] = None
    return Settings(**cast(dict[str, Any], values)), origins


def _label(topic: str, group: str | None) -> str:
    return f"subscription {topic}.{group}" if group is not None else f"broadcast subscription of {topic}"


# ---- one value ------------------------------------------------------------------------------------------------------


def check(name: str, value: object, where: str) -> object:
    """A knob's value as `Settings` holds it. Raises ConfigurationError saying what was expected."""
    try:
        return KNOBS[name](value)
    except ValueError as error:
        raise ConfigurationError(f"{where}: {name} is {value!r}; expected {error}") from None


def from_file(name: str, raw: object, base: object, origin: str) -> object:
    """A knob as TOML writes it, on top of what the code says: a table changes the fields that it names."""
    check_keys(name, raw, origin)
    make = _TABLES.get(name)
    if make is None or not isinstance(raw, Mapping):
        return check(name, _text_instant(raw) if name == "start" else raw, origin)
    table = dict(cast(Mapping[str, Any], raw))
    if make is Retry and table.get("attempts") == "unlimited":
        table["attempts"] = None
    try:
        changed: object = replace(cast(Any, base), **table) if isinstance(base, make) else make(**table)
    except TypeError:
        raise ConfigurationError(f"{origin}: {name} is incomplete; expected {_EXAMPLES[name]}") from None
    return check(name, changed, origin)


def check_from_file(name: str, raw: object, origin: str) -> None:
    """What can be said of a knob in a file before it is known which code it is for."""
    from_file(name, raw, _TABLES[name](1) if name in ("batch", "rate") else None, origin)


def check_keys(name: str, raw: object, origin: str) -> None:
    """Raises ConfigurationError for a knob, or a field of one, that a file cannot have; values are not looked at."""
    if name in IN_CODE_ALONE:
        raise ConfigurationError(f"{origin}: {name} is an object and can be given in code alone")
    if name not in KNOBS:
        raise ConfigurationError(f"{origin}: there is no key {name!r}{nearest(name, set(KNOBS) - IN_CODE_ALONE)}")
    make = _TABLES.get(name)
    if make is None:
        return
    if not isinstance(raw, Mapping):
        if make is DeadLetter or isinstance(raw, make):
            return
        raise ConfigurationError(f"{origin}: {name} is {raw!r}; expected a table such as {_EXAMPLES[name]}")
    known = [part.name for part in fields(cast(Any, make)) if part.name != "on"]
    for key in cast(Mapping[str, object], raw):
        if key not in known:
            raise ConfigurationError(f"{origin}: there is no key {name}.{key}{nearest(key, known)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """ "; did you mean …?", or what there is."""
    from difflib import get_close_matches

    names = sorted(known)
    near = get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(names)}"


def _text_instant(raw: object) -> object:
    if isinstance(raw, str) and raw not in ("new", "earliest"):
        from .envelope import parse_time

        try:
            return parse_time(raw)
        except ValueError:
            return raw
    return raw


def _one_of(*choices: str) -> Callable[[object], str]:
    def parse(value: object) -> str:
        if isinstance(value, str) and value in choices:
            return value
        raise ValueError(f"one of {', '.join(map(repr, choices))}")

    return parse


def _whole(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    raise ValueError("a whole number, 1 or more")


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _duration(value: object) -> float:
    try:
        found = seconds(cast(Seconds, value))
    except ConfigurationError:
        found = 0.0
    if found > 0 and math.isfinite(found):
        return found
    raise ValueError("seconds as a number or a timedelta, more than 0")


def _start(value: object) -> Start:
    if value == "new":
        return "new"
    if value == "earliest":
        return "earliest"
    if isinstance(value, datetime) and value.tzinfo is not None:
        return instant(value, 0.0)
    raise ValueError("'new', 'earliest' or a datetime with a time zone")


def _retry(value: object) -> Retry:
    if not isinstance(value, Retry):
        raise ValueError("Retry(attempts=…, base=…, cap=…)")
    if value.attempts is not None:
        try:
            _whole(value.attempts)
        except ValueError:
            raise ValueError("Retry with attempts of 1 or more, or None for no limit") from None
    if not (_number(value.base) and _number(value.cap) and value.base >= 0 and value.cap >= 0):
        raise ValueError("Retry with base and cap in seconds, 0 or more")
    if not _exceptions(value.on):
        raise ValueError("Retry with on=(…), a tuple of exception classes")
    return value


def _exceptions(value: object) -> bool:
    if not isinstance(value, tuple):
        return False
    kinds = cast(tuple[object, ...], value)
    return all(isinstance(kind, type) and issubclass(kind, Exception) for kind in kinds)


def _dead_letter(value: object) -> DeadLetter | None:
    if isinstance(value, bool):
        return DeadLetter() if value else None
    if isinstance(value, str):
        value = DeadLetter(value)
    if not isinstance(value, DeadLetter):
        raise ValueError("True, False, a topic's name or DeadLetter(…)")
    if value.after not in ("continue", "park", "stop"):
        raise ValueError("DeadLetter with after='continue', 'park' or 'stop'")
    if value.topic is not None:
        try:
            check_topic_name(value.topic)
        except ConfigurationError as error:
            raise ValueError(f"a topic for dead letters, but {error}") from None
    return value


def _batch(value: object) -> Batch:
    if isinstance(value, Batch) and _number(value.wait) and value.wait >= 0:
        try:
            _whole(value.size)
        except ValueError:
            pass
        else:
            return value
    raise ValueError("Batch(size) with a size of 1 or more, and a wait in seconds")


def _rate(value: object) -> Rate:
    if isinstance(value, Rate) and _number(value.limit) and value.limit >= 1 and _number(value.per) and value.per > 0:
        return value
    raise ValueError("Rate(limit, per=seconds) with a limit of 1 or more")


def _breaker(value: object) -> Breaker:
    if (
        isinstance(value, Breaker)
        and all(map(_number, (value.ratio, value.window, value.cooldown, value.probes)))
        and 0 < value.ratio <= 1
        and min(value.window, value.cooldown, value.probes) > 0
    ):
        return value
    raise ValueError("Breaker(…) with a ratio up to 1, window and cooldown in seconds, 1 or more probes")


def _inbox(value: object) -> Inbox:
    if all(callable(getattr(value, method, None)) for method in ("claim", "complete", "release")):
        return cast(Inbox, value)
    raise ValueError("an Inbox, with claim, complete and release")


def _executor(value: object) -> Executor:
    if isinstance(value, Executor):
        return value
    raise ValueError("a concurrent.futures.Executor")


def _middleware(value: object) -> tuple[Middleware, ...]:
    if isinstance(value, Sequence) and all(callable(one) for one in cast(Sequence[object], value)):
        return tuple(cast(Sequence[Middleware], value))
    raise ValueError("a list of middlewares, each a function from a handler to a handler")


def _tuning(value: object) -> tuple[Tuning, ...]:
    if isinstance(value, Sequence) and all(
        isinstance(getattr(one, "scheme", None), str) for one in cast(Sequence[object], value)
    ):
        return tuple(cast(Sequence[Tuning], value))
    raise ValueError("a list of tunings, each of a transport")


def _or_none(parse: Callable[[object], object]) -> Callable[[object], object]:
    return lambda value: None if value is None else parse(value)


KNOBS: Mapping[str, Callable[[object], object]] = {
    "order": _one_of(*ORDERS),
    "concurrency": _whole,
    "delivery": _one_of(*DELIVERIES),
    "start": _start,
    "timeout": _or_none(_duration),
    "retry": _retry,
    "dead_letter": _dead_letter,
    "lease": _duration,
    "max_handling": _duration,
    "window": _whole,
    "unhandled": _one_of("drop", "dead_letter"),
    "inbox": _or_none(_inbox),
    "breaker": _or_none(_breaker),
    "rate": _or_none(_rate),
    "executor": _or_none(_executor),
    "middleware": _middleware,
    "tuning": _tuning,
    "batch": _batch,
}
"""Every knob, and what makes its value that of `Settings` or raises ValueError with what was expected."""
IN_CODE_ALONE = frozenset(("inbox", "executor", "middleware", "tuning"))
_TABLES: Mapping[str, type[Any]] = {
    "retry": Retry, "dead_letter": DeadLetter, "batch": Batch, "rate": Rate, "breaker": Breaker,
}  # fmt: skip
_EXAMPLES = {
    "retry": '{ attempts = 10, cap = 300 }, with attempts = "unlimited" for no limit',
    "dead_letter": '{ after = "park" }',
    "batch": "{ size = 100, wait = 0.2 }",
    "rate": "{ limit = 50, per = 1 }",
    "breaker": "{ ratio = 0.5, cooldown = 5 }",
}
