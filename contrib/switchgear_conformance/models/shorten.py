"""Making a program that fails shorter.

Hypothesis shrinks too, but has to play a program at each try, in its own thread, and does not know that steps stand
for themselves: leaving them out one by one takes a hundredth of the tries.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar, cast

S = TypeVar("S", bound=tuple[Any, ...])
Fails = Callable[[tuple[S, ...]], Awaitable[bool]]


async def shorten(steps: tuple[S, ...], fails: Fails[S]) -> tuple[S, ...]:
    """Leave out steps, many at once first, then make arguments smaller, as long as the program still fails."""
    some = len(steps)
    while some:
        at = len(steps)
        while at > 0:
            less = steps[: max(at - some, 0)] + steps[at:]
            if await fails(less):
                steps = less
            at -= some
        some //= 2
    for i in range(len(steps)):
        for j in range(1, len(steps[i])):
            steps = await _smaller(steps, i, j, fails)
    return steps


async def _smaller(steps: tuple[S, ...], i: int, j: int, fails: Fails[S]) -> tuple[S, ...]:
    found = True
    while found:
        found = False
        for value in simpler(steps[i][j]):
            changed = cast("S", (*steps[i][:j], value, *steps[i][j + 1 :]))
            less = (*steps[:i], changed, *steps[i + 1 :])
            if await fails(less):
                steps, found = less, True
                break
    return steps


def simpler(value: object) -> Iterator[object]:
    """Values of the same type to try instead."""
    if value is True:
        yield False
    elif isinstance(value, int) and value > 1:
        yield from sorted({1, value // 2, value - 1})
    elif isinstance(value, bytes | tuple | list) and len(sequence := cast("Any", value)) > 1:
        yield sequence[: len(sequence) // 2]
        yield from (sequence[:i] + sequence[i + 1 :] for i in range(min(len(sequence), 8)))
