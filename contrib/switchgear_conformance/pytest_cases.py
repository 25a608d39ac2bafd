"""What pytest collects for `--switchgear NAME`: one test a case and harness."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from switchgear.errors import SwitchgearError

from .case import Case, Outcome
from .harness import NotRun, harness
from .report import to_json
from .runner import Session, number, pending, plan
from .waivers import waivers

REQUIRED = "SWITCHGEAR_REQUIRE_BROKERS"
"""Set to 1, a broker that can't be had is a failure."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    names: list[str] = list(dict.fromkeys(metafunc.config.getoption("--switchgear") or []))
    metafunc.parametrize("session", names, indirect=True, scope="session")
    metafunc.parametrize("one", plan(None), ids=_id)


def _id(one: object) -> str:
    assert isinstance(one, Case | int)
    return f"{one.id if isinstance(one, Case) else one}-{_name(one)}"


def _name(one: Case | int) -> str:
    return one.name if isinstance(one, Case) else pending(one).name


@pytest.fixture(scope="session")
def session(request: pytest.FixtureRequest) -> Iterator[Session | str]:
    """The broker of a harness, shared by its cases; or why there is none."""
    config, name = request.config, str(request.param)
    file, url = config.getoption("--switchgear-waivers"), config.getoption("--switchgear-url") or ""
    with ExitStack() as stack:
        try:
            opened: Session | str = stack.enter_context(
                Session.open(
                    harness(name), url=url, seed=config.getoption("--switchgear-seed"),
                    waivers=waivers(Path(file)) if file else {},
                )
            )  # fmt: skip
        except NotRun as reason:
            opened = str(reason)
        except SwitchgearError as error:
            raise pytest.UsageError(f"--switchgear {name}: {error}") from error
        yield opened
        folder = config.getoption("--switchgear-reports")
        if folder and isinstance(opened, Session):
            Path(folder).mkdir(parents=True, exist_ok=True)
            (Path(folder) / f"{name}.json").write_bytes(to_json(opened.report))


def test_conformance(session: Session | str, one: Case | int, record_property: Callable[[str, object], None]) -> None:
    if isinstance(session, str):
        if os.environ.get(REQUIRED) == "1":
            pytest.fail(f"{REQUIRED}=1 and a broker is missing: {session}", pytrace=False)
        pytest.skip(f"not run: {session}")
    result = session.run(one)
    record_property("outcome", result.outcome.value)
    if result.outcome is Outcome.FAILED:
        pytest.fail(f"case {number(one)}: {result.reason}\nseed {session.report.seed}\n{result.detail}", pytrace=False)
    if result.outcome is Outcome.WAIVED:
        pytest.xfail(result.reason)
    if result.outcome is Outcome.NOT_RUN and os.environ.get(REQUIRED) == "1":
        pytest.fail(f"{REQUIRED}=1 and a case was not run: {result.reason}", pytrace=False)
    if result.outcome not in (Outcome.PASSED, Outcome.REFUSED):
        pytest.skip(f"{result.outcome}: {result.reason}")
