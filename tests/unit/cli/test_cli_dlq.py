"""Dead letters on the command line, over a SQLite file."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

from switchgear import Bus, DeadLetter, Message, Reject, Retry, Topic
from switchgear.names import ledger_row

from .conftest import Run, Start, beside

URL = "sqlite:///broker.db"
ORDERS = Topic("orders", dict[str, Any], order="none")
ACCOUNTS = Topic("accounts", dict[str, Any], key=lambda entry: entry["k"], order="key")


def everything(_: Any) -> bool:
    return True


def nothing(_: Any) -> bool:
    return False


def first(value: Any) -> bool:
    return bool(value["n"] == 0)


class Member:
    """A bus whose handlers fail as long as `bad` says so."""

    def __init__(self, **of_accounts: Any) -> None:
        self.bus = Bus(URL, name="test")
        self.bad: Any = everything
        self.seen: list[Any] = []
        self.others: list[Any] = []
        self.buried = 0
        self.bus._observers = (self,)

        async def handle(message: Message[Any]) -> None:
            self.seen.append(message.body["n"])
            if self.bad(message.body):
                raise Reject(f"no {message.body['n'] % 2}\x1b[31m")

        self.bus.subscribe(ORDERS, group="billing", retry=Retry(attempts=1))(handle)
        self.bus.subscribe(ACCOUNTS, group="book", dead_letter=DeadLetter(after="park"))(handle)

        @self.bus.subscribe(ORDERS, group="other")
        async def other(order: dict[str, Any]) -> None:
            self.others.append(order["n"])

    def count(self, event: str, topic: str, group: str | None, n: int) -> None:
        self.buried += n if event == "dead_lettered" else 0

    async def until(self, true: Any) -> None:
        async with asyncio.timeout(20):
            while not true():  # noqa: ASYNC110  (handlers make it true)
                await asyncio.sleep(0.01)


def bury(number: int, topic: Topic[Any] = ORDERS) -> None:
    """So many dead letters, of even and odd reasons."""

    async def main() -> None:
        member = Member()
        async with member.bus.serving():
            await member.bus.publish_many(topic, [{"k": "ann", "n": n} for n in range(number)])
            await member.until(lambda: member.buried == number)

    asyncio.run(main())


def handled(expected: int, topic: Topic[Any] = ORDERS) -> list[int]:
    """What a member handles that is right now."""

    async def main() -> list[int]:
        member = Member()
        member.bad = nothing
        async with member.bus.serving():
            await member.until(lambda: len(member.seen) >= expected)
        assert not member.others
        return member.seen

    return asyncio.run(main())


def listed(sg: Run, topic: str = "orders", *more: str) -> list[str]:
    result = sg("dlq", "list", topic, "--json", "--limit", "2000", *more)
    assert result.exit_code == 0, result.output
    return [letter["id"] for letter in json.loads(result.stdout)]


def test_list_shows_the_newest_last_and_nothing_that_a_terminal_acts_on(sg: Run) -> None:
    bury(4)
    result = sg("dlq", "list", "orders", "--limit", "3")
    assert result.exit_code == 0
    assert "\x1b" not in result.stdout
    assert "no 1 [31m" in result.stdout
    assert "1 older ones are not shown" in result.stderr
    letters = json.loads(sg("dlq", "list", "orders", "--json").stdout)
    assert [one["attempts"] for one in letters] == [1, 1, 1, 1]
    assert listed(sg, "orders", "--limit", "1") == [letters[-1]["id"]]
    shown = sg("dlq", "show", "orders", letters[0]["id"])
    assert "group: billing" in shown.stdout
    assert '{"k":"ann","n":0}' in shown.stdout
    assert "\x1b" not in shown.stdout
    assert sg("dlq", "show", "orders", "nobody").exit_code == 1


def test_replay_with_a_filter_leaves_the_others(sg: Run) -> None:
    bury(6)
    ids = listed(sg)
    assert json.loads(sg("dlq", "replay", "orders", "--reason", "no 1", "--dry-run", "--json").stdout)["would_be"] == 3
    assert listed(sg) == ids
    result = sg("dlq", "replay", "orders", "--reason", "no 1")
    assert (result.exit_code, result.stdout) == (0, "3 replayed\n")
    assert listed(sg) == ids[::2]
    assert sorted(handled(3)) == [1, 3, 5]
    assert sg("dlq", "replay", "orders", "--reason", "no 1").stdout == "0 replayed\n"
    assert sg("dlq", "drop", "orders", "--type", "cats").stdout == "0 dropped\n"
    assert sg("dlq", "drop", "orders", "--since", "1h").stdout == "3 dropped\n"
    assert listed(sg) == []


def test_what_was_done_takes_one_range_however_it_was_done(sg: Run) -> None:
    bury(6)
    for reason in ("no 0", "no 1"):
        assert sg("dlq", "drop", "orders", "--reason", reason).exit_code == 0
    bury(2)
    assert len(listed(sg)) == 2

    async def ranges() -> int:
        async with Bus(URL) as bus:
            row = ledger_row("sg.dlq.orders.billing")
            transport: Any = bus.transport
            found: dict[str, Any] = await transport.read(row)
            return sum(map(len, json.loads(found[row].value)["done"].values()))

    assert sg("dlq", "drop", "orders", "--key", "nobody").exit_code == 0
    assert asyncio.run(ranges()) == 1


def test_replay_goes_to_the_one_group_that_failed_and_several_have_to_be_named(sg: Run) -> None:
    bury(2)

    async def another() -> None:
        bus, called = Bus(URL, name="test"), asyncio.Event()

        @bus.subscribe(ORDERS, group="more", start="earliest", retry=Retry(attempts=1))
        async def handle(order: dict[str, Any]) -> None:
            called.set()
            raise Reject("no")

        async with bus.serving():
            await called.wait()

    asyncio.run(another())
    result = sg("dlq", "replay", "orders")
    assert result.exit_code == 2
    assert "billing, more" in result.stderr
    assert sg("dlq", "replay", "orders", "--group", "billing").stdout == "2 replayed\n"
    assert sg("dlq", "replay", "orders", "--group", "nobody").exit_code == 1
    assert sorted(handled(2)) == [0, 1]


def test_a_parked_key_is_replayed_in_order_and_freed_while_its_group_runs(sg: Run) -> None:
    async def main() -> None:
        member = Member()
        member.bad = first
        async with member.bus.serving():
            for n in range(5):
                await member.bus.publish(ACCOUNTS, {"k": "ann", "n": n})
            await member.until(lambda: member.buried == 5)
            assert member.seen == [0]
            part = await beside("dlq", "replay", "accounts", "--reason", "parked")
            assert part.stdout == "0 replayed\n"
            assert "4 belong to parked keys" in part.stderr
            again = await beside("dlq", "replay", "accounts", "--key", "ann")
            assert again.returncode == 1
            assert "'ann' stays parked: it failed again" in again.stderr
            await member.until(lambda: member.buried == 10)
            assert member.seen == [0, 0]  # what was parked behind it is parked again, and in order
            member.bad = nothing
            freed = await beside("dlq", "replay", "accounts", "--key", "ann")
            assert freed.stdout == "5 replayed; parked no more: ann\n"
            await member.bus.publish(ACCOUNTS, {"k": "ann", "n": 5})
            await member.until(lambda: 5 in member.seen)
            assert member.seen == [0, 0, 0, 1, 2, 3, 4, 5]

    asyncio.run(main())


def test_a_parked_key_stays_parked_until_its_stopped_group_has_handled_it(sg: Run) -> None:
    bury(3, ACCOUNTS)
    result = sg("dlq", "replay", "accounts", "--wait", "0")
    assert result.exit_code == 1
    assert "has not handled its copies yet" in result.stderr
    assert handled(3, ACCOUNTS) == [0, 1, 2]
    assert sg("dlq", "replay", "accounts").exit_code == 0

    async def rows() -> Any:
        async with Bus(URL) as bus:
            return await bus.transport.read("sg.parked.")  # type: ignore[attr-defined]

    assert asyncio.run(rows()) == {}


def test_drop_frees_a_parked_key(sg: Run) -> None:
    bury(3, ACCOUNTS)
    assert sg("dlq", "drop", "accounts", "--key", "ann").stdout == "3 dropped; parked no more: ann\n"
    assert listed(sg, "accounts") == []


def test_a_run_that_is_killed_repeats_one_batch_at_most_and_goes_on(sg: Run, start: Start, here: Path) -> None:
    bury(1000)
    process = start("dlq", "replay", "orders")
    until = time.monotonic() + 20
    while len(listed(sg)) == 1000 and time.monotonic() < until and process.poll() is None:
        pass
    process.kill()
    process.wait()
    left = len(listed(sg))
    assert left < 1000
    begun = time.monotonic()
    result = sg("dlq", "replay", "orders")
    assert time.monotonic() - begun < 10  # it does not wait for a process that is gone
    assert result.stdout == f"{left:,} replayed\n"
    lag = json.loads(sg("lag", "orders", "--group", "billing", "--json").stdout)
    assert 1000 <= lag[0]["lag"] <= 1100
    assert listed(sg) == []


def test_two_at_once_do_not_replay_the_same_letters(sg: Run, start: Start) -> None:
    bury(500)
    first, second = start("dlq", "drop", "orders", "--json"), start("dlq", "drop", "orders", "--json")
    outs = [process.communicate(timeout=60) for process in (first, second)]
    done = sum(json.loads(out)["dropped"] for out, _ in outs if out)
    assert done == 500, outs
    assert listed(sg) == []


def test_export_writes_what_tail_prints(sg: Run, here: Path) -> None:
    bury(2)
    assert sg("dlq", "export", "orders", "-o", "letters.jsonl").exit_code == 0
    lines = (here / "letters.jsonl").read_text().splitlines()
    assert lines == sg("tail", "sg.dlq.orders.billing", "--json").stdout.splitlines()
    assert sg("dlq", "export", "orders").stdout.splitlines() == lines
    assert sg("dlq", "export", "orders", "-o", "letters.jsonl").exit_code == 2
    assert len(listed(sg)) == 2


def test_a_dead_letter_topic_of_ones_own_is_found_by_its_name(sg: Run) -> None:
    async def main() -> None:
        bus, called = Bus(URL, name="test"), asyncio.Event()

        @bus.subscribe(ORDERS, group="billing", dead_letter="orders.dead")
        async def handle(order: dict[str, Any]) -> None:
            called.set()
            raise Reject("no")

        async with bus.serving():
            await bus.publish(ORDERS, {"n": 7})
            await called.wait()

    asyncio.run(main())
    assert sg("dlq", "list", "orders").exit_code == 1
    assert len(listed(sg, "orders.dead")) == 1
    assert sg("dlq", "replay", "orders.dead").stdout == "1 replayed\n"
    assert handled(1) == [7]


def test_wrong_times_are_told(sg: Run) -> None:
    for option, text in (("--since", "new"), ("--until", "yesterday")):
        result = sg("dlq", "list", "orders", option, text)
        assert result.exit_code == 2
        assert f"{option} " in result.stderr
