"""Known failures, as data: a case's number and the reason why it is let fail for now.

A file of `[[waiver]]` tables with `case` (number) and `reason`. A waived case must fail: one that passes fails the run,
so that no waiver outlives its reason.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

import msgspec

from switchgear.errors import ConfigurationError

from .case import PENDING
from .catalogue import NUMBERS


class Waiver(msgspec.Struct, forbid_unknown_fields=True):
    case: int
    reason: str


class File(msgspec.Struct, forbid_unknown_fields=True):
    waiver: list[Waiver] = []


def waivers(path: Path) -> dict[int, str]:
    """Reason by case number. Raises ConfigurationError saying what is wrong, and where."""
    try:
        file = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), type=File)
    except OSError as error:
        raise ConfigurationError(f"waivers {path}: can't be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"waivers {path}: {error}") from error
    except msgspec.ValidationError as error:
        raise ConfigurationError(
            f"waivers {path}: {error}; expected [[waiver]] tables of case = NUMBER and reason = 'TEXT'"
        ) from error
    found: dict[int, str] = {}
    for one in file.waiver:
        if not 1 <= one.case <= NUMBERS or one.case in PENDING:
            raise ConfigurationError(f"waivers {path}: there is no case {one.case} to waive")
        if one.case in found:
            raise ConfigurationError(f"waivers {path}: case {one.case} is waived twice")
        if not one.reason.strip():
            raise ConfigurationError(f"waivers {path}: the waiver of case {one.case} gives no reason")
        found[one.case] = one.reason
    return found
