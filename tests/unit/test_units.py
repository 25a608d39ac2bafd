from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from switchgear.errors import ConfigurationError
from switchgear.units import instant, seconds


def test_seconds_of_a_number_or_a_timedelta() -> None:
    assert seconds(3) == 3.0
    assert isinstance(seconds(3), float)
    assert seconds(timedelta(minutes=1, milliseconds=500)) == 60.5


@pytest.mark.parametrize("value", ["3", None, True, datetime.now(UTC)])
def test_what_is_no_duration(value: object) -> None:
    with pytest.raises(ConfigurationError, match="seconds as a number or a timedelta"):
        seconds(value)  # type: ignore[arg-type]


def test_an_instant_is_absolute_or_from_now() -> None:
    assert instant(10, 100.0) == 110.0
    assert instant(timedelta(seconds=10), 100.0) == 110.0
    east = datetime(1970, 1, 1, 1, 0, 5, tzinfo=timezone(timedelta(hours=1)))
    assert instant(east, 100.0) == 5.0


def test_a_datetime_without_time_zone_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="has no time zone"):
        instant(datetime(2030, 1, 1), 0.0)  # noqa: DTZ001 - that is what is tested


def test_a_time_that_never_comes_is_no_instant() -> None:
    with pytest.raises(ConfigurationError, match="a time that comes, got inf"):
        instant(float("inf"), 0.0)
