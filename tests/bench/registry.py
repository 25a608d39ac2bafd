"""Every workload, in the order in which they run."""

from __future__ import annotations

from collections.abc import Mapping

from . import (
    import_time,
    kafka_confluent,
    kafka_consume,
    kafka_latency,
    kafka_publish,
    memory_handle,
    redis_consume,
    redis_latency,
    redis_publish,
    sqlite_publish,
)
from .workload import Workload

WORKLOADS: Mapping[str, Workload] = {
    workload.name: workload
    for workload in (
        import_time.WORKLOAD,
        memory_handle.WORKLOAD,
        sqlite_publish.WORKLOAD,
        redis_publish.WORKLOAD,
        redis_consume.WORKLOAD,
        redis_latency.WORKLOAD,
        import_time.KAFKA,
        kafka_publish.WORKLOAD,
        kafka_consume.NO_ORDER,
        kafka_consume.KEY_ORDER,
        kafka_latency.WORKLOAD,
        kafka_confluent.PUBLISH,
        kafka_confluent.CONSUME,
    )
}
