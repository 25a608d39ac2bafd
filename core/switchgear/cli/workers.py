"""Worker processes: started, watched, started again when they die, stopped under one deadline."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from switchgear import Health
from switchgear.errors import ConfigurationError

from .execute import FAILED

if TYPE_CHECKING:
    from .worker import Job, Report

log = logging.getLogger("switchgear.workers")

BACKOFF, BACKOFF_CAP = 0.5, 30.0  # seconds before a worker that died is started again
STEADY = 10.0  # seconds after which a worker counts as having worked, and the back-off begins anew
GIVE_UP = 8  # deaths of one worker in a row, none of them after a steady time
GRACE = 25.0  # seconds, until a worker has told its own
MARGIN = 5.0  # seconds that ending may take beyond the grace, before workers are killed
SILENCE = 5.0  # seconds without a report, after which a worker's loop counts as stuck
TERMINAL = 64
"""A worker adds it to an exit code of ours, to set it apart from a crash: starting it again would end the same way."""


class Workers:
    """`count` processes that run one job. Raises ConfigurationError where there is no POSIX system."""

    def __init__(self, job: Job, count: int, environment: Mapping[str, str] | None = None) -> None:
        if os.name != "posix":
            raise ConfigurationError("worker processes need a POSIX system: leave out --workers and --reload")
        self._job = job
        self._environment = {**os.environ, **(environment or {})}
        self._loop = asyncio.get_running_loop()
        self._workers = {n: _Worker() for n in range(1, count + 1)}
        self._stopping = asyncio.Event()
        self._deadline: asyncio.TimerHandle | None = None
        self._news = asyncio.Condition()

    async def run(self) -> int:
        """Run until `stop`, or until a worker fails in a way that starting it again would not mend.

        Returns the exit code: 0 when every worker ended as asked, 2 for a wrong configuration, else 1.
        """
        try:
            codes = await asyncio.gather(*map(self._to_its_end, self._workers))
        finally:
            self.kill()
            if self._deadline is not None:
                self._deadline.cancel()
        return max(codes)

    def stop(self) -> None:
        """Let the workers finish what they have begun; what takes longer than their grace is killed."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        grace = max((worker.report.grace for worker in self._workers.values() if worker.report), default=GRACE)
        self._deadline = self._loop.call_later(grace + MARGIN, self.kill)
        for worker in self._workers.values():
            worker.signal(signal.SIGTERM)

    def kill(self) -> None:
        """End them at once. What they were handling is delivered again."""
        for worker in self._workers.values():
            worker.signal(signal.SIGKILL)

    def health(self) -> Health:
        """Live: every worker's loop turns. Ready: every worker is."""
        live = ready = True
        detail: dict[str, str] = {}
        for n, worker in self._workers.items():
            silent = self._loop.time() - worker.heard
            if worker.report is None:
                ready, detail[f"worker {n}"] = False, "starting"
            elif silent > SILENCE:
                live, ready, detail[f"worker {n}"] = False, False, f"silent for {silent:.0f} s"
            else:
                live, ready = live and worker.report.health.live, ready and worker.report.health.ready
                detail.update({f"worker {n}: {what}": text for what, text in worker.report.health.detail.items()})
        return Health(live=live, ready=ready, detail=detail)

    async def ready(self) -> bool:
        """Wait until every worker is ready; False when they are stopping instead."""
        async with self._news:
            await self._news.wait_for(lambda: self._stopping.is_set() or self.health().ready)
        return not self._stopping.is_set()

    # ---- one worker -----------------------------------------------------------------------------------------------

    async def _to_its_end(self, n: int) -> int:
        try:
            return await self._keep(n)
        finally:
            await self._tell()  # who waits for the first one would wait for ever

    async def _keep(self, n: int) -> int:
        """Keep one worker running; returns the exit code that it contributes."""
        if n > 1:  # the first one finds out whether the job can run at all: then one message says why it cannot
            async with self._news:
                await self._news.wait_for(lambda: self._stopping.is_set() or self._workers[1].proven)
        deaths = 0
        while not self._stopping.is_set():
            begun = self._loop.time()
            code = await self._run_once(n)
            if code >= TERMINAL:
                await self._give_up()
                return code - TERMINAL
            if self._stopping.is_set():
                return FAILED if code else 0
            deaths = 1 if self._loop.time() - begun > STEADY else deaths + 1
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            if deaths == GIVE_UP:
                log.error("worker %d died %d times in a row, last by %s; giving up", n, deaths, how)
                await self._give_up()
                return FAILED
            pause = min(BACKOFF_CAP, BACKOFF * 2 ** (deaths - 1)) * random.uniform(0.5, 1)
            log.warning("worker %d died (%s); starting it again in %.1f s", n, how, pause)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)
        return 0

    async def _run_once(self, n: int) -> int:
        """From start to end of one process; returns its exit code, negative for a signal."""
        worker = self._workers[n]
        ours, theirs = socket.socketpair()
        with theirs:
            worker.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "switchgear.cli.worker", str(theirs.fileno())),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C reaches us alone: with ours it would be a worker's second signal
                env={**self._environment, "SWITCHGEAR_WORKER": str(n)},
            )
        if self._stopping.is_set():  # `stop` came while it was being started and did not see it
            worker.signal(signal.SIGTERM)
        talk = asyncio.create_task(self._talk(worker, ours))
        try:
            return await worker.process.wait()
        finally:
            talk.cancel()
            await asyncio.wait([talk])
            worker.report, worker.process = None, None

    async def _talk(self, worker: _Worker, sock: socket.socket) -> None:
        """Give it the job, take its reports; as long as our end is open the worker knows that we live."""
        from .worker import Report

        reader, writer = await asyncio.open_connection(sock=sock)
        try:
            writer.write(msgspec.json.encode(self._job) + b"\n")
            while line := await reader.readline():
                worker.report, worker.heard = msgspec.json.decode(line, type=Report), self._loop.time()
                worker.proven |= worker.report.proven
                await self._tell()
        except OSError:
            pass  # it died, which its exit code tells
        finally:
            writer.close()

    async def _give_up(self) -> None:
        self.stop()
        await self._tell()

    async def _tell(self) -> None:
        async with self._news:
            self._news.notify_all()


class _Worker:
    """One of the processes, over all its lives."""

    def __init__(self) -> None:
        self.process: asyncio.subprocess.Process | None = None
        self.report: Report | None = None
        self.heard = 0.0
        """When the last report came, on the loop's clock."""
        self.proven = False
        """It has shown, once, that the job can run."""

    def signal(self, number: int) -> None:
        if self.process is not None and self.process.returncode is None:
            with suppress(ProcessLookupError):
                self.process.send_signal(number)
