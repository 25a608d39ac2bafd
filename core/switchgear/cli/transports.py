"""`switchgear transports`: which brokers this installation speaks to."""

from __future__ import annotations

from typing import Any, cast

import msgspec

from .execute import execute
from .options import Json


def transports(json: Json = False) -> None:
    """List the installed URL schemes, the client behind each, and the most that each transport can do."""
    execute(_transports(json))


async def _transports(json: bool) -> None:
    from switchgear.plugins import schemes

    from .output import print_json, print_table

    found = [_describe(scheme, module) for scheme, module in schemes().items()]
    if json:
        print_json(found)
        return
    print_table(
        ("scheme", "plugin", "client"),
        [(f"{one['scheme']}://", one["module"], one["client"] or one["problem"]) for one in found],
    )
    usable = [one for one in found if one["capabilities"]]
    names = list(dict.fromkeys(name for one in usable for name in one["capabilities"]))
    print_table(
        ("capability", *(one["scheme"] for one in usable)),
        [(name, *(short(one["capabilities"].get(name)) for one in usable)) for name in names],
    )


def _describe(scheme: str, module: str) -> dict[str, Any]:
    from switchgear.errors import SwitchgearError
    from switchgear.plugins import open_transport

    described: dict[str, Any] = {
        "scheme": scheme, "module": module, "client": _client(module), "capabilities": {}, "problem": None
    }  # fmt: skip
    for where in ("localhost", "/unused.db"):  # nothing is opened before connect: any URL that the plugin accepts does
        try:
            described["capabilities"] = plain(open_transport(f"{scheme}://{where}").capabilities)
        except (SwitchgearError, ImportError) as error:  # one that is broken does not hide the others
            described["problem"] = described["problem"] or str(error)
        else:
            described["problem"] = None
            break
    return described


def _client(module: str) -> str | None:
    """Name and version of the client library: what the plugin's extra requires, as far as it is installed."""
    import re
    from importlib.metadata import PackageNotFoundError, requires, version

    extra = module.removeprefix("switchgear_")
    found: list[str] = []
    for requirement in requires("switchgear") or []:
        wanted, _, marker = requirement.partition(";")
        name = re.match(r"[A-Za-z0-9._-]+", wanted)
        if name and re.search(rf"""extra\s*==\s*['"]{re.escape(extra)}['"]""", marker):
            try:
                found.append(f"{name[0]} {version(name[0])}")
            except PackageNotFoundError:
                found.append(f"{name[0]} is missing: pip install 'switchgear[{extra}]'")
    return ", ".join(found) or None


def plain(value: object) -> object:
    """Capabilities as JSON can carry them."""
    import enum
    import sys

    if isinstance(value, msgspec.Struct):
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, enum.Enum):
        return value.name.lower()
    if isinstance(value, frozenset):
        return sorted(map(str, cast("frozenset[object]", value)))
    return "unlimited" if value in (sys.maxsize, float("inf")) else value


def short(value: object) -> str:
    """The same in a cell of a table."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return " ".join(f"{name}={short(part)}" for name, part in cast("dict[str, object]", value).items())
    if isinstance(value, list):
        return " ".join(map(str, cast("list[object]", value)))
    return "-" if value is None else str(value)
