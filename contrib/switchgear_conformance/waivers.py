"""Known failures, as data: a case's number and the reason why it is let fail for now.

A file of `[[waiver]]` tables with `case` (number) and `reason`. A waived case must fail: one that passes fails the run,
so that no waiver outlives its reason.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, cast

from switchgear.errors import ConfigurationError

from .case import PENDING
from .catalogue import NUMBERS


def waivers(path: Path) -> dict[int, str]:
    """Reason by case number. Raises ConfigurationError saying what is wrong, and where."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"waivers {path}: can't be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"waivers {path}: {error}") from error
    if unknown := set(document) - {"waiver"}:
        raise ConfigurationError(f"waivers {path}: unknown {', '.join(sorted(unknown))}; expected [[waiver]] tables")
    found: dict[int, str] = {}
    given: object = document.get("waiver", [])
    tables = cast("list[Any]", given) if isinstance(given, list) else [given]
    for n, one in enumerate(tables, start=1):
        match one:
            case {"case": int() as number, "reason": str() as reason} if len(one) == 2 and reason.strip():
                if not 1 <= number <= NUMBERS or number in PENDING:
                    raise ConfigurationError(f"waivers {path}: waiver {n}: there is no case {number} to waive")
                if number in found:
                    raise ConfigurationError(f"waivers {path}: case {number} is waived twice")
                found[number] = reason
            case _:
                raise ConfigurationError(
                    f"waivers {path}: waiver {n}: expected case = NUMBER and reason = 'TEXT', and nothing else"
                )
    return found
