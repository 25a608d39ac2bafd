"""`switchgear explain`, `provision`, `transports`, `--help`, and what is said without the extra."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import Run

APP = """
from switchgear import Bus, Rate, Retry, Topic
bus = Bus(name="shop", namespace="test.")
orders = Topic("orders", dict, key=lambda order: order["customer"])

@bus.subscribe(orders, group="billing", concurrency=4, retry=Retry(attempts=7))
async def bill(order: dict) -> None: ...

refused = Bus(name="refused")

@refused.subscribe(orders, group="billing", rate=Rate(1))
async def slowly(order: dict) -> None: ...
"""


@pytest.fixture(autouse=True)
def app(here: Path) -> None:
    (here / "sg_shop.py").write_text(APP)


def test_explain(sg: Run) -> None:
    result = sg("explain", "sg_shop:bus", "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert (found["bus"], found["url"]) == ("shop", "sqlite:///broker.db")
    needs = {need["need"]: need for need in found["guarantees"]}
    assert (needs["order"]["asked"], needs["order"]["how"]) == ("key", "native")
    assert (needs["retry"]["asked"], needs["retry"]["how"]) == ("7 attempts", "emulated")
    assert {"name": "orders", "physical": "test.orders", "kind": "topic"} in found["names"]
    settings = {one["setting"]: (one["value"], one["origin"]) for one in found["settings"]}
    assert settings['subscriptions."orders.billing".concurrency'] == (4, "code")
    text = sg("explain", "sg_shop:bus").stdout
    for part in ("shop on sqlite:///broker.db", "native", "test.orders", "concurrency"):
        assert part in text


def test_explain_exits_with_2_when_something_is_refused(sg: Run) -> None:
    result = sg("explain", "sg_shop:refused", "--json")
    assert result.exit_code == 2
    [need] = [need for need in json.loads(result.stdout)["guarantees"] if need["how"] == "refused"]
    assert need["need"] == "rate"


def test_provision(sg: Run) -> None:
    missing = sg("provision", "sg_shop:bus", "--check", "--json")
    assert missing.exit_code == 1
    drifts = json.loads(missing.stdout)
    assert {(one["kind"], one["name"]) for one in drifts} == {("topic", "test.orders"), ("group", "test.billing")}
    assert {(one["field"], one["applied"]) for one in drifts} == {("exists", False)}
    assert "missing" in sg("provision", "sg_shop:bus", "--check").stdout
    assert json.loads(sg("topics", "--json").stdout) == []  # to check is to change nothing
    made = sg("provision", "sg_shop:bus")
    assert made.exit_code == 0
    assert "created" in made.stdout
    assert "nothing to do" in sg("provision", "sg_shop:bus", "--check").stdout
    [topic] = json.loads(sg("topics", "--json", "--url", "sqlite:///broker.db?namespace=test.").stdout)
    assert (topic["name"], topic["groups"]) == ("orders", ["billing"])


def test_transports(sg: Run) -> None:
    found = {one["scheme"]: one for one in json.loads(sg("transports", "--json").stdout)}
    assert {"memory", "sqlite", "redis"} <= set(found)
    assert found["redis"]["client"].startswith("redis ")
    for scheme in ("memory", "sqlite", "redis"):
        assert found[scheme]["problem"] is None
        assert found[scheme]["module"] == f"switchgear_{scheme}"
        assert found[scheme]["capabilities"]["groups"] is True
    text = sg("transports").stdout
    assert "sqlite://" in text
    assert "retry_delay" in text


@pytest.mark.parametrize("command", ["explain", "provision"])
@pytest.mark.parametrize(
    ("target", "message"),
    [("sg_shop:nope", "sg_shop has no 'nope'; its buses: bus, refused"), ("sg_none:bus", "there is no module")],
)
def test_wrong_targets(sg: Run, command: str, target: str, message: str) -> None:
    result = sg(command, target)
    assert result.exit_code == 2
    assert message in result.stderr


COMMANDS = ("run", "publish", "tail", "topics", "provision", "explain", "transports", "demo")


def test_help(sg: Run) -> None:
    text = sg("--help").stdout
    for command in COMMANDS:
        assert command in text
        assert sg(command, "--help").exit_code == 0
    for code in ("0 done", "1 the work failed", "2 wrong usage or configuration", "130 interrupted"):
        assert code in " ".join(text.split())
    assert "--install-completion" in text
    assert sg("--version").stdout.startswith("switchgear ")


def test_help_loads_no_transport_and_no_event_loop() -> None:
    code = (
        "import sys\n"
        "sys.argv = ['switchgear', '--help']\n"
        "from switchgear.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 0\n"
        "print(sorted(name for name in sys.modules if name in ('redis', 'sqlite3', 'rich.live', 'rich.progress')\n"
        "    or name.startswith(('switchgear_', 'switchgear.demo')) and 'conformance' not in name\n"
        "    or name.startswith('switchgear_conformance.') and not name.endswith(('.command', '.verify'))))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "[]", result.stderr


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra(missing: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from switchgear.cli import main; main()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr == "the switchgear command needs typer and rich: pip install 'switchgear[cli]'\n"
