"""The kit's, under the names that these tests use."""

from switchgear_conformance.harnesses.redis_server import (
    DURABLE,
    VERSIONS,
    ping,
    redis,
    redis7,
    redis8,
    reported_version,
)

__all__ = ["DURABLE", "VERSIONS", "ping", "redis", "redis7", "redis8", "reported_version"]
