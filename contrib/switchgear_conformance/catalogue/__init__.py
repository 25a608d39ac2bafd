"""The cases, collected from this package and from nowhere else: an author can't override one."""

from __future__ import annotations

import pkgutil
from functools import lru_cache
from importlib import import_module

from switchgear_conformance.case import PENDING, Case

NUMBERS = 94


@lru_cache(maxsize=1)
def catalogue() -> tuple[Case, ...]:
    """Every case by number, the driver's before the bus's."""
    found: dict[str, Case] = {}
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        for value in vars(import_module(module.name)).values():
            case = getattr(value, "__case__", None)
            if isinstance(case, Case) and case.body is value and case.body.__module__ == module.name:
                if case.id in found or case.number in PENDING or not 1 <= case.number <= NUMBERS:
                    raise RuntimeError(f"case {case.id} is there twice, is pending, or has no number of the catalogue")
                found[case.id] = case
    return tuple(sorted(found.values(), key=lambda case: (case.number, case.level != "driver", case.part)))
