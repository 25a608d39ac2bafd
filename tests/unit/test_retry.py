"""How long to wait before another attempt."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from switchgear import Retry
from switchgear.middleware.retry import backoff


@given(attempt=st.integers(1, 10_000), base=st.floats(0, 100), cap=st.floats(0, 1000), seed=st.integers())
def test_it_is_between_nothing_and_the_bound(attempt: int, base: float, cap: float, seed: int) -> None:
    delay = backoff(Retry(base=base, cap=cap), attempt, random.Random(seed))
    assert 0 <= delay <= cap
    if attempt < 30:
        assert delay <= base * 2 ** (attempt - 1)


def test_it_is_spread_over_all_of_it() -> None:
    draw = random.Random(1)
    delays = [backoff(Retry(base=1, cap=60), 3, draw) for _ in range(1000)]
    assert min(delays) < 0.1
    assert max(delays) > 3.9
    assert 1.8 < sum(delays) / 1000 < 2.2
