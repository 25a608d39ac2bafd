"""The lines that failed, next to the input: as they stood, so that they can be published again, and the reasons."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import IO, Self


class Kept:
    """`orders.failed.jsonl` and `orders.failed.txt` beside `orders.jsonl`; made at the first failure, never over
    files that are there."""

    def __init__(self, source: Path) -> None:
        self._heading = b""
        self.lines_file: Path | None = None
        self.reasons_file: Path | None = None
        self._source = source
        self._lines: IO[bytes] | None = None
        self._reasons: IO[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        for file in (self._lines, self._reasons):
            if file is not None:
                file.close()

    def heading(self, text: bytes) -> None:
        """What the file of lines begins with, as a CSV file does."""
        self._heading = text + b"\n"

    def add(self, line: int, text: bytes, reason: str) -> None:
        """Keep one line. Raises OSError when it cannot be written."""
        if self._lines is None or self._reasons is None:
            self._lines, self._reasons = self._open()
            self._lines.write(self._heading)
        self._lines.write(text + b"\n")
        self._reasons.write(f"line {line}: {reason}\n")

    def _open(self) -> tuple[IO[bytes], IO[str]]:
        n = 1
        while True:
            mark = ".failed" if n == 1 else f".failed-{n}"
            lines = self._source.with_name(f"{self._source.stem}{mark}{self._source.suffix}")
            reasons = self._source.with_name(f"{self._source.stem}{mark}.txt")
            n += 1
            if lines == reasons:  # the input is itself a .txt
                reasons = reasons.with_suffix(".reasons.txt")
            if reasons.exists():
                continue
            try:
                opened = lines.open("xb")
            except FileExistsError:
                continue
            self.lines_file, self.reasons_file = lines, reasons
            return opened, reasons.open("x", encoding="utf-8")
