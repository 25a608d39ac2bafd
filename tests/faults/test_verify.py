"""`switchgear verify` with members that join, leave and are killed, and a broker that is killed, stopped and paused.

20 seconds by default, 3 minutes with `SWITCHGEAR_FAULTS_FULL=1`, half an hour with `SWITCHGEAR_FAULTS_LONG=1`. By hand:

    switchgear verify --harness kafka --for 1800 --faults all --seed 20261123
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from switchgear_conformance.verify.verdict import Verdict

from .processes import Crew

LONG, FULL = (os.environ.get(f"SWITCHGEAR_FAULTS_{name}") == "1" for name in ("LONG", "FULL"))
SECONDS = 1800 if LONG else 180 if FULL else 20
EVERY = 5.0 if LONG or FULL else 2.0  # seconds between two faults
FAULTS = "all" if LONG or FULL else "kill,leave,broker,restart"
SEED = 20261123
NOT_RUN = 2  # exit code, and "not run" on stderr where the machine lacks the broker


@pytest.mark.timeout(2 * SECONDS + 240)
@pytest.mark.parametrize(
    "harness", [pytest.param("redis", marks=pytest.mark.redis), pytest.param("kafka", marks=pytest.mark.kafka)]
)
async def test_verify_with_every_fault(harness: str, tmp_path: Path) -> None:
    result = tmp_path / "verdict.json"
    async with Crew(tmp_path / "crew") as crew:
        run = await crew.start(
            "verify", "switchgear.cli", "verify", "--harness", harness, "--for", str(SECONDS), "--faults", FAULTS,
            "--every", str(EVERY), "--seed", str(SEED), "--json", str(result), "--history", str(tmp_path / "history"),
        )  # fmt: skip
        code = await run.ended(2 * SECONDS + 200)
        if code == NOT_RUN and "not run:" in run.said() and os.environ.get("SWITCHGEAR_REQUIRE_BROKERS") != "1":
            pytest.skip(run.said())
        assert code == 0, str(run)
    verdict = msgspec.json.decode(result.read_bytes(), type=Verdict)
    print("\n".join(verdict.lines()))
    assert verdict.good
    assert verdict.ordered
    assert sum(verdict.faults.values()) >= 3
    assert verdict.consumers >= 2
