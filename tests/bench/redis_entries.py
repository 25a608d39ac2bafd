"""What Switchgear stores on Redis, found by looking, so that the raw sides write and read just that."""

from __future__ import annotations

from typing import Any, TypeAlias

from .orders import decode

Entry: TypeAlias = dict[bytes, bytes]


def connect(url: str, *, connections: int = 100) -> Any:
    """A client as a careful user would configure it: no timeout in blocking reads, no silent resends, and callers that
    wait for a connection where the default pool raises."""
    from redis.asyncio import BlockingConnectionPool, Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    make: Any = BlockingConnectionPool
    options = {"socket_timeout": None, "retry": Retry(NoBackoff(), 0)}
    return Redis.from_pool(make.from_url(url, max_connections=connections, timeout=30, **options))


async def streams(redis: Any, namespace: str) -> dict[str, int]:
    """The non-empty streams whose name contains the namespace, with their lengths."""
    names = [name.decode() async for name in redis.scan_iter(f"*{namespace}*", count=1000, _type="stream")]
    lengths = {name: int(await redis.xlen(name)) for name in names}
    return {name: length for name, length in lengths.items() if length}


async def only_stream(redis: Any, namespace: str) -> str:
    found = await streams(redis, namespace)
    assert len(found) == 1, f"expected one stream of orders, found {found}"
    return next(iter(found))


async def sample(redis: Any, stream: str) -> tuple[Entry, bytes]:
    """The fields of a stored entry, and the name of the one that holds the body."""
    ((_, entry),) = await redis.xrange(stream, count=1)
    for name, value in entry.items():
        try:
            decode(value)
        except Exception:
            continue
        return entry, name
    raise AssertionError(f"no field of {stream} holds the body; fields: {list(entry)}")


async def forget(redis: Any, namespace: str) -> None:
    """Delete every key of the namespace."""
    async for name in redis.scan_iter(f"*{namespace}*", count=1000):
        await redis.unlink(name)
