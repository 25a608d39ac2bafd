"""From a command's coroutine to an exit code."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, NoReturn, TypeVar

import typer

from switchgear.errors import ConfigurationError, SwitchgearError

T = TypeVar("T")

FAILED, USAGE, INTERRUPTED, TERMINATED = 1, 2, 130, 143


def execute(work: Coroutine[Any, Any, T]) -> T:
    """Run it; an error of ours becomes one line on stderr and an exit code, a bug keeps its traceback."""
    try:
        return asyncio.run(_cancelled_by_sigterm(work))
    except asyncio.CancelledError:
        raise typer.Exit(TERMINATED) from None
    except SwitchgearError as error:
        fail(error)
    except ExceptionGroup as group:
        ours, other = group.split(SwitchgearError)
        if ours is None or other is not None:
            raise
        fail(*_leaves(ours))
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


async def _cancelled_by_sigterm(work: Coroutine[Any, Any, T]) -> T:
    """SIGTERM unwinds the command as Ctrl-C does, so that temporary files and worker processes go with it."""
    task = asyncio.current_task()
    assert task is not None
    with suppress(NotImplementedError):  # Windows
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await work


def fail(*errors: SwitchgearError) -> NoReturn:
    """Say what was wrong and exit: 2 when the configuration is, else 1."""
    for text in dict.fromkeys(map(describe, errors)):
        complain(text)
    raise typer.Exit(exit_code(*errors))


def exit_code(*errors: BaseException) -> int:
    return USAGE if all(isinstance(error, ConfigurationError) for error in errors) else FAILED


def describe(error: BaseException) -> str:
    """An error in one line; of the broker's errors the kind is shown, since it says whether to try again."""
    text = str(error) or "no details"
    return text if isinstance(error, ConfigurationError) else f"{type(error).__name__}: {text}"


def complain(text: str) -> None:
    """One line on stderr."""
    print(f"error: {text}", file=sys.stderr)


def note(text: str) -> None:
    """What is worth knowing and no error, on stderr, so that stdout holds the result alone."""
    print(text, file=sys.stderr)


def _leaves(group: ExceptionGroup[SwitchgearError]) -> list[SwitchgearError]:
    found: list[SwitchgearError] = []
    for error in group.exceptions:
        found.extend(_leaves(error) if isinstance(error, ExceptionGroup) else [error])
    return found
