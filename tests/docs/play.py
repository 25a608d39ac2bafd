"""Play one page, in this process: `python -m tests.docs.play PAGE` with the working directory as its own.

Python blocks share one namespace and one event loop; `await` may stand outside a function; functions named `test_…`
are called. Lines of console blocks that begin with `$ ` are commands, what follows is their output, where `…` stands
for anything. With `terminal=NAME` a command goes on running: its output is waited for, a later block of that terminal
shows what comes next, and `^C` ends it.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import sysconfig
import textwrap
import threading
import time
import tomllib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import yaml

from tests.support.ports import free_port

from .pages import KAFKA, REDIS, Block, blocks

PORT = "8080"
SERVERS = ((REDIS, 6379, "DOCS_REDIS"), (KAFKA, 9092, "DOCS_KAFKA"))
"""How pages name a server and its port, and what says where the tests' own is."""
PATIENCE = 120.0  # seconds for a command, and for what a running one is to print


class Wrong(Exception):
    """A page that does not do what it says."""


class Terminal:
    """A command that goes on running, and all that it printed."""

    def __init__(self, command: str, environment: dict[str, str]) -> None:
        self.command = command
        self.process = subprocess.Popen(
            ["bash", "-c", f"exec {command}"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment,
        )  # fmt: skip
        self._printed = b""
        self._seen = 0
        self._more = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        while data := os.read(self.process.stdout.fileno(), 65536):
            with self._more:
                self._printed += data
                self._more.notify_all()

    def expect(self, expected: str) -> None:
        """Wait until it has printed these lines, after those that were expected before."""
        if not expected.strip():
            return
        pattern = re.compile(matching(expected))
        until = time.monotonic() + PATIENCE
        with self._more:
            while True:
                text = plain(self._printed.decode())
                if found := pattern.search(text, self._seen):
                    self._seen = found.end()
                    return
                if time.monotonic() > until or not self._reader.is_alive():
                    raise Wrong(f"$ {self.command}\nwas to print\n{expected}\nand printed\n{text[self._seen :]}")
                self._more.wait(0.1)

    def interrupt(self) -> None:
        """Ctrl-C; it must end in order."""
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        if code not in (0, 130):
            raise Wrong(f"$ {self.command}\nended with {code}\n{self._printed.decode()}")

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._reader.join(PATIENCE)
        assert self.process.stdout is not None
        self.process.stdout.close()


class Player:
    """The state of a page: a namespace, a shell's variables, terminals."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.module = ModuleType("page")
        sys.modules["page"] = self.module
        self.printed = ""
        self.code = 0
        self.terminals: dict[str, Terminal] = {}
        scripts = sysconfig.get_path("scripts")
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("SWITCHGEAR_")},
            "PATH": os.pathsep.join([scripts, os.environ.get("PATH", "")]), "COLUMNS": "160", "NO_COLOR": "1",
            "TERM": "dumb", "PYTHONUNBUFFERED": "1", "TZ": "UTC", "PYTHONDONTWRITEBYTECODE": "1",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTHONPATH": os.pathsep.join([str(Path("src").absolute()), os.environ.get("PYTHONPATH", "")]),
        }  # fmt: skip

    def play(self, block: Block) -> None:
        """Do what the block says. Raises whatever shows that it is not true."""
        text = localized(block.text)
        title = block.attributes.get("title")
        if title is not None:
            Path(title).parent.mkdir(parents=True, exist_ok=True)
            Path(title).write_text(text, encoding="utf-8")
        if path := block.attributes.get("from"):
            excerpt(text, block.page.parent / path)
            return
        match block.language:
            case "python" | "setup" if title is None:
                self.python(block, text)
            case "python":
                ast.parse(text, title or "")
            case "console":
                self.console(block, text)
            case "sh":
                for command in commands(text):
                    self.run(command, None)
            case "toml":
                configuration(tomllib.loads(text), title)
            case "json":
                json.loads(text)
            case "yaml":
                if not list(yaml.safe_load_all(text)):
                    raise Wrong("no document")
            case "text" if "output" in block.attributes:
                if not re.fullmatch(matching(text), plain(self.printed)):
                    raise Wrong(f"printed was\n{self.printed}")
            case "text":
                pass
            case other:
                raise Wrong(f"nothing is known to do with a block of {other!r}: say why it is not run, or use text")

    # ---- Python -------------------------------------------------------------------------------------------------

    def python(self, block: Block, text: str) -> None:
        names = self.module.__dict__
        before = set(names)
        code = compile(
            "\n" * (block.line - 1) + text, str(block.page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
            dont_inherit=True,
        )  # fmt: skip
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            if code.co_flags & inspect.CO_COROUTINE:
                self.loop.run_until_complete(eval(code, names))
            else:
                exec(code, names)
            for name in [name for name in names if name.startswith("test_") and name not in before]:
                result: Any = names[name]()
                if inspect.isawaitable(result):
                    self.loop.run_until_complete(result)
        self.printed = printed.getvalue()

    # ---- shell --------------------------------------------------------------------------------------------------

    def console(self, block: Block, text: str) -> None:
        parts = re.split(r"(?m)^(\$ (?:.*\\\n)*.*|\^C)\n", text)
        terminal = block.attributes.get("terminal")
        if terminal is not None and parts[0].strip():
            self.terminals[terminal].expect(parts[0])
        elif parts[0].strip():
            raise Wrong("output before the first command")
        for command, expected in zip(parts[1::2], parts[2::2], strict=True):
            if command == "^C":
                assert terminal is not None
                self.terminals[terminal].interrupt()
                if expected.strip():
                    self.terminals[terminal].expect(expected)
            elif terminal is not None:
                self.terminals[terminal] = Terminal(command[2:], self.environment)
                self.terminals[terminal].expect(expected)
            else:
                self.run(command[2:], expected, failing="echo $?" in text)

    def run(self, command: str, expected: str | None, *, failing: bool = False) -> None:
        """One command to its end; `failing`: the page shows its exit code itself."""
        if assigned := re.fullmatch(r"export (\w+)=(.*)", command):
            (self.environment[assigned[1]],) = shlex.split(assigned[2])
            return
        done = subprocess.run(
            ["bash", "-c", f"(exit {self.code}); {command}"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=self.environment,
            timeout=PATIENCE, check=False, text=True,
        )  # fmt: skip
        self.code = done.returncode
        if done.returncode and not failing:
            raise Wrong(f"$ {command}\nended with {done.returncode}\n{done.stdout}")
        if expected is not None and not re.fullmatch(matching(expected), plain(done.stdout)):
            raise Wrong(f"$ {command}\nprinted\n{plain(done.stdout)}\nand not\n{expected}")

    def close(self) -> None:
        for terminal in self.terminals.values():
            terminal.close()
        pending = asyncio.all_tasks(self.loop)
        for task in pending:
            task.cancel()
        if pending:
            self.loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()


def excerpt(text: str, path: Path) -> None:
    """A part of a file is there, line by line, indented as may be."""
    lines, at = path.read_text(encoding="utf-8").splitlines(), 0
    for part in re.split(r"(?m)^ *…\n", text):
        wanted = textwrap.dedent(part).strip("\n").splitlines()
        found = range(at, len(lines) - len(wanted) + 1)
        begin = next((n for n in found if _dedented(lines[n : n + len(wanted)]) == wanted), None)
        if begin is None:
            raise Wrong(f"{path.name} has no such lines, or not after those above:\n{part}")
        at = begin + len(wanted)


def _dedented(lines: Sequence[str]) -> list[str]:
    return textwrap.dedent("\n".join(lines)).splitlines()


def localized(text: str) -> str:
    """The text with the addresses of the tests' own brokers, and a port that is free."""
    for address, usual, name in SERVERS:
        own = os.environ.get(name)
        if own is not None:
            text = re.sub(rf"{address}(:{usual})?(?![\w.])", own, text)
    return text.replace(PORT, port()) if PORT in text else text


@cache
def port() -> str:
    """In place of the one that pages name."""
    return str(free_port())


def plain(text: str) -> str:
    """Printed text as pages show it: without the tests' addresses, widths and trailing blanks."""
    for address, _, name in SERVERS:
        text = text.replace(os.environ.get(name, address), address)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "")
    lines = [re.sub(r"─+", "─", re.sub(r" +", " ", line)).rstrip() for line in text.splitlines()]
    return "".join(f"{line}\n" for line in lines if line)


def matching(expected: str) -> str:
    """The pattern of what a page shows: a line `…` is any lines, `…` in a line any text."""
    pattern = ""
    for line in plain(expected).splitlines():
        if line == "…":
            pattern += r"(?:.*\n)*?"
        else:
            pattern += ".*?".join(map(re.escape, line.split("…"))) + r"\n"
    return pattern


def commands(text: str) -> list[str]:
    """The commands of an `sh` block, comments left out."""
    joined = text.replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]


def configuration(document: dict[str, Any], title: str | None) -> None:
    """A configuration is one that the product takes, with a value for each variable that it names."""
    if title is not None and title != "switchgear.toml":
        return
    from switchgear.config import Config, check_knobs

    class Environment(dict[str, str]):
        def __missing__(self, name: str) -> str:
            return "1"

        def get(self, name: str, default: Any = None) -> Any:
            return None if name.startswith("SWITCHGEAR_") else self[name]

    for bus in ("app", *document.get("bus", {})):
        config = Config.load(document, bus=bus, environ=Environment())
        for key in ("namespace", "grace", "provision"):
            config.value(key, None, None)
        if "url" in document or "url" in document.get("bus", {}).get(bus, {}):
            config.url(None)
        for topic in document.get("topics", {}):
            config.topic(topic)
        for subscription in document.get("subscriptions", {}):
            topic, _, group = subscription.rpartition(".")
            section, _ = config.subscription(topic, group)
            check_knobs({k: v for k, v in section.items() if not isinstance(v, dict) and k != "start"}, subscription)


def main(page: Path) -> None:
    found = blocks(page)
    told = "".join(block.text for block in found if "title" not in block.attributes or block.language == "toml")
    player = Player()
    sys.path.insert(0, "")
    try:
        for block in found:
            title = block.attributes.get("title")
            if title is not None and title.endswith(".py"):
                name = title.partition("/")[0].removesuffix(".py")
                if name not in told:
                    fail(block, Wrong(f"nothing uses {title}"))
            if block.not_run is None:
                try:
                    player.play(block)
                except (Exception, SystemExit) as error:
                    fail(block, error)
    finally:
        player.close()


def fail(block: Block, error: BaseException) -> NoReturn:
    if not isinstance(error, Wrong):
        import traceback

        traceback.print_exception(error)
    print(f"{block.where} ({block.language}): {type(error).__name__}: {error}", file=sys.stderr)
    raise SystemExit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
