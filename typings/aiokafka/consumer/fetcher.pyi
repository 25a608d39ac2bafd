from collections.abc import Iterator
from typing import Any

from aiokafka.structs import ConsumerRecord

class PartitionRecords:
    next_fetch_offset: int
    def __init__(
        self,
        tp: tuple[str, int],
        records: object,
        aborted_transactions: object,
        fetch_offset: int,
        key_deserializer: None,
        value_deserializer: None,
        check_crcs: bool,
        isolation_level: int,
    ) -> None: ...
    def __iter__(self) -> Iterator[ConsumerRecord]: ...

class FetchResult:
    _partition_records: Any
