"""`switchgear explain`: what a program asks for, and what the broker makes of it."""

from __future__ import annotations

import typer

from .execute import USAGE, execute
from .options import Json, Target, Urls


def explain(target: Target, url: Urls = None, json: Json = False) -> None:
    """Show for each guarantee whether the broker gives it (native), Switchgear adds it (emulated) or nobody can
    (refused); the physical names; and every setting with its origin.

    Exits with 2 when something is refused, as starting the program would.
    """
    execute(_explain(target, url or [], json))


async def _explain(target: str, urls: list[str], json: bool) -> None:
    from switchgear.guarantees import explain
    from switchgear.plugins import redact

    from .output import print_json, print_table
    from .targets import load

    [bus] = load([target], urls)
    found = await explain(bus)
    if json:
        print_json(
            {
                "bus": bus.name,
                "url": redact(bus.url),
                "guarantees": [
                    {
                        "topic": need.topic,
                        "group": need.group,
                        "need": need.need,
                        "asked": need.asked,
                        "origin": need.origin,
                        "how": need.how,
                        "detail": need.detail,
                    }
                    for need in found.needs
                ],
                "names": [
                    {"name": logical, "physical": physical, "kind": kind} for logical, physical, kind in found.names
                ],
                "settings": [
                    {"setting": path, "value": value, "origin": origin} for path, value, origin in found.settings
                ],
            }
        )
    else:
        print(f"{bus.name} on {redact(bus.url)}\n")
        print_table(
            ("topic", "group", "guarantee", "asked", "how", "detail"),
            [(n.topic, n.group, n.need, n.asked, n.how, n.detail) for n in found.needs],
            title="guarantees",
        )
        print_table(("name", "physical", "kind"), found.names, title="names")
        print_table(("setting", "value", "origin"), found.settings, title="settings")
    if any(need.how == "refused" for need in found.needs):
        raise typer.Exit(USAGE)
