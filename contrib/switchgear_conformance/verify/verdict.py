"""What a history proves."""

from __future__ import annotations

import msgspec


class Verdict(msgspec.Struct, kw_only=True):
    """Counts, and the ids of what should not be.

    Indeterminate publishes (`unsure`: they raised MaybeSent, or their process was killed before they ended) may have
    been handled or not.
    """

    attempted: int
    stored: int
    unsure: int
    failed: int
    handled: int
    """Different messages that were handled to the end."""
    duplicates: int
    """Handlings beyond the first of a message; at least once allows them."""
    consumers: int
    """Processes that handled something."""
    faults: dict[str, int]
    overlaps: int
    """Handlers that began under an older fence of their key after a newer one had begun."""
    lost: list[str]
    """Acknowledged to the publisher, and never handled."""
    unexpected: list[str]
    """Handled, and published by nobody."""
    corrupt: list[str]
    """Handled twice, with different bytes."""
    disorder: list[tuple[str, str]]
    """First handled in the wrong order of their key."""
    ordered: bool
    """Whether order was promised."""

    @property
    def good(self) -> bool:
        return bool(self.stored) and not (self.lost or self.unexpected or self.corrupt or self.disorder)

    def lines(self) -> list[str]:
        """For people."""
        found = [
            f"{self.attempted} attempted, {self.stored} stored, {self.unsure} unsure, {self.failed} failed",
            f"{self.handled} handled by {self.consumers} consumers, {self.duplicates} times more than once",
            (
                f"faults: {', '.join(f'{n} {what}' for what, n in sorted(self.faults.items())) or 'none'}; "
                f"{self.overlaps} handlers began under an older fence"
            ),
        ]
        for name, wrong in (
            ("lost", self.lost), ("unexpected", self.unexpected), ("corrupt", self.corrupt),
            ("out of order", [f"{late} before {early}" for late, early in self.disorder]),
        ):  # fmt: skip
            if name == "out of order" and not self.ordered:
                found.append("order: not promised")
            else:
                found.append(f"{name}: {len(wrong)}" + (f" ({', '.join(wrong[:10])})" if wrong else ""))
        if not self.stored:
            found.append("nothing was stored: that proves nothing")
        return found
