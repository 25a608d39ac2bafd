"""Every workload, in the order in which they run."""

from __future__ import annotations

from collections.abc import Mapping

from . import import_time, memory_handle, redis_consume, redis_latency, redis_publish, sqlite_publish
from .workload import Workload

WORKLOADS: Mapping[str, Workload] = {
    module.WORKLOAD.name: module.WORKLOAD
    for module in (import_time, memory_handle, sqlite_publish, redis_publish, redis_consume, redis_latency)
}
