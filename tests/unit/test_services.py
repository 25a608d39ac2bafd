"""Dependencies of the bus, opened once."""

from __future__ import annotations

import asyncio

import pytest

from switchgear.services import BusScope, Services


def provider() -> None: ...


async def test_it_is_opened_once_for_all_who_ask() -> None:
    scope, opened = BusScope(), 0

    async def open_() -> object:
        nonlocal opened
        opened += 1
        await asyncio.sleep(0)
        return opened

    assert await asyncio.gather(*(scope.get(provider, open_) for _ in range(5))) == [1] * 5


async def test_a_failure_reaches_all_who_wait_and_is_not_remembered() -> None:
    scope, opened = BusScope(), 0

    async def open_() -> object:
        nonlocal opened
        opened += 1
        await asyncio.sleep(0)
        if opened == 1:
            raise ValueError("no")
        return opened

    results = await asyncio.gather(*(scope.get(provider, open_) for _ in range(3)), return_exceptions=True)
    assert [type(r) for r in results] == [ValueError] * 3
    assert await scope.get(provider, open_) == 2


async def test_when_the_one_who_opens_it_is_cancelled_another_does() -> None:
    scope, opened = BusScope(), 0

    async def open_() -> object:
        nonlocal opened
        opened += 1
        await asyncio.sleep(0.01)
        return opened

    first = asyncio.ensure_future(scope.get(provider, open_))
    others = [asyncio.ensure_future(scope.get(provider, open_)) for _ in range(3)]
    await asyncio.sleep(0)
    first.cancel()
    assert await asyncio.gather(*others) == [2] * 3
    with pytest.raises(asyncio.CancelledError):
        await first


def test_threads_are_as_many_as_the_concurrency_and_end_with_it() -> None:
    services = Services(None, BusScope(), {}, lambda: None, 3, "t → g")
    pool = services.thread_pool()
    assert services.thread_pool() is pool
    assert pool._max_workers == 3  # type: ignore[attr-defined]
    services.close(wait=True)
    with pytest.raises(RuntimeError):
        pool.submit(print)
