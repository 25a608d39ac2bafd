"""Dotted fields of a value: `customer.id`, `lines.0.sku`."""

from __future__ import annotations

from typing import Any

import msgspec

from switchgear.errors import ConfigurationError


def dig(value: Any, path: str) -> Any:
    """The field. Raises KeyError where there is none."""
    for part in path.split("."):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            raise KeyError(path)
    return value


def condition(text: str) -> tuple[str, str]:
    """`FIELD=VALUE` in its two parts. Raises ConfigurationError."""
    field, equals, wanted = text.partition("=")
    if not equals or not field:
        raise ConfigurationError(f"--where {text!r}: expected FIELD=VALUE, for example customer.id=42")
    return field, wanted


def matches(value: Any, field: str, wanted: str) -> bool:
    """Whether the field is `wanted`, as text or as JSON: `42` matches 42 and "42", `true` matches true."""
    try:
        found = dig(value, field)
    except KeyError:
        return False
    if isinstance(found, str):
        return found == wanted
    try:
        asked = msgspec.json.decode(wanted)
    except msgspec.DecodeError:
        return False
    return isinstance(found, bool) == isinstance(asked, bool) and bool(found == asked)
