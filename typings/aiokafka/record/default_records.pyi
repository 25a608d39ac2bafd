class _DefaultRecordBatchPy:
    _buffer: bytearray
    def __init__(self, buffer: bytes) -> None: ...
    def _maybe_uncompress(self) -> None: ...

class DefaultRecordBatchBuilder:
    def __init__(
        self,
        magic: int,
        compression_type: int,
        is_transactional: int,
        producer_id: int,
        producer_epoch: int,
        base_sequence: int,
        batch_size: int,
    ) -> None: ...
    def append(
        self,
        offset: int,
        timestamp: int | None,
        key: bytes | None,
        value: bytes | None,
        headers: list[tuple[str, bytes]],
    ) -> object | None: ...
    def build(self) -> bytearray: ...
