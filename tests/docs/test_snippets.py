"""Every block of the documentation does what it says, page by page, in an empty folder and a fresh process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.brokers.fixtures import OwnRedis

from .pages import REDIS, ROOT, Block, blocks, pages

PAGES = [page for page in pages() if blocks(page)]
NOT_RUN = [block for page in PAGES for block in blocks(page) if block.not_run is not None]


def needs_redis(page: Path) -> bool:
    return any(REDIS in block.text for block in blocks(page) if block.not_run is None)


def play(page: Path, folder: Path, redis: str | None = None) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SWITCHGEAR_", "DOCS_"))}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    if redis is not None:
        environment["DOCS_REDIS"] = redis
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.docs.play", str(page)],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", [page for page in PAGES if not needs_redis(page)], ids=name)
def test_page(page: Path, tmp_path: Path) -> None:
    play(page, tmp_path)


@pytest.mark.redis
@pytest.mark.parametrize("page", [page for page in PAGES if needs_redis(page)], ids=name)
def test_page_on_redis(page: Path, tmp_path: Path, own_redis: OwnRedis) -> None:
    folder = tmp_path / "page"
    folder.mkdir()
    play(page, folder, own_redis().url.rstrip("/"))


@pytest.mark.parametrize("block", NOT_RUN, ids=lambda block: block.where)
def test_not_run(block: Block) -> None:
    pytest.skip(f"not run: {block.where}: {block.not_run}")
