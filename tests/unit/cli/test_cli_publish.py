"""`switchgear publish`, `tail` and `topics`, on SQLite."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from switchgear.cli.bulk import Job, Sender
from tests.support.stored import stored
from tests.support.virtual import virtual

from .conftest import Run, Start


def bodies(result: Result) -> list[object]:
    return [json.loads(line)["body"] for line in result.stdout.splitlines()]


def held(topic: str) -> int:
    """How many messages the broker holds."""
    return len(asyncio.run(stored("sqlite:///broker.db", topic)))


def everything(sg: Run, topic: str, *options: str) -> Result:
    """All that the broker holds of a topic; with options, what they ask for."""
    result = sg("tail", topic, "--from", "earliest", "--json", *(options or ("--count", str(held(topic)))))
    assert result.exit_code == 0, result.stderr
    return result


def test_one_value(sg: Run) -> None:
    result = sg("publish", "greetings", "Ada")
    assert result.exit_code == 0
    assert "no group reads greetings yet" in result.stderr
    [message] = [json.loads(line) for line in everything(sg, "greetings").stdout.splitlines()]
    assert message["id"] == result.stdout.strip()
    assert (message["body"], message["encoding"], message["key"]) == ("Ada", "json", None)
    assert message["topic"] == message["type"] == "greetings"


def test_a_group_that_reads_silences_the_note(sg: Run, here: Path) -> None:
    (here / "sg_reader.py").write_text(READER)
    assert sg("provision", "sg_reader:bus").exit_code == 0
    assert sg("publish", "greetings", "Ada").stderr == ""


READER = """
from switchgear import Bus
bus = Bus()
@bus.subscribe("greetings", group="demo")
async def greet(name: str) -> None:
    print("Hello", name)
"""


def test_json_lines_arrive_in_order_and_byte_for_byte(sg: Run, here: Path) -> None:
    lines = [f'{{"n": {n}, "big": {10**30 + n},  "f": 1.50}}' for n in range(2500)]
    (here / "orders.jsonl").write_text("\n".join(lines))
    result = sg("publish", "orders", "--file", "orders.jsonl", "--json")
    assert result.exit_code == 0
    summary = json.loads(result.stdout)
    assert (summary["topic"], summary["stored"], summary["failed"]) == ("orders", 2500, 0)
    printed = everything(sg, "orders").stdout.splitlines()
    assert [line.partition('"body":')[2].removesuffix(',"encoding":"json"}') for line in printed] == lines
    assert sorted(path.name for path in here.iterdir() if "failed" in path.name) == []


def test_a_key_field_gives_a_new_topic_key_order(sg: Run, here: Path) -> None:
    (here / "orders.jsonl").write_text('{"c": {"id": "ann"}}\n{"c": {"id": 7}}\n')
    assert sg("publish", "orders", "--file", "orders.jsonl", "--key-field", "c.id").exit_code == 0
    printed = everything(sg, "orders").stdout.splitlines()
    assert [json.loads(line)["key"] for line in printed] == ["ann", "7"]
    (here / "sg_keyed.py").write_text(KEYED)
    assert sg("explain", "sg_keyed:bus").exit_code == 0  # its order="key" is what the topic was made with


KEYED = """
from switchgear import Bus, Topic
bus = Bus()
@bus.subscribe(Topic("orders", dict, order="key"), group="billing")
async def bill(order: dict) -> None: ...
"""


def test_a_key_field_takes_an_existing_topic_as_it_is(sg: Run) -> None:
    assert sg("publish", "orders", '{"c": 1}').exit_code == 0
    assert sg("publish", "orders", '{"c": 2}', "--key-field", "c").exit_code == 0
    assert sg("publish", "orders", '{"c": 3}', "--key", "ann").exit_code == 0
    printed = everything(sg, "orders").stdout.splitlines()
    assert [json.loads(line)["key"] for line in printed] == [None, "2", "ann"]


def test_failed_lines_are_kept_and_can_be_published_again(sg: Run, here: Path) -> None:
    (here / "orders.jsonl").write_text('{"k": "a"}\nnope\n{"k": "b"}\n{"other": 1}\n')
    result = sg("publish", "orders", "--file", "orders.jsonl", "--key-field", "k")
    assert result.exit_code == 1
    assert "2 stored, 2 failed" in result.stdout
    assert "line 4: no field 'k'" in result.stderr
    assert "orders.failed.jsonl" in result.stderr
    assert (here / "orders.failed.jsonl").read_text() == 'nope\n{"other": 1}\n'
    assert [line[:7] for line in (here / "orders.failed.txt").read_text().splitlines()] == ["line 2:", "line 4:"]
    again = sg("publish", "orders", "--file", "orders.failed.jsonl")
    assert again.exit_code == 1  # what is no JSON stays so
    assert bodies(everything(sg, "orders")) == [{"k": "a"}, {"k": "b"}, {"other": 1}]


def test_a_line_that_is_too_long_for_a_message_fails_alone(
    sg: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "orders.jsonl").write_text("1\n" + json.dumps("x" * 20_000_000) + "\n2\n")
    result = sg("publish", "sizes", "--file", "orders.jsonl")
    assert result.exit_code == 1
    assert "2 stored, 1 failed" in result.stdout
    assert "line 2: Refused: " in result.stderr
    monkeypatch.setattr("switchgear.cli.lines.LONGEST", 8 << 20)  # a bound for what is no file of lines at all
    result = sg("publish", "sizes", "--file", "orders.jsonl")
    assert result.exit_code == 2
    assert "longer than 8 MiB" in result.stderr


def test_csv(sg: Run, here: Path) -> None:
    (here / "stock.csv").write_text('sku,count\r\nmug,007\r\n"a, b","x\ny"\r\nshort\r\n')
    result = sg("publish", "stock", "--file", "stock.csv")
    assert result.exit_code == 1
    assert bodies(everything(sg, "stock")) == [{"sku": "mug", "count": "007"}, {"sku": "a, b", "count": "x\ny"}]
    assert (here / "stock.failed.csv").read_bytes() == b"sku,count\nshort\n"


def test_standard_input(start: Start, sg: Run) -> None:
    process = start("publish", "orders", stdin=subprocess.PIPE)
    out, errors = process.communicate('{"n": 1}\n{"n": 2}', timeout=120)
    assert process.returncode == 0, errors
    assert "2 stored, 0 failed" in out
    assert bodies(everything(sg, "orders")) == [{"n": 1}, {"n": 2}]


def test_the_rate_is_kept(sg: Run, here: Path) -> None:
    (here / "orders.jsonl").write_text("1\n" * 21)
    result = sg("publish", "orders", "--file", "orders.jsonl", "--rate", "40", "--json")
    summary = json.loads(result.stdout)
    assert summary["stored"] == 21
    assert summary["seconds"] >= 0.38


@virtual
async def test_the_rate_is_reached() -> None:
    sender: Any = Sender(None, None, Job(None, "orders", None, None, 40.0, 30.0), None)  # type: ignore[arg-type]
    began = asyncio.get_running_loop().time()
    for _ in range(401):
        await sender._pace(1 / 40)
    assert 9.8 < asyncio.get_running_loop().time() - began < 10.1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130)])
def test_an_interrupt_ends_the_reading_and_tells_where(
    start: Start, sg: Run, here: Path, number: int, code: int
) -> None:
    (here / "orders.jsonl").write_text("".join(f"{n}\n" for n in range(1, 100_001)))
    process = start("publish", "orders", "--file", "orders.jsonl", "--rate", "200")
    assert process.stderr is not None
    assert "no group reads" in process.stderr.readline()
    messages = start("tail", "orders", "--from", "earliest", "--count", "20")  # some of it is there
    while messages.wait(120) == 1:  # not even the topic
        messages = start("tail", "orders", "--from", "earliest", "--count", "20")
    process.send_signal(number)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == code
    count = held("orders")
    assert 20 <= count < 100_000
    assert f"{count:,} stored, 0 failed" in out
    assert f"stopped: interrupted; lines from {count + 1} on were not tried" in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("publish", "orders", "1", "--file", "x"), "give a VALUE or --file, not both"),
        (("publish", "orders", "1", "--key", "a", "--key-field", "b"), "give --key or --key-field, not both"),
        (("publish", "orders", "--file", "absent.jsonl"), "No such file or directory"),
        (("publish", "orders", "--file", "."), "Is a directory"),
        (("publish", "orders", "1", "--rate", "0"), "--rate"),
        (("publish", "orders", "--file", "x", "--format", "xml"), "--format"),
        (("publish", "orders", '{"a": '), "VALUE: not JSON"),
        (("publish", "orders", "{}", "--key-field", "a"), "VALUE: no field 'a'"),
        (("publish", "a b", "1"), "topic name 'a b' is outside the grammar"),
        (("publish", "orders", "1", "--url", "nonsense://x"), "no transport serves the scheme nonsense://"),
        (("publish", "orders", "1", "--url", "broker.db"), "malformed broker URL"),
        (("publish", "orders", "1", "--url", "sqlite:////no/such/folder/x.db"), "does not exist"),
        (("tail", "orders", "--from", "yesterday"), "--from 'yesterday'"),
        (("tail", "orders", "--where", "x"), "FIELD=VALUE"),
        (("tail", "orders", "--count", "0"), "--count"),
        (("nonsense",), "No such command"),
    ],
)
def test_wrong_usage_exits_with_2_and_says_why(sg: Run, arguments: tuple[str, ...], message: str) -> None:
    result = sg(*arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert "Traceback" not in result.stderr


def test_a_name_that_nobody_wrote_yet_is_not_made_by_looking(sg: Run) -> None:
    assert sg("publish", "orders", "1").exit_code == 0
    result = sg("tail", "order")
    assert result.exit_code == 1
    assert "there is no topic 'order'" in result.stderr
    assert "did you mean 'orders'?" in result.stderr
    assert [topic["name"] for topic in json.loads(sg("topics", "--json").stdout)] == ["orders"]


def test_an_unreachable_broker_fails_within_the_timeout_and_shows_no_password(sg: Run) -> None:
    pytest.importorskip("redis")
    result = sg("publish", "orders", "1", "--timeout", "0.5", "--url", "redis://user:secret@127.0.0.1:1")
    assert result.exit_code == 1
    assert "Unavailable" in result.stderr
    assert "secret" not in result.stderr


def test_tail_where_and_count(sg: Run, here: Path) -> None:
    (here / "orders.jsonl").write_text("\n".join(json.dumps({"c": {"id": n % 3}, "n": n}) for n in range(30)))
    sg("publish", "orders", "--file", "orders.jsonl")
    both = everything(sg, "orders", "--where", "c.id=1", "--where", "n=4", "--count", "1")
    assert bodies(both) == [{"c": {"id": 1}, "n": 4}]
    assert len(bodies(everything(sg, "orders", "--count", "5"))) == 5
    assert bodies(everything(sg, "orders", "--where", "c.id=9", "--idle", "0.3")) == []
    text = sg("tail", "orders", "--from", "1h", "--count", "1").stdout
    assert text.endswith('  -  {"c": {"id": 0}, "n": 0}\n')


def test_tail_shows_what_comes_and_ends_on_ctrl_c(sg: Run, start: Start) -> None:
    sg("publish", "orders", "1")
    process = start("tail", "orders", "--from", "earliest")
    assert process.stdout is not None
    assert process.stdout.readline().endswith("  -  1\n")
    sg("publish", "orders", "2", "--key", "ann")
    assert process.stdout.readline().endswith("  ann  2\n")
    process.send_signal(2)
    assert process.wait(120) == 130
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()


def test_topics(sg: Run) -> None:
    assert "no topics on sqlite:///broker.db" in sg("topics").stdout
    sg("publish", "orders", "1")
    sg("publish", "other", "1")
    assert json.loads(sg("topics", "ord", "--json").stdout) == [{"name": "orders", "messages": 1, "groups": []}]
    assert "orders" in sg("topics").stdout
    spaced = sg("topics", "--json", "--url", "sqlite:///broker.db?namespace=test.")
    assert json.loads(spaced.stdout) == []
