"""The optional parts: registry, starts, seek, lag, browse, provisioning."""

from __future__ import annotations

import asyncio
import time

import pytest

from switchgear.driver import Browsable, Lagged, Order, Provisioner, Registry, Resource, Seekable, Transport
from switchgear.errors import NotFound, Refused

from .conftest import Another
from .member import bodies, each_once, join, out, stored

# ---- registry


@pytest.fixture
def registry(transport: Transport) -> Registry:
    if not isinstance(transport, Registry):
        pytest.skip("not applicable: no registry")
    return transport


async def test_registry_compares_and_sets(registry: Registry, another: Another, topic: str) -> None:
    other = await another()
    assert isinstance(other, Registry)
    name = f"{topic}/lease"
    first = await registry.write(name, b"me", expect=0, ttl=None)
    assert first is not None
    assert first > 0
    assert await other.write(name, b"you", expect=0, ttl=None) is None
    assert await other.write(name, b"you", expect=first + 1, ttl=None) is None
    second = await other.write(name, b"you", expect=first, ttl=None)
    assert second is not None
    assert second > first
    assert await registry.write(name, b"me", expect=first, ttl=None) is None
    third = await registry.write(name, b"\x00\xff", expect=None, ttl=None)
    assert third is not None
    assert third > second
    assert dict(await other.read(topic)) == {name: (b"\x00\xff", third)}


async def test_registry_revisions_rise_over_deletion_and_expiry(registry: Registry, topic: str) -> None:
    name = f"{topic}/row"
    first = await registry.write(name, b"a", expect=0, ttl=None)
    assert first is not None
    assert await registry.write(name, None, expect=first + 5, ttl=None) is None
    assert await registry.write(name, None, expect=first, ttl=None) == first
    assert await registry.write(name, None, expect=None, ttl=None) == 0
    assert dict(await registry.read(name)) == {}
    second = await registry.write(name, b"a", expect=0, ttl=0.3)
    assert second is not None
    assert second > first
    assert name in await registry.read(name)
    await asyncio.sleep(0.35)
    assert dict(await registry.read(name)) == {}
    assert await registry.write(name, b"a", expect=second, ttl=None) is None
    third = await registry.write(name, b"a", expect=0, ttl=None)
    assert third is not None
    assert third > second


async def test_registry_renewal_keeps_the_revision(registry: Registry, topic: str) -> None:
    name = f"{topic}/row"
    first = await registry.write(name, b"me", expect=0, ttl=0.5)
    for _ in range(3):
        await asyncio.sleep(0.3)
        assert await registry.write(name, b"me", expect=first, ttl=0.5) == first
    assert (await registry.read(name))[name].revision == first


async def test_registry_reads_by_prefix(registry: Registry, topic: str) -> None:
    for name in ("a", "a%", "a_", "b*", "b?"):
        assert await registry.write(f"{topic}/{name}", name.encode(), expect=0, ttl=None)
    assert {row.value for row in (await registry.read(f"{topic}/a")).values()} == {b"a", b"a%", b"a_"}
    assert {row.value for row in (await registry.read(f"{topic}/a%")).values()} == {b"a%"}
    assert {row.value for row in (await registry.read(f"{topic}/b*")).values()} == {b"b*"}
    assert len(await registry.read(f"{topic}/")) == 5


async def test_one_of_many_writers_wins(registry: Registry, another: Another, topic: str) -> None:
    other = await another()
    assert isinstance(other, Registry)
    writes = [
        r.write(f"{topic}/row", str(i).encode(), expect=0, ttl=None) for i in range(10) for r in (registry, other)
    ]
    assert len([revision for revision in await asyncio.gather(*writes) if revision is not None]) == 1


# ---- starts


async def test_starts(transport: Transport, topic: str) -> None:
    keeper = await join(transport, topic, group="keeper")  # what nobody has read is kept on every broker
    await stored(transport, *(out(topic, f"old{i}") for i in range(5)))
    await asyncio.sleep(0.1)
    middle = time.time()
    await asyncio.sleep(0.1)
    await stored(transport, *(out(topic, f"mid{i}") for i in range(5)))
    starts = transport.capabilities.starts
    members = {"new": await join(transport, topic, group="new")}
    if "earliest" in starts:
        members["earliest"] = await join(transport, topic, group="earliest", start="earliest")
    if "time" in starts:
        members["time"] = await join(transport, topic, group="time", start=middle)
    await stored(transport, out(topic, "last"))
    expected = {
        "new": ["last"],
        "earliest": [f"old{i}" for i in range(5)] + [f"mid{i}" for i in range(5)] + ["last"],
        "time": [f"mid{i}" for i in range(5)] + ["last"],
    }
    for name, member in members.items():
        assert bodies(await member.drain(len(expected[name]))) == [body.encode() for body in expected[name]], name
        await member.nothing(0.1)
    assert len(await keeper.drain(11)) == 11


async def test_a_known_group_goes_on_where_it_was(transport: Transport, topic: str) -> None:
    member = await join(transport, topic)
    await stored(transport, out(topic, "a"), out(topic, "b"))
    first = await member.take(2)
    await member.settle([d for d in first if d.body == b"a"])
    await member.source.close()
    again = await join(transport, topic, consumer="two", start="earliest")
    assert bodies(await again.drain(1)) == [b"b"]
    await again.nothing()


# ---- seek, lag, browse


async def test_seek_moves_a_stopped_group(transport: Transport, topic: str) -> None:
    if not isinstance(transport, Seekable):
        pytest.skip("not applicable: no seek")
    keeper = await join(transport, topic, group="keeper")
    member = await join(transport, topic)
    await stored(transport, *(out(topic, f"old{i}") for i in range(4)))
    await asyncio.sleep(0.1)
    middle = time.time()
    await asyncio.sleep(0.1)
    await stored(transport, *(out(topic, f"mid{i}") for i in range(4)))
    seen = await member.drain(8)
    third = member.source.position(seen[2])
    with pytest.raises(Refused):
        await transport.seek(topic, "group", "earliest")
    await member.source.close()
    everything = [d.body for d in seen]
    targets: list[tuple[str | float, list[bytes | None]]] = [
        ("earliest", everything), (middle, everything[4:]), (third, everything[2:]), ("new", []),
    ]  # fmt: skip
    for n, (to, expected) in enumerate(targets):
        await transport.seek(topic, "group", to)
        again = await join(transport, topic, consumer=f"again{n}")
        assert bodies(await again.drain(len(expected))) == expected
        await again.nothing(0.1)
        await again.source.close()
    with pytest.raises(NotFound):
        await transport.seek(topic, "nobody", "earliest")
    await keeper.source.close()


async def test_lag_counts_what_is_unsettled(transport: Transport, topic: str) -> None:
    if not isinstance(transport, Lagged):
        pytest.skip("not applicable: no lag")
    member = await join(transport, topic)
    assert sum((await transport.lag([topic], "group")).values()) == 0
    await stored(transport, *(out(topic, str(i)) for i in range(20)))
    assert sum((await transport.lag([topic], "group")).values()) == 20
    taken = await member.take(8)
    assert sum((await transport.lag([topic], "group")).values()) == 20
    await member.settle(taken[:5])
    assert sum((await transport.lag([topic], "group")).values()) == 15
    await member.settle(taken[5:])
    await member.drain(12)
    assert sum((await transport.lag([topic], "group")).values()) == 0


async def test_browse_reads_without_a_group(transport: Transport, topic: str) -> None:
    if not isinstance(transport, Browsable):
        pytest.skip("not applicable: no browsing")
    member = await join(transport, topic)
    await stored(transport, *(out(topic, str(i), f"k{i}", headers=[("n", str(i).encode())]) for i in range(450)))
    found = [(d.body, d.key, headers) async for d, headers in transport.browse(topic, "earliest", None)]
    assert found == [(str(i).encode(), f"k{i}".encode(), [("n", str(i).encode())]) for i in range(450)]
    assert [d async for d, _ in transport.browse(topic, "earliest", time.time() - 60)] == []
    assert [d async for d, _ in transport.browse(topic, time.time() + 60, None)] == []
    assert [d async for d, _ in transport.browse(f"{topic}.unknown", "earliest", None)] == []
    assert len(await member.drain(450)) == 450


# ---- provisioning


async def test_provision_reports_and_mends(transport: Transport, topic: str) -> None:
    if not isinstance(transport, Provisioner):
        pytest.skip("not applicable: nothing to provision")
    wanted = [
        Resource(kind="topic", name=topic, retention=3600.0),
        Resource(kind="group", name="group", topic=topic, order=Order.NONE),
    ]
    assert [(d.resource.kind, d.field, d.applied) for d in await transport.provision(wanted, False)] == [
        ("topic", "exists", False),
        ("group", "exists", False),
    ]
    assert list(await transport.topics(topic)) == []
    assert all(drift.applied for drift in await transport.provision(wanted, True))
    assert list(await transport.provision(wanted, False)) == []
    await stored(transport, out(topic, "a"), out(topic, "b"))
    (info,) = await transport.topics(topic)
    assert (info.name, info.messages, info.groups) == (topic, 2, ("group",))
    member = await join(transport, topic)
    each_once(await member.drain(2), [b"a", b"b"])


async def test_provision_shows_another_retention(transport: Transport, topic: str) -> None:
    if not isinstance(transport, Provisioner):
        pytest.skip("not applicable: nothing to provision")
    await transport.provision([Resource(kind="topic", name=topic, retention=3600.0)], True)
    changed = Resource(kind="topic", name=topic, retention=60.0)
    (drift,) = await transport.provision([changed], False)
    assert (drift.field, drift.wanted, drift.found) == ("retention", 60.0, 3600.0)
    await transport.provision([changed], True)
    assert list(await transport.provision([changed], False)) == []


async def test_declared_retention_trims_what_nobody_read(transport: Transport, topic: str) -> None:
    if not isinstance(transport, Provisioner):
        pytest.skip("not applicable: retention is the broker's setting")
    member = await join(transport, topic)
    await transport.provision([Resource(kind="topic", name=topic, retention=0.5)], True)
    await stored(transport, out(topic, "old"))
    await asyncio.sleep(0.7)
    await stored(transport, out(topic, "young"))
    await asyncio.sleep(0.05)
    deadline = time.monotonic() + 5
    found: list[bytes | None] = []
    while b"young" not in found and time.monotonic() < deadline:
        batch = await member.receive(10)
        await member.settle(batch)
        found += bodies(batch)
    assert found == [b"young"]
