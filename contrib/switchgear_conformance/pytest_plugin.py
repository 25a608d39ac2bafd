"""`pytest --switchgear NAME`: the cases of the catalogue as tests, on the broker of an installed harness.

Loaded by every pytest of an environment that has Switchgear, so it imports nothing before the option is given.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("switchgear", "conformance of Switchgear transports")
    group.addoption(
        "--switchgear", action="append", default=[], metavar="NAME",
        help="run the conformance catalogue on the broker of this harness (repeat for several)",
    )  # fmt: skip
    group.addoption("--switchgear-url", default="", metavar="URL", help="passed to the harness")
    group.addoption("--switchgear-seed", type=int, default=None, metavar="N", help="seed of everything random")
    group.addoption("--switchgear-waivers", default=None, metavar="FILE", help="TOML of [[waiver]] tables")
    group.addoption(
        "--switchgear-reports", default=None, metavar="FOLDER", help="write NAME.json there for each harness"
    )


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("--switchgear"):
        return
    from _pytest.config import Config  # the source of `args` has no public name

    cases = str(Path(__file__).with_name("pytest_cases.py"))
    if config.args_source is not Config.ArgsSource.ARGS:
        config.args[:] = [cases]  # the catalogue alone, not the tests of the folder
    elif cases not in config.args:
        config.args.append(cases)
