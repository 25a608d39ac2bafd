"""Dotted fields of a value: `customer.id`, `lines.0.sku`."""

from __future__ import annotations

from typing import cast

import msgspec

from switchgear.errors import ConfigurationError


def dig(value: object, path: str) -> object:
    """The field. Raises KeyError where there is none."""
    for part in path.split("."):
        try:
            if isinstance(value, dict):
                value = cast("dict[str, object]", value)[part]
            elif isinstance(value, list) and part.isdecimal():
                value = cast("list[object]", value)[int(part)]
            else:
                raise KeyError
        except LookupError:
            raise KeyError(path) from None
    return value


def condition(text: str) -> tuple[str, str]:
    """`FIELD=VALUE` in its two parts. Raises ConfigurationError."""
    field, equals, wanted = text.partition("=")
    if not equals or not field:
        raise ConfigurationError(f"--where {text!r}: expected FIELD=VALUE, for example customer.id=42")
    return field, wanted


def matches(value: object, field: str, wanted: str) -> bool:
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
