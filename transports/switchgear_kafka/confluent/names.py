"""Names of headers that can be handed to librdkafka: on one that is no text it ends the process, one with a null
character it cuts short."""

from __future__ import annotations

from switchgear_kafka.cluster import Record

MOST = 1000  # names that are remembered


class Names:
    """Those that were looked at already."""

    def __init__(self) -> None:
        self._good: set[str] = set()

    def fit(self, record: Record) -> bool:
        """Whether all names of a record's headers can be carried."""
        good = self._good
        for name, _ in record.headers:
            if name not in good:
                if "\0" in name or name.encode("utf-8", "ignore").decode() != name:
                    return False
                if len(good) >= MOST:
                    good.clear()
                good.add(name)
        return True
