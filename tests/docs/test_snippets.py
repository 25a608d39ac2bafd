"""Every block of the documentation does what it says, page by page, in an empty folder and a fresh process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.brokers.fixtures import OwnRedis
from tests.brokers.kafka_fixtures import OwnKafka

from .pages import KAFKA, REDIS, ROOT, Block, blocks, pages
from .play import Wrong, excerpt

PAGES = [page for page in pages() if blocks(page)]
NOT_RUN = [block for page in PAGES for block in blocks(page) if block.not_run is not None]


def needs(page: Path, address: str) -> bool:
    return any(address in block.text for block in blocks(page) if block.not_run is None)


def needs_nothing(page: Path) -> bool:
    return not needs(page, REDIS) and not needs(page, KAFKA)


def play(page: Path, folder: Path, **servers: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SWITCHGEAR_", "DOCS_"))}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment.update({f"DOCS_{name.upper()}": url for name, url in servers.items()})
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.docs.play", str(page)],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", [page for page in PAGES if needs_nothing(page)], ids=name)
def test_page(page: Path, tmp_path: Path) -> None:
    play(page, tmp_path)


@pytest.mark.redis
@pytest.mark.parametrize("page", [page for page in PAGES if needs(page, REDIS)], ids=name)
def test_page_on_redis(page: Path, tmp_path: Path, own_redis: OwnRedis) -> None:
    folder = tmp_path / "page"
    folder.mkdir()
    play(page, folder, redis=own_redis().url.rstrip("/"))


@pytest.mark.kafka
@pytest.mark.parametrize("page", [page for page in PAGES if needs(page, KAFKA)], ids=name)
def test_page_on_kafka(page: Path, tmp_path: Path, own_kafka: OwnKafka) -> None:
    folder = tmp_path / "page"
    folder.mkdir()
    play(page, folder, kafka=own_kafka().url)


def test_an_excerpt_must_be_in_its_file(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text("class A:\n    def one(self):\n        return 1\n\n    def two(self):\n        return 2\n")
    excerpt("    def one(self):\n        return 1\n…\n        return 2\n", file)
    for wrong in (
        "def one(self):\n    return 2\n",
        "def two(self):\n…\n    def one(self):\n",
        "def one(self):\nreturn 1\n",
    ):
        with pytest.raises(Wrong):
            excerpt(wrong, file)


@pytest.mark.parametrize("block", NOT_RUN, ids=lambda block: block.where)
def test_not_run(block: Block) -> None:
    pytest.skip(f"not run: {block.where}: {block.not_run}")
