"""The oracle sees what it is there to see."""

from __future__ import annotations

from pathlib import Path

import pytest

from .oracle import ATTEMPTED, STORED, UNSURE, Journal, Oracle


def told(folder: Path, published: list[tuple[str, str]], handled: list[str]) -> Oracle:
    oracle = Oracle(folder)
    into, out = Journal(str(oracle.published_path)), Journal(str(oracle.handled_path))
    for kind, id in published:
        into.write(kind, id)
    for n, id in enumerate(handled):
        out.write(100 + n % 2, id, 1, 0, n)
    return oracle.look()


def stored(*ids: str) -> list[tuple[str, str]]:
    return [(kind, id) for id in ids for kind in (ATTEMPTED, STORED)]


def test_all_is_well(tmp_path: Path) -> None:
    oracle = told(tmp_path, stored("a/1", "b/2", "a/3"), ["b/2", "a/1", "a/3"])
    oracle.judge(ordered=True, exactly_once=True)
    assert set(oracle.pids) == {100, 101}


def test_nothing_at_all_is_no_proof(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="nothing was published"):
        told(tmp_path, [], []).judge(ordered=False)


def test_lost(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"1 lost.*a/3"):
        told(tmp_path, stored("a/1", "a/3"), ["a/1"]).judge(ordered=False)


def test_what_was_not_confirmed_may_be_missing(tmp_path: Path) -> None:
    told(tmp_path, [*stored("a/1"), (ATTEMPTED, "a/2"), (UNSURE, "a/2")], ["a/1"]).judge(ordered=True)


def test_invented(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"unexpected: \['a/2'\]"):
        told(tmp_path, stored("a/1"), ["a/1", "a/2"]).judge(ordered=False)


def test_order_is_that_of_first_occurrences(tmp_path: Path) -> None:
    ids = stored("a/1", "a/2", "a/3")
    oracle = told(tmp_path, ids, ["a/1", "a/2", "a/1", "a/3", "a/2"])
    oracle.judge(ordered=True)
    assert oracle.duplicates == {"a/1": 2, "a/2": 2}
    with pytest.raises(AssertionError, match="more than once"):
        oracle.judge(ordered=True, exactly_once=True)


def test_disorder(tmp_path: Path) -> None:
    oracle = told(tmp_path, stored("a/1", "b/1", "a/2", "a/3"), ["a/2", "b/1", "a/1", "a/3"])
    assert oracle.disorder == [("a/2", "a/1")]
    with pytest.raises(AssertionError, match="out of order"):
        oracle.judge(ordered=True)


def test_a_line_that_is_being_written_waits(tmp_path: Path) -> None:
    oracle = Oracle(tmp_path)
    oracle.published_path.write_text("? a/1\n+ a/")
    assert not oracle.look().stored
    with oracle.published_path.open("a") as file:
        file.write("1\n")
    assert oracle.look().stored == {"a/1"}
