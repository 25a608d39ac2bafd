"""The pages about Redis run on real servers."""

from __future__ import annotations

from tests.brokers.fixtures import own_redis, redis_version

__all__ = ["own_redis", "redis_version"]
