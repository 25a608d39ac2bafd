"""For bugs in what the core promises: an attribute of the core is replaced while a transport of the bug is open."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakSet

from .bug import Bug


class Patch:
    """Descriptor in the place of a method. It counts the transports that want it, since a case may open several."""

    def __init__(self, original: Any, broken: Callable[..., Any]) -> None:
        self.original, self.broken = original, broken
        self.users: WeakSet[Bug] = WeakSet()  # one whose case was given up is not asked to `restore`

    def __get__(self, instance: Any, owner: type) -> Any:
        bound: Any = self.broken if self.users else self.original
        return bound.__get__(instance, owner)


def patch(user: Bug, target: type, name: str, broken: Callable[..., Any]) -> None:
    """Let `broken(self, …)` be `target.name` until `restore`; a second call of the same user changes nothing."""
    there = target.__dict__[name]
    if not isinstance(there, Patch):
        there = Patch(there, broken)
        setattr(target, name, there)
    there.users.add(user)


def restore(user: Bug, target: type, name: str) -> None:
    """The right method again, once no other transport wants the broken one."""
    there = target.__dict__[name]
    if isinstance(there, Patch):
        there.users.discard(user)
        if not there.users:
            setattr(target, name, there.original)
