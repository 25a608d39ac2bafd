"""`sync.Bus`: plain calls, in threads, after a fork, at the exit."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from switchgear import Bus as AsyncBus
from switchgear import (
    CodecError,
    ConfigurationError,
    MaybeSent,
    Message,
    Misuse,
    NotSent,
    Refused,
    RequestTimeout,
    Topic,
    Unavailable,
)
from switchgear.sync import Bus
from tests.support.stored import stored, unsettled

items = Topic("items", dict)


def found(path: Path) -> list[Any]:
    """What is stored."""
    return [json.loads(d.body or b"") for d in asyncio.run(stored(f"sqlite:///{path}", "items"))]


def script(text: str, path: Path) -> subprocess.CompletedProcess[str]:
    head = "import os, sys, threading\nfrom switchgear import Topic\nfrom switchgear.sync import Bus\n"
    head += f"bus = Bus('sqlite:///{path}')\nitems = Topic('items', dict)\n"
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", head + textwrap.dedent(text)],
        capture_output=True, text=True, timeout=60, cwd=path.parent,
    )  # fmt: skip
    slow = "Executing <"  # asyncio's debug mode on what takes long, such as an import
    done.stderr = "".join(row for row in done.stderr.splitlines(True) if not row.startswith(slow))
    return done


def test_it_opens_at_the_first_call_and_closes_with_its_thread(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    bus = Bus(f"sqlite:///{tmp_path / 'a.db'}")
    assert set(threading.enumerate()) <= before
    assert not (tmp_path / "a.db").exists()
    assert bus.publish(items, {"n": 1})
    assert set(threading.enumerate()) - before
    assert len(bus.publish_many(items, [{"n": 2}, {"n": 3}], id=lambda item: str(item["n"]))) == 2
    bus.close()
    bus.close()
    assert set(threading.enumerate()) <= before
    with pytest.raises(Misuse, match="closed"):
        bus.publish(items, {})


def test_messages_are_pulled_and_settled(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    with Bus(url) as bus:
        with bus.consumer(items, group="g") as consumer:
            for n in range(4):
                bus.publish(items, {"n": n})
            seen: list[tuple[int, int]] = []
            for _ in range(5):
                message = next(consumer)
                seen.append((message.body["n"], message.attempt))
                if message.body["n"] == 1 and message.attempt == 1:
                    consumer.retry(message, after=0)
                elif message.body["n"] == 2:
                    consumer.reject(message, "no")
                else:
                    consumer.ack(message)
        with bus.consumer(items, group="g", idle=0.1) as consumer:
            assert list(consumer) == []
    assert asyncio.run(unsettled(url, "items", "g")) == 0
    assert sorted(seen) == [(0, 1), (1, 1), (1, 2), (2, 1), (3, 1)]


def test_errors_come_through_as_they_are(tmp_path: Path) -> None:
    with Bus(f"sqlite:///{tmp_path / 'a.db'}") as bus:
        with pytest.raises(Refused, match="control character"):
            bus.publish(items, {}, headers={"x": "a\nb"})
        with pytest.raises(CodecError):
            bus.publish("items", object())
        with pytest.raises(RequestTimeout):
            for timeout in (0.2, 2, 20):
                with suppress(NotSent, MaybeSent, Unavailable):  # it took that long to ask
                    bus.request(items, {}, dict, timeout=timeout)
        with pytest.raises(ConfigurationError, match="grammar"):
            bus.publish("x", {})
    with pytest.raises(ConfigurationError):
        Bus("memory://a/b/c").publish(items, {})


def test_many_threads_publish_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with Bus(f"sqlite:///{path}") as bus, ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda n: bus.publish(items, {"n": n}), range(200)))
    assert len(set(ids)) == 200
    assert sorted(item["n"] for item in found(path)) == list(range(200))


def test_closing_while_others_publish_leaves_nobody_waiting(tmp_path: Path) -> None:
    bus = Bus(f"sqlite:///{tmp_path / 'a.db'}")
    bus.publish(items, {})
    begun = threading.Barrier(5)
    ended: list[str] = []

    def publish() -> None:
        bus.publish(items, {})
        begun.wait()
        try:
            while True:
                bus.publish(items, {})
        except Misuse as error:
            ended.append(str(error))

    threads = [threading.Thread(target=publish, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    begun.wait()
    bus.close()
    for thread in threads:
        thread.join()
    assert len(ended) == 4


async def test_inside_a_loop_it_is_refused() -> None:
    with pytest.raises(Misuse, match=r"use switchgear\.Bus"):
        Bus("memory://").publish(items, {})


def test_after_a_fork_the_child_publishes_too(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    text = """
    bus.publish(items, {"n": 0})
    child = os.fork()
    if child == 0:
        bus.publish(items, {"n": 1})
        sys.exit(0)
    _, status = os.waitpid(child, 0)
    bus.publish(items, {"n": 2})
    sys.exit(os.waitstatus_to_exitcode(status))
    """
    done = script(text, path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [item["n"] for item in found(path)] == [0, 1, 2]


def test_a_fork_while_another_thread_publishes_does_not_block_the_child(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    text = """
    bus.publish(items, {"n": 0})
    stop = threading.Event()
    def busy():
        while not stop.is_set(): bus.publish(items, {"n": 0})
    thread = threading.Thread(target=busy)
    thread.start()
    codes = []
    for n in range(5):
        child = os.fork()
        if child == 0:
            bus.publish(items, {"n": 1})
            os._exit(0)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    stop.set()
    thread.join()
    sys.exit(any(codes))
    """
    done = script(text, path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert sum(item["n"] for item in found(path)) == 5


def test_at_exit_it_is_closed_without_a_word(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    text = """
    def later():
        bus.publish(items, {"n": 2})
    bus.publish(items, {"n": 1})
    threading.Thread(target=later).start()
    """
    done = script(text, path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [item["n"] for item in found(path)] == [1, 2]


async def test_in_a_def_handler_it_goes_on_with_correlation_and_cause() -> None:
    bus = AsyncBus("memory://", name="tests", config={})
    out = Topic("out", dict)
    seen: asyncio.Future[Message[Any]] = asyncio.get_running_loop().create_future()

    @bus.subscribe(items, group="g")
    def handle(item: dict[str, int], facade: Bus) -> None:
        facade.publish(out, item)

    @bus.subscribe(out, group="g")
    async def collect(item: dict[str, int], message: Message[Any]) -> None:
        seen.set_result(message)
        assert (message.correlation_id, message._attributes().causation_id) == (first, first)

    async with bus.serving():
        first = await bus.publish(items, {"n": 1}, headers={"tenant": "a"})
        message = await seen
        assert message.body == {"n": 1}
        assert dict(message.headers) == {}


def test_correlation_crosses_from_thread_to_loop(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with Bus(f"sqlite:///{path}") as bus, bus.consumer("copies", group="g") as copies:
        with bus.consumer(items, group="g") as consumer:
            bus.publish(items, {})
            message = next(consumer)
            from switchgear.message import handling

            token = handling.set(message)
            bus.publish("copies", {})
            handling.reset(token)
            consumer.ack(message)
            first = message.id
        copy = next(copies)
        assert (copy.correlation_id, copy._attributes().causation_id) == (first, first)
        copies.ack(copy)
