"""Core: what is sent is what arrives."""

from __future__ import annotations

from switchgear_conformance.case import case
from switchgear_conformance.context import Context
from switchgear_conformance.member import bodies, out


@case(2)
async def bytes_roundtrip(c: Context) -> None:
    """Bodies and keys arrive byte for byte: empty, NUL, not UTF-8."""
    t = await c.open()
    m = await c.join(t, c.name())
    odd = [b"", b"\0", b"a\0b", b"\xff\xfe\xfd", bytes(range(256)), "žluťoučký".encode(), b"x" * 10_000]
    await c.stored(t, *(out(c.name(), body) for body in odd))
    assert sorted(bodies(await m.drain(len(odd))), key=repr) == sorted(odd, key=repr)
    await m.close()
