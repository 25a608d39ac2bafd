"""Serving within a command."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence

from switchgear import Bus
from switchgear.runtime import serve

from .execute import FAILED


async def serve_until_told(buses: Sequence[Bus], on_started: Callable[[], object] | None = None) -> None:
    """Serve until SIGTERM or SIGINT and drain. Raises what failed for good.

    A thread whose handler is still running at the deadline cannot be stopped and would keep the process alive: then it
    ends here, with 1. The handler's message comes again.
    """
    try:
        await serve(buses, on_started=on_started)
    finally:
        if any(bus._abandoned for bus in buses):
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(FAILED)
