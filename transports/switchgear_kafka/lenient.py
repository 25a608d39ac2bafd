"""Records whose headers have names that are not UTF-8: Java's client writes none, others do, and one reader chokes."""

from __future__ import annotations

import struct
from typing import Final, SupportsIndex, overload

from aiokafka.record.default_records import _DefaultRecordBatchPy  # pyright: ignore[reportPrivateUsage]
from aiokafka.record.legacy_records import LegacyRecordBatch

LENGTH, MAGIC, OVERHEAD = 8, 16, 12
"""Where a batch says how long and of which format it is, and how many bytes come before what its length counts."""
_INT: Final = struct.Struct(">i")


class LenientRecords:
    """As the client's MemoryRecords; bytes of a header's name that are no text come as in "\\xff"."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def _end(self) -> int:
        if self._at + MAGIC >= len(self._data):
            return len(self._data) + 1
        (length,) = _INT.unpack_from(self._data, self._at + LENGTH)
        return self._at + OVERHEAD + int(length)

    def has_next(self) -> bool:
        """Whether another batch is whole."""
        return self._end() <= len(self._data)

    def next_batch(self) -> object:
        """The next batch, which yields records."""
        batch = self._data[self._at : self._end()]
        self._at += len(batch)
        return _Batch(batch) if batch[MAGIC] >= 2 else LegacyRecordBatch(batch, batch[MAGIC])


class _Batch(_DefaultRecordBatchPy):
    def _maybe_uncompress(self) -> None:
        super()._maybe_uncompress()
        self._buffer = _Text(self._buffer)


class _Text(bytearray):
    """Decodes whatever it holds, and so do slices of it."""

    @overload
    def __getitem__(self, index: SupportsIndex, /) -> int: ...
    @overload
    def __getitem__(self, index: slice, /) -> _Text: ...
    def __getitem__(self, index: SupportsIndex | slice, /) -> int | _Text:
        found = super().__getitem__(index)
        return found if isinstance(found, int) else _Text(found)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:  # noqa: ARG002
        return super().decode(encoding, "backslashreplace")
