"""`switchgear run`: signals, workers, reload, health, exit codes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.ports import free_port

from .conftest import Run, Start

APP = """
import os
from switchgear import Bus
bus = Bus(name="greeter")

@bus.subscribe("greetings", group="demo", start="earliest")
async def greet(name: str) -> None:
    print("Hello", name, os.getpid(), flush=True)
"""


@pytest.fixture
def app(here: Path) -> str:
    (here / "sg_app.py").write_text(APP)
    return "sg_app:bus"


PATIENCE = 120.0  # seconds; what takes longer does not come any more


def until(condition: Callable[[], Any]) -> Any:
    """Ask again until it is so; what other processes do has no other way to be waited for."""
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < end, "it did not become so"
        time.sleep(0.02)
    return found


def probe(port: int, path: str) -> tuple[int, Any]:
    """Status and JSON; 0 while nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=PATIENCE) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
    except OSError:
        return 0, None


def ready(port: int) -> None:
    until(lambda: probe(port, "/ready")[0] == 200)


@pytest.fixture
def port() -> int:
    return free_port()


def says(process: subprocess.Popen[str], text: str, stream: str = "stdout") -> str:
    """The next line that has `text`."""
    for line in getattr(process, stream):
        if text in line:
            return str(line)
    raise AssertionError(f"it ended without {text!r}: {process.communicate()}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_it_is_told_to_stop(start: Start, sg: Run, app: str, port: int, number: int) -> None:
    process = start("run", app, "--health", f"127.0.0.1:{port}")
    ready(port)
    sg("publish", "greetings", "Ada")
    assert says(process, "Hello Ada")
    process.send_signal(number)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    assert "greeter serves on sqlite:///broker.db" in errors


def test_health(start: Start, app: str, port: int) -> None:
    start("run", app, "--health", f"127.0.0.1:{port}")
    ready(port)
    status, state = probe(port, "/live")
    assert status == 200
    assert state["detail"] == {"broker": "connected", "greetings → demo": "active"}


def workers_of(process: subprocess.Popen[str]) -> set[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True).stdout
    return {int(pid) for pid in listed.split()}


HOLD = """
import time
from pathlib import Path
while Path("hold").exists():
    time.sleep(0.01)
"""


def test_workers_share_the_work_and_are_started_again(start: Start, sg: Run, here: Path, app: str, port: int) -> None:
    (here / "sg_app.py").write_text(HOLD + APP)
    process = start("run", app, "--workers", "2", "--health", f"127.0.0.1:{port}", "--log-level", "warning")
    ready(port)
    assert set(probe(port, "/ready")[1]["detail"]) == {
        f"worker {n}: {what}" for n in (1, 2) for what in ("broker", "greetings → demo")
    }
    before = workers_of(process)
    assert len(before) == 2
    (here / "hold").touch()  # until it is seen that one is missing
    os.kill(min(before), signal.SIGKILL)
    until(lambda: probe(port, "/ready")[0] == 503)
    assert probe(port, "/live")[0] == 200
    (here / "hold").unlink()
    ready(port)
    after = workers_of(process)
    assert len(after) == 2
    assert len(after & before) == 1
    sg("publish", "greetings", "Ada")
    assert int(says(process, "Hello Ada").split()[-1]) in after
    process.terminate()
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    assert "died (SIGKILL); starting it again" in errors


def runs(pid: int) -> bool:
    """Whether it has not ended; one that nobody has collected yet has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_workers_end_with_their_supervisor(start: Start, app: str, port: int) -> None:
    process = start("run", app, "--workers", "2", "--health", f"127.0.0.1:{port}")
    ready(port)
    workers = workers_of(process)
    process.kill()
    assert len(workers) == 2
    until(lambda: not any(map(runs, workers)))


def test_a_worker_that_hangs_is_killed_at_the_deadline(start: Start, here: Path, port: int) -> None:
    (here / "sg_stuck.py").write_text(
        APP.replace('Bus(name="greeter")', 'Bus(name="greeter", grace=0.5)').replace(
            "    print(", "    print('stuck', flush=True); import time; time.sleep(600)\n    print("
        )
    )
    (here / "sitecustomize.py").write_text("import switchgear.cli.workers as w\nw.MARGIN = 0.5\n")
    os.environ["PYTHONPATH"] = str(here)
    try:
        process = start("run", "sg_stuck:bus", "--workers", "2", "--health", f"127.0.0.1:{port}")
    finally:
        del os.environ["PYTHONPATH"]
    ready(port)
    start("publish", "greetings", "Ada").wait(PATIENCE)
    assert says(process, "stuck")
    process.terminate()
    assert process.wait(PATIENCE) == 1


def test_told_to_stop_before_the_first_worker_is_connected_they_all_end(start: Start, app: str) -> None:
    pytest.importorskip("redis")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        process = start("run", app, "--workers", "2", "--url", f"redis://127.0.0.1:{silent.getsockname()[1]}")
        connection, _ = silent.accept()
        with connection:
            process.terminate()
            assert process.wait(PATIENCE) == 0


def test_workers_need_a_broker_that_processes_share(sg: Run, app: str) -> None:
    result = sg("run", app, "--workers", "2", "--url", "memory://")
    assert result.exit_code == 2


def test_reload(start: Start, sg: Run, here: Path, app: str, port: int) -> None:
    process = start("run", app, "--reload", "--health", f"127.0.0.1:{port}")
    ready(port)
    sg("publish", "greetings", "Ada")
    assert says(process, "Hello Ada")
    (here / "sg_app.py").write_text(APP.replace("greet(name", "greet(name)("))
    assert says(process, "SyntaxError", "stderr")
    assert says(process, "starts anew when a file changes", "stderr")
    assert probe(port, "/ready")[0] == 503
    (here / "sg_app.py").write_text(APP.replace("Hello", "Servus"))
    ready(port)
    sg("publish", "greetings", "Bob")
    assert says(process, "Servus Bob")
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 0


@pytest.mark.parametrize("options", [(), ("--workers", "2")])
@pytest.mark.parametrize(
    ("target", "code", "message"),
    [
        ("sg_app:nope", 2, "sg_app has no 'nope'"),
        ("sg_app", 2, "expected MODULE:BUS"),
        ("sg_refused:bus", 2, "no machinery"),
        ("sg_app:bus --url sqlite:////no/such/folder/x.db", 2, "does not exist"),
    ],
)
def test_what_cannot_run_ends_at_once(
    start: Start, here: Path, app: str, options: tuple[str, ...], target: str, code: int, message: str
) -> None:
    (here / "sg_refused.py").write_text(
        APP.replace("import Bus", "import Bus, Rate").replace("start=", "rate=Rate(1), start=")
    )
    process = start("run", *target.split(), *options, "--log-level", "error")
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == code
    assert message in errors
    assert errors.count("error:") == 1
    assert "Traceback" not in errors


def test_a_wrong_health_address(sg: Run, app: str) -> None:
    result = sg("run", app, "--health", "nowhere")
    assert result.exit_code == 2
    assert "expected PORT or HOST:PORT" in result.stderr
