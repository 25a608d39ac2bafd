"""`switchgear publish --file`, handled by two processes of one group.

60,000 lines by default, 300,000 with `SWITCHGEAR_FAULTS_FULL=1`.
"""

from __future__ import annotations

import json
import os
import random
import zlib
from pathlib import Path

import pytest

from .conftest import ENDLESS, Place
from .consuming import Consuming
from .oracle import Oracle, now
from .processes import Crew, drained

pytestmark = pytest.mark.timeout(900)
FULL = os.environ.get("SWITCHGEAR_FAULTS_FULL") == "1"
LINES = int(os.environ.get("SWITCHGEAR_FAULTS_LINES", "300000" if FULL else "60000"))
KEYS = 500
WORDS = ("mug", "Käse", "茶", "\\u2028", "a\\\\b", '\\"quoted\\"', "🫖", " ", "\\t", "1e400")


def write_lines(path: Path) -> dict[str, int]:
    """A file of JSON Lines, no two alike; returns the checksum of each by id."""
    dice = random.Random(5)
    checksums: dict[str, int] = {}
    with path.open("wb") as file:
        for n in range(LINES):
            id = f"k{n % KEYS}/{n}"
            pad = "".join(dice.choices(WORDS, k=dice.randrange(8)))
            line = f'{{"id": "{id}",  "key":"k{n % KEYS}", "pad":"{pad}", "price": {n}.10}}'.encode()
            checksums[id] = zlib.crc32(line)
            file.write(line + b"\n")
    return checksums


@pytest.mark.parametrize("order", ["none", "key"])
async def test_publish_file(order: str, place: Place, tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    checksums = write_lines(file)
    async with Crew(tmp_path / "crew") as crew:
        oracle = Oracle(crew.folder, expected=set(checksums))
        given = Consuming(journal=str(oracle.handled_path), order=order, lease=ENDLESS, concurrency=32)
        first, second = [await crew.consumer(place.url, given) for _ in range(2)]
        began = now()
        keyed = ("--key-field", "key") if order == "key" else ()
        publisher = await crew.start(
            "publish", "switchgear.cli", "publish", "jobs", "--file", str(file), *keyed, "--json", "--url", place.url
        )
        assert await publisher.ended(600) == 0, str(publisher)
        published = now()
        summary = json.loads(publisher.said().strip().splitlines()[-1])
        assert (summary["stored"], summary["failed"]) == (LINES, 0)
        await drained(oracle, *crew.members)
        print(
            f"{LINES} lines, order {order}: published at {LINES / (published - began):,.0f}/s, "
            f"handled {oracle.handled[-1].at - published:.1f} s later; by process {dict(oracle.pids)}"
        )
        oracle.judge(ordered=order == "key", exactly_once=True)
        changed = [h.id for h in oracle.handled if h.checksum != checksums[h.id]]
        assert not changed, f"{len(changed)} lines came out otherwise than they went in: {changed[:10]}"
        if order == "key" and place.server is not None:
            assert set(oracle.pids) == {first.pid}
            assert "standby" in second.said()
        else:
            assert set(oracle.pids) == {first.pid, second.pid}
            assert min(oracle.pids.values()) > LINES / 10, f"both must work: {oracle.pids}"
