"""How long to wait before another attempt."""

from __future__ import annotations

import random

from switchgear.knobs import Retry


def backoff(policy: Retry, attempt: int, draw: random.Random) -> float:
    """Seconds before the attempt after `attempt` (1 is the first): exponential with full jitter.

    Full jitter, a uniform draw between nothing and the bound, spreads competing retries best ("Exponential Backoff And
    Jitter", AWS Architecture Blog, 2015).
    """
    bound = min(policy.cap, policy.base * 2 ** min(attempt - 1, 60))
    return draw.uniform(0.0, bound)
