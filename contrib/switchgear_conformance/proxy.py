"""A TCP proxy between clients and a broker, that can do to a connection what networks do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .harness import Address


class Line:
    """All proxies before one broker, one an address."""

    @classmethod
    async def open(cls, count: int) -> Line:
        """Listen on `count` free ports, before the broker is started."""
        raise NotImplementedError

    @property
    def addresses(self) -> Sequence[Address]:
        raise NotImplementedError

    def connect(self, broker: Any) -> None:
        """Forward to this broker (Proxied) from now on."""
        raise NotImplementedError

    def must_have_been_used(self, harness: str) -> None:
        """Raises HarnessLied if no connection came through: the URL of `through` leads past the proxies."""
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError
