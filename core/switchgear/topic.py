"""What is declared about a topic: its name, what it carries, its order; publisher and consumers share it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, Literal

from .errors import ConfigurationError
from .units import Seconds, seconds

if TYPE_CHECKING:
    from typing_extensions import TypeForm, TypeVar

    D = TypeVar("D", default=Any)
else:
    from typing import TypeVar

    D = TypeVar("D")

TOPIC_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{2,79}")
GROUP_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,79}")
ORDERS = ("none", "key", "total")


def check_topic_name(name: object) -> str:
    """The name, if it fits the grammar that every transport shares. Raises ConfigurationError."""
    if not isinstance(name, str) or not TOPIC_NAME.fullmatch(name):
        raise ConfigurationError(
            f"topic name {name!r} is outside the grammar: a letter, then letters, digits, '_', '.', '-', "
            "3 to 80 characters in all"
        )
    for part in ("__", "_.", "._"):
        if part in name:
            raise ConfigurationError(f"topic name {name!r} contains {part!r}, which is reserved: use '-' or '.' alone")
    if name.startswith("sg."):
        raise ConfigurationError(f"topic name {name!r} starts with 'sg.', which is reserved for internal topics")
    return name


def check_group_name(name: object) -> str:
    """The group's name, if it fits the grammar. Raises ConfigurationError."""
    if not isinstance(name, str) or not GROUP_NAME.fullmatch(name) or "__" in name:
        raise ConfigurationError(
            f"group name {name!r} is outside the grammar: a letter, then letters, digits, '_', '-' (no dots, no '__'), "
            "at most 80 characters"
        )
    return name


class Topic(Generic[D]):
    """A named stream of values of one type.

    `schema` is anything that the codec can write and read: a msgspec Struct, dataclass, TypedDict, pydantic model,
    builtin or a union of these; left out, plain JSON values. `key` gives the ordering key of a value. `order` is what
    every group may rely on: "none", "key" (the default with a `key`) or "total". `partitions` and `retention`
    (seconds) count where the topic is created. Raises ConfigurationError for a name outside the grammar.
    """

    __slots__ = ("codec", "envelope", "key", "name", "order", "partitions", "priorities", "retention", "schema", "type")

    name: str

    def __init__(
        self,
        name: str,
        schema: TypeForm[D] = Any,
        *,
        key: Callable[[D], str] | None = None,
        type: str | None = None,
        codec: str = "application/json",
        envelope: Literal["cloudevents", "none"] = "cloudevents",
        order: Literal["none", "key", "total"] | None = None,
        partitions: int | None = None,
        retention: Seconds | None = None,
        priorities: Sequence[str] = (),
    ) -> None:
        self.name = check_topic_name(name)
        self.schema: Any = schema
        self.key = key
        self.type = type
        self.codec = codec
        if envelope not in ("cloudevents", "none"):
            raise ConfigurationError(f"topic {name!r}: envelope is {envelope!r}; expected 'cloudevents' or 'none'")
        self.envelope = envelope
        if order is not None and order not in ORDERS:
            raise ConfigurationError(f"topic {name!r}: order is {order!r}; expected one of {', '.join(ORDERS)}")
        self.order: Literal["none", "key", "total"] | None = order if order or key is None else "key"
        if partitions is not None and partitions < 1:
            raise ConfigurationError(f"topic {name!r}: partitions is {partitions}; expected 1 or more")
        self.partitions = partitions
        self.retention = None if retention is None else seconds(retention)
        if self.retention is not None and self.retention <= 0:
            raise ConfigurationError(f"topic {name!r}: retention is {retention!r}; expected more than 0 seconds")
        self.priorities = tuple(priorities)

    def __repr__(self) -> str:
        return f"Topic({self.name!r})"
