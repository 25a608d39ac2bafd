"""Programs of ours in processes of their own."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from tests.brokers.broker import die_with_parent

from .oracle import Oracle

ROOT = Path(__file__).parents[2]
POLL = 0.02  # seconds between two looks at what a process has written
PATIENCE = 120.0  # seconds; what takes longer does not come any more


class Member:
    """One process; what it says on stdout and stderr is in `log`."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name, self._process, self.log = name, process, log

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        if self.alive:
            self._process.kill()
        await self._process.wait()

    async def ended(self, within: float = PATIENCE) -> int:
        """Its exit code, negative for a signal."""
        try:
            async with asyncio.timeout(within):
                return await self._process.wait()
        except TimeoutError:
            raise AssertionError(f"{self.name} did not end within {within:g} s:\n{self._tail()}") from None

    async def says(self, text: str, within: float = PATIENCE) -> None:
        """Wait until it has said this."""
        await until(lambda: text in self.said(), f"{self.name} says {text!r}", within, self)

    @property
    def cpu(self) -> float:
        """Seconds of processor time so far."""
        user, system = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def memory(self, field: str) -> int:
        """KiB: "VmRSS" now, "VmHWM" the most so far."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition(f"{field}:")[2].split()[0])

    def _tail(self) -> str:
        lines = [line for line in self.said().splitlines() if " failed (attempt " not in line]
        return "\n".join(lines[-20:])

    def __str__(self) -> str:
        state = "runs" if self.alive else f"ended with {self._process.returncode}"
        return f"{self.name} ({self.pid}) {state}:\n{self._tail()}"


class Crew:
    """Starts processes and ends with all of them ended. Their logs are in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.members: list[Member] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for member in self.members:
            await member.kill()
        if error is not None:
            for member in self.members:
                error.add_note(str(member))

    async def start(self, name: str, *arguments: str, given: msgspec.Struct | None = None) -> Member:
        """`python -m` with these arguments; `given` goes along as JSON in FAULTS."""
        log = self.folder / f"{len(self.members)}-{name}.log"
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        if given is not None:
            environment["FAULTS"] = msgspec.json.encode(given).decode()
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", *arguments, cwd=ROOT, env=environment, start_new_session=True,
                stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output, preexec_fn=die_with_parent(),
            )  # fmt: skip
        member = Member(name, process, log)
        self.members.append(member)
        return member

    async def consumer(self, url: str, given: msgspec.Struct, *options: str, name: str = "consumer") -> Member:
        """`switchgear run` with the consumer of these tests, once it serves (or stands by)."""
        member = await self.start(
            name, "switchgear.cli", "run", "tests.faults.consuming:create", "--url", url, *options, given=given
        )
        await until(lambda: "serves on" in member.said() or not member.alive, f"{name} serves", PATIENCE, member)
        assert member.alive, str(member)
        return member


async def until(true: Callable[[], object], what: str, within: float, *members: Member) -> None:
    """Look again and again; AssertionError after `within` seconds says what did not happen."""
    loop = asyncio.get_running_loop()
    limit = loop.time() + within
    while not true():
        if loop.time() > limit:
            raise AssertionError(f"not within {within:g} s: {what}\n" + "\n".join(map(str, members)))
        await asyncio.sleep(POLL)


async def more(oracle: Oracle, n: int, *members: Member, within: float = PATIENCE) -> None:
    """Wait until `n` more messages were handled."""
    goal = len(oracle.look().seen) + n
    await until(lambda: len(oracle.look().seen) >= goal, f"{n} more messages are handled: {oracle}", within, *members)


async def drained(oracle: Oracle, *members: Member, within: float = 60.0) -> None:
    """Wait until all that was stored is handled; AssertionError when nothing more was for `within` seconds."""
    loop = asyncio.get_running_loop()
    missing, since = -1, loop.time()
    while (left := len(oracle.look().lost)) > 0:
        if left != missing:
            missing, since = left, loop.time()
        if loop.time() - since > within:
            raise AssertionError(f"nothing was handled for {within:g} s: {oracle}\n" + "\n".join(map(str, members)))
        await asyncio.sleep(5 * POLL)
