"""Declaring subscriptions; a Router can be filled without a bus and included later."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, overload

import msgspec

from .config import check_knobs
from .errors import ConfigurationError
from .knobs import Batch, Batches, Chains, Handles, Knobs
from .topic import Topic, check_group_name

if TYPE_CHECKING:
    from typing_extensions import TypeVar as TypeVarDefault

    U = TypeVarDefault("U", default=Any)
    D = TypeVarDefault("D", default=Any)
else:
    U = TypeVar("U")
    D = TypeVar("D")


class Declared(msgspec.Struct, eq=False):
    """One handler as declared, before any bus has compiled it."""

    topic: Topic[Any]
    named: bool
    """Whether the topic was given by its name alone, so that schema, order and partitions are left open."""
    group: str | None
    fn: Callable[..., Any]
    knobs: dict[str, object] = msgspec.field(default_factory=dict[str, object])
    batch: Batch | None = None
    to: Topic[Any] | None = None

    @property
    def where(self) -> str:
        from .signature import describe

        return describe(self.fn)


def as_topic(topic: Topic[Any] | str) -> Topic[Any]:
    """A topic by its declaration or by its name. Raises ConfigurationError for anything else."""
    if isinstance(topic, Topic):
        return topic
    if isinstance(topic, str):
        return Topic(topic)
    raise ConfigurationError(f"expected a Topic or a topic's name, got {topic!r}")


class Router:
    """Subscriptions that belong together; `bus.include(router)` or `bus.serving(router)` puts them to work."""

    def __init__(self) -> None:
        self._declared: list[Declared] = []
        self._included: list[Router] = []

    def _all(self) -> list[Declared]:
        """Own and included subscriptions, those added after the inclusion too."""
        found = list(self._declared)
        for router in self._included:
            found.extend(router._all())
        return found

    @overload
    def subscribe(self, topic: Topic[D] | str, *, group: str | None, **knobs: Unpack[Knobs]) -> Handles[D]: ...
    @overload
    def subscribe(
        self, topic: Topic[D] | str, *, group: str | None, to: Topic[U] | str, **knobs: Unpack[Knobs]
    ) -> Chains[D, U]: ...
    @overload
    def subscribe(
        self, topic: Topic[D] | str, *, group: str | None, batch: Batch, **knobs: Unpack[Knobs]
    ) -> Batches[D]: ...
    def subscribe(
        self,
        topic: Topic[Any] | str,
        *,
        group: str | None,
        to: Topic[Any] | str | None = None,
        batch: Batch | None = None,
        **knobs: Any,
    ) -> Any:
        """Register the decorated function as a handler of `topic` for `group`, and give it back unchanged.

        `group=None` is broadcast: every process sees every message. `to` publishes what the function returns; `batch`
        hands it lists. The knobs and their defaults are in `Knobs`. Raises ConfigurationError for a name outside the
        grammar, an unknown knob, or a signature that cannot be resolved.
        """
        declared_topic = as_topic(topic)
        if group is not None:
            check_group_name(group)
        where = f"subscribe({declared_topic.name!r}, group={group!r})"
        check_knobs(knobs, where)
        if batch is not None and to is not None:
            raise ConfigurationError(f"{where}: batch= and to= exclude each other: publish from inside the handler")
        if batch is not None and not (isinstance(batch, Batch) and batch.size >= 1 and batch.wait >= 0):
            raise ConfigurationError(f"{where}: batch is {batch!r}; expected Batch of 1 message, 0 s or more")

        def register(fn: Callable[..., Any]) -> Callable[..., Any]:
            from .handlers import check_signature

            check_signature(
                fn, where=where, schema=declared_topic.schema, batch=batch is not None, executor=knobs.get("executor")
            )
            self._declared.append(
                Declared(
                    topic=declared_topic,
                    named=isinstance(topic, str),
                    group=group,
                    fn=fn,
                    knobs=dict(knobs),
                    batch=batch,
                    to=None if to is None else as_topic(to),
                )
            )
            return fn

        return register

    def include(self, *routers: Router) -> None:
        """Take over the subscriptions of other routers. Raises ConfigurationError for a router within itself."""
        for router in routers:
            if router is self or self in router._reach():
                raise ConfigurationError("a router cannot include itself")
            self._included.append(router)

    def _reach(self) -> list[Router]:
        found = list(self._included)
        for router in self._included:
            found.extend(router._reach())
        return found
