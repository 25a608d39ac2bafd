"""Shared rows on the broker, on which leases, members and topic plans rest."""

from __future__ import annotations

import asyncio

from switchgear.driver import Registry
from switchgear.errors import Unsupported
from switchgear_conformance.case import case
from switchgear_conformance.context import Context


async def registries(c: Context) -> tuple[Registry, Registry]:
    """The same rows, as two processes see them."""
    one, other = await c.open(), await c.open()
    assert isinstance(one, Registry)
    assert isinstance(other, Registry)
    return one, other


async def written(r: Registry, name: str, value: bytes | None, expect: int | None, ttl: float | None = None) -> int:
    """Write a row; it must succeed."""
    revision = await r.write(name, value, expect=expect, ttl=ttl)
    assert revision is not None, f"write(expect={expect}) of a row at that revision was refused"
    return revision


@case(92, "registry", part="registry")
async def plan_mismatch_registry(c: Context) -> None:
    """Of writers that expect different things one wins; revisions rise, and everybody reads what was written."""
    one, other = await registries(c)
    row = c.name("row")
    first = await written(one, row, b"me", 0)
    assert first > 0
    for expect in (0, first + 1):
        assert await other.write(row, b"you", expect=expect, ttl=None) is None, f"expect={expect} over {first} wrote"
    second = await written(other, row, b"you", first)
    assert second > first, f"revision {second} follows {first}"
    assert await one.write(row, b"me", expect=first, ttl=None) is None, "an old revision was good enough"
    third = await written(one, row, b"\x00\xff", None)
    assert third > second, f"revision {third} follows {second}"
    assert dict(await other.read(c.namespace)) == {row: (b"\x00\xff", third)}
    racing = [r.write(c.name("raced"), bytes([i]), expect=0, ttl=None) for i in range(10) for r in (one, other)]
    won = [revision for revision in await asyncio.gather(*racing) if revision is not None]
    assert len(won) == 1, f"{len(won)} of 20 writers, who all expected no row, were told that they wrote it"


@case(92, "registry", part="deletion")
async def plan_mismatch_deletion(c: Context) -> None:
    """A deleted row is gone, and the revisions of its name go on rising."""
    one, _ = await registries(c)
    row = c.name("row")
    first = await written(one, row, b"a", 0)
    assert await one.write(row, None, expect=first + 5, ttl=None) is None, "deleted over another revision"
    assert await one.write(row, None, expect=first, ttl=None) == first
    assert await one.write(row, None, expect=None, ttl=None) == 0
    assert dict(await one.read(row)) == {}
    assert await one.write(row, b"a", expect=first, ttl=None) is None, "written over a row that is gone"
    second = await written(one, row, b"a", 0)
    assert second > first, f"revision {second} follows {first} and a deletion: an old fence would be taken for a new"


@case(92, "registry", part="expiry")
async def plan_mismatch_expiry(c: Context) -> None:
    """A row with a time to live ends unless it is renewed; renewed, it keeps its revision; afterwards they go on."""
    one, other = await registries(c)
    row, ttl = c.name("row"), 0.8
    try:
        first = await written(one, row, b"me", 0, ttl)
    except Unsupported:
        c.remark("rows have no time to live")
        return
    for _ in range(3):
        await asyncio.sleep(ttl / 2)
        renewed = await written(one, row, b"me", first, ttl)
        assert renewed == first, f"renewing the row moved its revision from {first} to {renewed}"
    assert (await other.read(row))[row] == (b"me", first)
    ends = c.time() + 2 * ttl
    await c.eventually(lambda: c.time() > ends, "its time is over")
    assert dict(await other.read(row)) == {}, "a row outlives its time"
    assert await one.write(row, b"me", expect=first, ttl=None) is None, "written over a row that has ended"
    second = await written(one, row, b"me", 0)
    assert second > first, f"revision {second} follows {first}, which expired"


@case(92, "registry", part="prefix")
async def plan_mismatch_prefix(c: Context) -> None:
    """Rows are read by the start of their names, whatever signs are in them."""
    one, _ = await registries(c)
    for word in ("a", "a%", "a_", "b*", "b?"):
        await written(one, c.name(word), word.encode(), 0)
    for prefix, expected in {"a": {"a", "a%", "a_"}, "a%": {"a%"}, "b*": {"b*"}, "b?": {"b?"}}.items():
        found = {row.value.decode() for row in (await one.read(c.name(prefix))).values()}
        assert found == expected, f"read({prefix!r}) gave {found}"
    assert len(await one.read(c.namespace)) == 5
