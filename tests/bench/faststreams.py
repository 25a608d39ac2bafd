"""FastStream's Redis broker, as quiet as it can be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def redis_broker(url: str, *, middlewares: Sequence[type[Any]] = (), connections: int = 100) -> Any:
    """Its defaults but for the log; of connections its client takes 100 and then raises."""
    from faststream.redis import RedisBroker

    make: Any = RedisBroker
    return make(url, logger=None, middlewares=middlewares, max_connections=connections)
