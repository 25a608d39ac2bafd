"""`switchgear demo`: the little shop, run and then checked."""

from __future__ import annotations

import asyncio
import math
import os
import secrets
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .execute import FAILED, execute, note

if TYPE_CHECKING:
    from switchgear.demo.store import Store, Totals

STALLED = 30.0  # seconds without any progress, after which the demo gives up waiting
GLANCE = 0.2  # seconds between two looks at the books


def demo(
    url: Annotated[
        str | None,
        typer.Option("--url", help="The broker. Default: a SQLite file in a temporary folder.", show_default=False),
    ] = None,
    orders: Annotated[int, typer.Option("--orders", min=10, max=100_000, help="Purchases to publish.")] = 300,
    failure_rate: Annotated[
        float, typer.Option("--failure-rate", min=0, max=0.9, help="Share of handler calls that fail at random.")
    ] = 0.1,
    seed: Annotated[int, typer.Option("--seed", help="Chooses purchases and failures.")] = 1,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Processes. Default: 2; 1 on memory.", show_default=False)
    ] = None,
) -> None:
    """Run a little shop and check its books.

    Purchases are published; inventory, billing and notification handle them. The last item is bought twice, handlers
    fail at random and are retried, some messages are poison and end as dead letters. Exits with 1 when one of the
    invariants does not hold at the end.
    """
    with tempfile.TemporaryDirectory(prefix="switchgear-demo-") as folder:
        holds = execute(_demo(url, Path(folder), orders, failure_rate, seed, workers))
    if not holds:
        raise typer.Exit(FAILED)


async def _demo(
    url: str | None, folder: Path, orders: int, failure_rate: float, seed: int, workers: int | None
) -> bool:
    from switchgear import Bus
    from switchgear.demo.check import check
    from switchgear.demo.customers import day
    from switchgear.demo.store import Store
    from switchgear.plugins import redact

    from .stored import stored_topics
    from .worker import lives_here

    url = url or f"sqlite:///{folder / 'broker.db'}"
    namespace = f"demo-{secrets.token_hex(4)}."  # apart from all else on that broker
    mine = f"{url}{'&' if '?' in url else '?'}namespace={namespace}"
    today, store = day(orders, seed), Store(folder / "shop.db")
    store.supply(today.items)
    store.expect((purchase["id"], purchase["id"] in today.poison) for purchase in today.purchases)
    settings = {"SHOP_DB": str(store.path), "SHOP_FAILURE_RATE": str(failure_rate), "SHOP_SEED": str(seed)}
    print(f"{orders} purchases on {redact(url)}; {failure_rate:.0%} of the handler calls fail", flush=True)
    async with _shop(mine, settings, workers) as alive, Bus(mine, name="customers") as bus:
        await bus.publish_many("shop.purchases", today.purchases)
        finished = await _watch(store, alive)
        left = [] if str(folder) in url or lives_here(mine) else await stored_topics(bus) or []
    if left:
        note(f"{redact(url)} keeps the topics of this run: {namespace}*")
    if not finished:
        note(f"nothing moved for {STALLED:g} s, or the shop closed early: the books as they stand")
    invariants = check(store)
    for invariant in invariants:
        print(f"{'ok    ' if invariant.holds else 'BROKEN'}  {invariant.name}: {invariant.detail}")
    return finished and all(invariant.holds for invariant in invariants)


@asynccontextmanager
async def _shop(url: str, settings: dict[str, str], workers: int | None) -> AsyncGenerator[Callable[[], bool]]:
    """The shop, open: in worker processes, or in this one where the broker lives in it. Yields whether it still is."""
    from switchgear.errors import ConfigurationError

    from .worker import lives_here

    if not lives_here(url):
        async with _processes(url, settings, workers or 2) as alive:
            yield alive
    elif workers is not None and workers > 1:
        raise ConfigurationError(f"--workers {workers}: this broker lives within one process; leave --workers out")
    else:
        async with _here(url, settings):
            yield lambda: True


@asynccontextmanager
async def _here(url: str, settings: dict[str, str]) -> AsyncGenerator[None]:
    from switchgear.demo.shop import create

    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        bus = create()
        bus.override(url=url)
        async with bus.serving():
            yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@asynccontextmanager
async def _processes(url: str, settings: dict[str, str], count: int) -> AsyncGenerator[Callable[[], bool]]:
    from .worker import Job
    from .workers import Workers

    job = Job(targets=["switchgear.demo.shop:create"], urls=[url], workers=count, log_level="error")
    workers = Workers(job, count, settings)
    running = asyncio.create_task(workers.run())
    try:
        if await workers.ready():
            yield lambda: not running.done()
    finally:
        workers.stop()
        code = await running
    if code:
        raise typer.Exit(code)  # the worker has said why


async def _watch(store: Store, alive: Callable[[], bool]) -> bool:
    """Show the books until all is settled; False when nothing moves any more."""
    clock = asyncio.get_running_loop().time
    last, since = None, clock()
    with display() as show:
        while True:
            totals = await asyncio.to_thread(store.totals)
            show(totals)
            if totals.settled:
                return True
            if totals != last:
                last, since = totals, clock()
            if clock() - since > STALLED or not alive():
                return False
            await asyncio.sleep(GLANCE)


@contextmanager
def display() -> Generator[Callable[[Totals], None]]:
    """A live table on a terminal, else a line every two seconds."""
    if not sys.stdout.isatty():
        shown = [-math.inf]

        def line(totals: Totals) -> None:
            if totals.settled or time.monotonic() - shown[0] > 2:
                shown[0] = time.monotonic()
                print(", ".join(f"{name} {n}" for name, n in rows(totals)), flush=True)

        yield line
        return
    from rich.live import Live
    from rich.table import Table

    with Live(refresh_per_second=10) as live:

        def table(totals: Totals) -> None:
            grid = Table(box=None, show_header=False)
            for name, n in rows(totals):
                grid.add_row(name, f"{n:,}")
            live.update(grid)

        yield table


def rows(totals: Totals) -> list[tuple[str, int]]:
    """What is shown of the books."""
    return [
        ("purchases", totals.purchases),
        ("accepted", totals.accepted),
        ("sold out", totals.declined),
        ("billed", totals.charges),
        ("notified", totals.notices),
        ("dead letters", totals.dead),
        ("version conflicts", totals.events.get("conflicts", 0)),
        ("injected failures", totals.events.get("failures", 0)),
    ]
