"""`MODULE:BUS` to buses, and what is said of targets that lead nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from switchgear.cli.targets import load
from switchgear.errors import ConfigurationError

APP = """
from switchgear import Bus, Topic
bus = Bus("memory://one", name="one")
other = Bus("memory://two", name="two")
def create():
    return Bus("memory://three", name="three")
def needs(argument):
    return bus
def broken():
    raise KeyError("x")
class Shop:
    bus = bus
number = 5
"""


@pytest.fixture(autouse=True)
def modules(here: Path) -> None:
    """Modules in the working directory."""
    files = {
        "sg_app": APP,
        "sg_runs": "from switchgear import Bus\nbus = Bus('memory://')\nbus.run()\n",
        "sg_wrong": "from switchgear import Bus, Topic\n\ntopic = Topic('a b')\n",
        "sg_missing": "import no_such_module_anywhere\n",
        "sg_syntax": "def\n",
    }
    for name, text in files.items():
        (here / f"{name}.py").write_text(text)
    (here / "sg_pkg").mkdir()
    (here / "sg_pkg" / "__init__.py").write_text("")
    (here / "sg_pkg" / "main.py").write_text(APP)


async def test_buses_factories_and_attributes() -> None:
    names = [bus.name for bus in load(["sg_app:bus", "sg_app:create", "sg_app:Shop.bus", "sg_pkg.main:other"])]
    assert names == ["one", "three", "two"]  # one bus that is named twice is served once


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("sg_app", "expected MODULE:BUS"),
        ("sg_app:", "expected MODULE:BUS"),
        (":bus", "expected MODULE:BUS"),
        ("sg_app.py:bus", "write the module's name and not its file: sg_app:bus"),
        ("./sg_pkg/main.py:bus", "write the module's name and not its file: sg_pkg.main:bus"),
        ("sg_nope:bus", "there is no module 'sg_nope'"),
        ("sg_pkg.nope:bus", "there is no module 'sg_pkg.nope'"),
        ("sg_app:buss", "sg_app has no 'buss'; its buses: bus, other"),
        ("sg_app:number", "is a int and no Bus"),
        ("sg_app:broken", "calling it without arguments raised KeyError"),
        ("sg_app:needs", "calling it without arguments raised TypeError"),
        ("sg_wrong:bus", "importing sg_wrong, line 3: topic name 'a b'"),
        ("sg_missing:bus", "importing sg_missing, line 1: No module named 'no_such_module_anywhere'"),
        ("sg_syntax:bus", "importing sg_syntax raised SyntaxError"),
        ("sg_runs:bus", 'put bus.run() under if __name__ == "__main__"'),
    ],
)
async def test_a_target_that_leads_to_no_bus(target: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        load([target])
    assert message in str(raised.value)


async def test_a_url_goes_to_the_only_bus_or_to_the_one_that_is_named() -> None:
    [bus] = load(["sg_app:bus"], ["memory://x?capacity=5"])
    assert bus.url == "memory://x?capacity=5"
    one, two = load(["sg_app:bus", "sg_app:other"], ["two=memory://y?capacity=6"])
    assert (one.url, two.url) == ("memory://x?capacity=5", "memory://y?capacity=6")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://x", "--url is ambiguous with several buses: write --url NAME=URL; names: one, two"),
        ("three=memory://x", "--url three=…: no bus of that name; names: one, two"),
    ],
)
async def test_a_url_that_belongs_to_no_bus(url: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        load(["sg_app:bus", "sg_app:other"], [url])
    assert message in str(raised.value)
