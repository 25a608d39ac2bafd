"""Outcomes carry what the handler said."""

from __future__ import annotations

from datetime import timedelta

import pytest

from switchgear import ConfigurationError, Drop, Reject, RetryAfter


@pytest.mark.parametrize("wait", [30, 30.0, timedelta(seconds=30)])
def test_retry_after_is_seconds(wait: float | timedelta) -> None:
    outcome = RetryAfter(seconds=wait, reason="busy")
    assert (outcome.seconds, outcome.reason, str(outcome)) == (30.0, "busy", "busy")
    assert str(RetryAfter(wait)) == "retry after 30 s"


def test_retry_after_something_else_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="expected seconds as a number or a timedelta, got '30'"):
        RetryAfter("30")  # type: ignore[arg-type]


def test_reasons() -> None:
    assert (Reject("no stock").reason, str(Reject("no stock"))) == ("no stock", "no stock")
    assert (Drop("old").reason, str(Drop("old"))) == ("old", "old")
