"""The rows that a log of writes comes to, whoever reads it and whatever compaction has left of it."""

from __future__ import annotations

import msgspec
import pytest

from switchgear.driver import Delivery
from switchgear_kafka.registry import Entry, Rows


def record(offset: int, key: bytes | None, value: bytes | None) -> Delivery:
    return Delivery("sg.registry", value, None, key, "", ("sg.registry/0", offset), None)


def rows(*entries: tuple[int, str, Entry]) -> Rows:
    found = Rows()
    for offset, name, entry in entries:
        found.apply(record(offset, name.encode(), msgspec.json.encode(entry)))
    return found


def test_the_first_of_two_that_expect_no_row_wins() -> None:
    found = rows((4, "a", Entry(b"mine", 0)), (5, "a", Entry(b"yours", 0)))
    assert found.found == {"a": (5, b"mine")}
    assert found.stale == {"a"}


def test_a_row_that_is_told_again_keeps_its_revision() -> None:
    lost = [(4, "a", Entry(b"mine", 0)), (5, "a", Entry(b"yours", 0)), (6, "a", Entry(b"mine", revision=5, seen=5))]
    for kept in (lost, lost[1:], lost[2:]):  # as compaction leaves it
        found = rows(*kept)
        assert found.found == {"a": (5, b"mine")}
        assert not found.stale


def test_a_row_that_is_told_again_too_late_does_not_undo_what_came_meanwhile() -> None:
    history = [
        (4, "a", Entry(b"mine", 0)), (5, "a", Entry(b"yours", 0)), (8, "a", Entry(b"next", 5)),
        (9, "a", Entry(b"mine", revision=5, seen=7)),
    ]  # fmt: skip
    found = rows(*history)
    assert found.found == {"a": (9, b"next")}
    assert found.stale == {"a"}
    history.append((10, "a", Entry(b"next", revision=9, seen=9)))  # and so it is told once more
    for begin in range(5):
        found = rows(*history[begin:])
        assert found.found == {"a": (9, b"next")}
        assert not found.stale


def test_a_write_over_a_revision_counts_only_over_that_one() -> None:
    found = rows((0, "a", Entry(b"1", 0)), (1, "a", Entry(b"2", 1)), (2, "a", Entry(b"3", 1)))
    assert found.found == {"a": (2, b"2")}
    found = rows((1, "a", Entry(b"2", 1)))  # what it was written over is compacted away
    assert found.found == {"a": (2, b"2")}


def test_a_deleted_row_may_be_written_anew_with_a_higher_revision() -> None:
    found = rows((0, "a", Entry(b"1", 0)), (3, "a", Entry(None, 1)))
    assert found.live("a") == 0
    found = rows((0, "a", Entry(b"1", 0)), (3, "a", Entry(None, 1)), (7, "a", Entry(b"2", 0)))
    assert found.found == {"a": (8, b"2")}


def test_a_write_without_expectation_always_counts() -> None:
    assert rows((0, "a", Entry(b"1", 0)), (1, "a", Entry(b"2"))).found == {"a": (2, b"2")}


@pytest.mark.parametrize(("key", "value"), [(None, b"{}"), (b"a", None), (b"\xff", b"{}"), (b"a", b"nonsense")])
def test_what_others_wrote_there_is_passed_over(key: bytes | None, value: bytes | None) -> None:
    found = Rows()
    found.apply(record(0, key, value))
    assert not found.found
